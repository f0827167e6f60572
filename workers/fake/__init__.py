"""A fake vLLM engine for scale and fault tests, see engine.py. Run: `python -m workers.fake --port 8400`."""

from workers.fake.engine import FakeEngine
from workers.fake.plan import Plan, load_plan
from workers.fake.settings import FakeSettings

__all__ = ["FakeEngine", "FakeSettings", "Plan", "load_plan"]
