"""Start and stop of a process: one event loop, signals, services that begin and end in order.

SIGINT and SIGTERM ask for an orderly stop; a second one ends the process at once. SIGHUP asks for
a reload. A service is anything with `start()` and `stop()`; services start in the order given and
stop in the reverse, each within a time, so that one that hangs cannot keep the others from saving.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

import structlog

__all__ = ["Service", "StartError", "reason_of", "run", "running", "stop_on_signals"]

log = structlog.get_logger(component="runtime")

STOP_TIMEOUT_S = 20.0

# What waits for a commit is many small objects that are no garbage: the default of 700 looks
# through them again and again. A quarter of the rate of lone publishes (benchmarks/fan_in.py).
GC_THRESHOLDS = (20_000, 50, 100)


class StartError(Exception):
    """A service that could not start; `str()` is one line: what, where, what to do."""


def reason_of(error: Exception) -> str:
    """Return what the system says of an error, without the words a library put around it."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number and number > 0 else str(error)


class Service(Protocol):
    """Something that runs until it is stopped."""

    async def start(self) -> None:
        """Begin; raises StartError when it cannot."""
        ...

    async def stop(self) -> None:
        """End in order; may be called after a failed start."""
        ...


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run `main` on uvloop where there is one, else on asyncio's loop; return its exit code."""
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        import uvloop  # noqa: PLC0415 - optional at run time: the loop is an optimisation
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def stop_on_signals(reload: Callable[[], None] | None = None) -> asyncio.Event:
    """Return an event that SIGINT or SIGTERM sets; SIGHUP calls `reload` if it is given."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_stop() -> None:
        if stop.is_set():  # asked twice: the operator will not wait
            sys.stderr.write("tidegate: stopped at once\n")
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_stop)
    if reload is not None:
        loop.add_signal_handler(signal.SIGHUP, reload)
    return stop


async def running(
    services: Sequence[Service],
    until: Callable[[], Awaitable[object]],
    *,
    timeout_s: float | None = None,
) -> None:
    """Start `services` in order, await `until()`, and stop them in reverse order.

    Args:
        services: What to run.
        until: Returns when it is time to stop.
        timeout_s: How long one service may take to stop; STOP_TIMEOUT_S by default.

    Raises:
        StartError: from the first service that could not start; those before it are stopped.
    """
    limit_s = STOP_TIMEOUT_S if timeout_s is None else timeout_s
    started: list[Service] = []
    try:
        for service in services:
            started.append(service)
            await service.start()
        # what is there now stays: no collection need look through it again, which took 5 ms of the
        # loop each time (benchmarks/uplink.py)
        gc.collect()
        gc.freeze()
        await until()
    finally:
        for service in reversed(started):
            await _stop(service, limit_s)


async def _stop(service: Service, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await service.stop()
    except Exception as error:
        log.exception("stop_failed", service=type(service).__name__, error=repr(error))
