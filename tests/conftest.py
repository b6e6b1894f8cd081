"""Settings every test shares."""

from hypothesis import HealthCheck, settings

# Same examples in every run, and no verdict from timing: a busy machine is not a failure.
settings.register_profile(
    "project",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")
