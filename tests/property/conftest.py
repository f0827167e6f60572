"""How hypothesis runs here."""

from hypothesis import HealthCheck, settings

# No deadlines: the machines that run the tests are shared, and slow is not wrong.
settings.register_profile("headrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headrace")
