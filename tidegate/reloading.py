"""Reload of a running command: SIGHUP reads the configuration again and hands it to the service.

A configuration that cannot be read changes nothing. What a reload did is logged, and left in the
data folder for `tidegate reload` to print.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from runtime.config import ConfigError
from runtime.reload import ProcessFile, Reloaded

__all__ = ["PROCESS_FILES", "Reloader"]

# below the data folder, of each kind of process
PROCESS_FILES = {"edge": Path("edge/process.json"), "cloud": Path("cloud/process.json")}

log = structlog.get_logger(component="reload")


class Reloader:
    """A service beside others: says how to reach the process, and reloads when it is asked.

    Args:
        data: The data folder.
        kinds: What the process is: "edge", "cloud" or both.
        reload: Reads the configuration and has the services take it.
    """

    def __init__(
        self, data: Path, kinds: Sequence[str], reload: Callable[[], Awaitable[Reloaded]]
    ) -> None:
        self._files = [ProcessFile(data / PROCESS_FILES[kind]) for kind in kinds]
        self._reload = reload
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Reload soon: what SIGHUP calls."""
        self._asked.set()

    async def start(self) -> None:
        """Say how to reach the process."""
        self._write(None)
        self._task = asyncio.create_task(self._run(), name="reload")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for file in self._files:
            file.remove()

    async def _run(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                done = await self._reload()
            except ConfigError as error:
                done = Reloaded(problem=str(error))
            except Exception as error:
                log.exception("reload_failed")
                done = Reloaded(problem=f"reload failed: {error!r}")
            tell = log.warning if done.problem or done.needs_restart else log.info
            tell(
                "reloaded",
                taken=done.taken,
                needs_restart=done.needs_restart,
                problem=done.problem or None,
            )
            for file in self._files:
                file.reloads += 1
            self._write(done)

    def _write(self, last: Reloaded | None) -> None:
        for file in self._files:
            try:
                file.write(last)
            except OSError as error:
                log.warning("process_file_not_written", path=str(file.path), error=str(error))
