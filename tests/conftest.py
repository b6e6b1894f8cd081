"""Settings every test shares."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import groupby, islice

import pytest
import structlog
from hypothesis import HealthCheck, settings

from runtime import logs

# Same examples in every run, and no verdict from timing: a busy machine is not a failure.
settings.register_profile(
    "project",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")


LONG = {"e2e", "cluster", "cloud"}  # packages of tests that start servers and nodes, and wait


@pytest.hookimpl(trylast=True)  # modules, and tests in them, have been put in a random order
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have each worker begin with modules of long tests: short ones can be shared out at the end.

    What `--dist worksteal` gives each worker to begin with is an equal part of all tests, in a row.
    """
    workers: int = getattr(config, "workerinput", {}).get("workercount", 1)
    modules = [list(found) for _, found in groupby(items, key=lambda item: item.path)]
    long = [one for one in modules if one[0].path.parent.name in LONG]
    rest = iter([item for one in modules if one[0].path.parent.name not in LONG for item in one])
    count = len(items)
    items.clear()
    for worker in range(workers):
        end = len(items) + (count - len(items)) // (workers - worker)
        items += [item for one in long[worker::workers] for item in one]
        items += islice(rest, max(0, end - len(items)))
    items += rest


@pytest.fixture(autouse=True)
def _logs_of_its_own() -> Iterator[None]:
    """Undo what a test sets up for its process's logs, and what it said too often."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level
    logs._state.limits.clear()
