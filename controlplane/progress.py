"""What `headrace up` prints: one line when a step begins, one when it ends, with the time since the start."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from controlplane.app import model_name
from controlplane.config import Config

_REPEAT_S = 5.0  # without a terminal, a long step says that it is alive this often


class Progress:
    """Prints to one console; on a terminal the running step is a live line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_at_s = time.monotonic()

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[Callable[[str], None]]:
        """Show a step; the yielded function says how far it is."""
        began_at_s = time.monotonic()
        self._line(name, f"{what} ...")
        said_at_s = began_at_s
        with self._console.status(escape(f"{name}: {what}")) as live:

            def say(detail: str) -> None:
                nonlocal said_at_s
                live.update(escape(f"{name}: {detail} ({time.monotonic() - began_at_s:.0f} s)"))
                if not self._console.is_terminal and time.monotonic() - said_at_s >= _REPEAT_S:
                    said_at_s = time.monotonic()
                    self._line(name, detail)

            try:
                yield say
            except BaseException:
                self._line(name, f"not finished after {time.monotonic() - began_at_s:.1f} s")
                raise
        self._line(name, f"done in {time.monotonic() - began_at_s:.1f} s")

    def note(self, text: str) -> None:
        """Print a line that belongs to no step."""
        self._line("", text)

    def ready(self, config: Config) -> None:
        """Print the endpoints, a command to paste, and the line that says a request would be served."""
        http, grpc, admin = config.router.http, config.router.grpc, config.admin
        picker = config.router.endpoint_picker
        url = f"{http.scheme}://{http.host}:{http.port}"
        model = model_name(config)
        body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
        lines = [
            "",
            f"  HTTP   {url}/v1  (OpenAI)      {url}/readyz  {url}/metrics",
            f"  gRPC   {grpc.host}:{grpc.port}  (headrace.v1.Inference, reflection on)",
            *([f"  picker {picker.host}:{picker.port}  (Envoy's ext_proc)"] if picker.enabled else []),
            f"  admin  {admin.url}/  (a page for browsers; headrace status)",
            "",
            f"  curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
            "",
        ]
        for line in lines:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        elapsed_s = time.monotonic() - self._started_at_s
        self._console.print(
            f"ready: {url} serves {model} after {elapsed_s:.0f} s; Ctrl-C stops everything",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _line(self, name: str, text: str) -> None:
        elapsed_s = time.monotonic() - self._started_at_s
        self._console.print(f"[{elapsed_s:6.1f} s] {name:<8} {text}", highlight=False, markup=False, soft_wrap=True)
