"""A whole cloud node in the test's own loop, fed without a network, asked by the real commands."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cloud.alerts.config import AlertsConfig
from cloud.api_config import HttpConfig
from cloud.config import CloudConfig, SinksConfig, StorageConfig, StreamConfig
from cloud.node import Node
from runtime.clock import Clock, SystemClock
from tidegate.main import main

__all__ = ["Outcome", "node_config", "run_command", "running_node"]


@dataclass(slots=True, frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


def node_config(data: Path, **keys: object) -> CloudConfig:
    """Return the configuration of a node on free ports; `keys` replace sections."""
    sections: dict[str, object] = {
        "http": HttpConfig(port=0),
        "storage": StorageConfig(linger_ms=0),
        "stream": StreamConfig(disk_reserve_bytes=0),
        "sinks": SinksConfig(retry_s=0.01, tries_max=2),
        "alerts": AlertsConfig(),
    }
    return CloudConfig(data=data, port=0, **{**sections, **keys})  # type: ignore[arg-type]


@asynccontextmanager
async def running_node(
    data: Path, *, clock: Clock | None = None, config: CloudConfig | None = None
) -> AsyncIterator[Node]:
    """Run a node."""
    node = Node(config or node_config(data), clock or SystemClock())
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


class _OfThread(io.StringIO):
    """Takes what the thread that made it writes; the rest, a node's logs, goes on as before."""

    def __init__(self, other: TextIO) -> None:
        super().__init__()
        self._other = other
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            return super().write(text)
        return self._other.write(text)


async def run_command(*arguments: object) -> Outcome:
    """Run `tidegate ARGUMENTS` on a thread, so that a node in this loop can answer it."""

    def run() -> Outcome:
        out, err = _OfThread(sys.stdout), _OfThread(sys.stderr)
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
        return Outcome(code, out.getvalue(), err.getvalue())

    return await asyncio.to_thread(run)
