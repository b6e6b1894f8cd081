"""Structured bodies decoded beside the loop: this process's end of cloud/decoder_process.py.

A few processes serve all connections, each started by its first one. A connection's first
structured batch gives it the process with the fewest connections, for good: its context is there.
When a process dies, its contexts are gone: the next batch of each connection is refused with
`context`, and its gateway starts a new one.

Invariant: no process was given more connections than its part of `contexts_max` while another had
room.
"""

from __future__ import annotations

import os
import struct
import weakref
from dataclasses import dataclass, field
from itertools import count as numbers
from pathlib import Path

from bridge.columnar import Columns, Limits, unpack
from bridge.errors import BatchError
from runtime.worker import Worker, WorkerError

__all__ = ["StructuredLine", "StructuredPool", "processes_by_cores"]

REQUEST = struct.Struct("<?Q?IIH")  # as in cloud/decoder_process.py, which has the codec with it
_ANSWER_BYTES = 64 << 20
_PROCESSES_MAX = 4


def processes_by_cores() -> int:
    """Return how many decoders suit this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(_PROCESSES_MAX, cores or 1))


@dataclass(slots=True, eq=False)
class _Process:
    """A decoder's process and the connections it decodes for."""

    worker: Worker
    lines: int = 0
    gone: list[int] = field(default_factory=list)  # connections to be forgotten


class StructuredPool:
    """The processes, and the connections they decode for.

    Args:
        contexts_max: How many connections may have a context at once; 0 refuses the mode.
        snapshots: Where what gateways ask to be kept is kept; None: nowhere.
        snapshot_bytes_max: Most bytes there; 0: nothing is kept.
        processes: How many, at most; never more than `contexts_max`.
    """

    def __init__(
        self,
        contexts_max: int,
        snapshots: Path | None = None,
        snapshot_bytes_max: int = 0,
        *,
        processes: int = 1,
    ) -> None:
        n = max(1, min(processes, contexts_max))
        kept: list[str] = []
        if snapshots is not None and snapshot_bytes_max:
            kept = [str(snapshots), str(snapshot_bytes_max // n), str(n)]
        self._contexts_max = contexts_max
        self._processes = []
        for number in range(n):
            arguments = [str(contexts_max // n), *kept, *([str(number)] if kept else [])]
            # patient: refused at once, a gateway would take three refusals in a row for a reason
            # to leave the structured mode, of a process that was merely killed twice
            worker = Worker("cloud.decoder_process", *arguments, retry_s=0.2, patient=True)
            self._processes.append(_Process(worker))
        self._numbers = numbers(1)
        self._places: dict[int, _Process] = {}  # of the connections that have one

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that run."""
        return [pid for one in self._processes if (pid := one.worker.pid) is not None]

    @property
    def restarts(self) -> int:
        """How often a process had to be started again."""
        return sum(max(0, one.worker.starts - 1) for one in self._processes)

    def line(self, gateway: str) -> StructuredLine:
        """Return the decoder of a gateway's new connection; it is forgotten with the object."""
        number = next(self._numbers)
        line = StructuredLine(self, number, gateway)
        weakref.finalize(line, self._forget, number)
        return line

    def _forget(self, number: int) -> None:
        process = self._places.pop(number, None)
        if process is not None:
            process.lines -= 1
            process.gone.append(number)

    def _place(self, number: int) -> _Process:
        process = self._places.get(number)
        if process is None:
            process = self._places[number] = min(self._processes, key=lambda one: one.lines)
            process.lines += 1
        return process

    async def decode(
        self, number: int, gateway: bytes, body: bytes, count: int, limits: Limits, *, fresh: bool
    ) -> Columns:
        """Return the readings of a body.

        Raises:
            BatchError: it has to be refused.
        """
        if not self._contexts_max:
            raise BatchError("mode", "the structured mode is switched off here")
        process = self._place(number)
        worker = process.worker
        try:
            while process.gone:
                gone = process.gone.pop()
                await worker.call(REQUEST.pack(False, gone, False, 0, 0, 0))
            head = REQUEST.pack(True, number, fresh, count, limits.content_bytes, len(gateway))
            answer = await worker.call(b"".join((head, gateway, body)))
        except WorkerError as error:
            raise BatchError("context", f"no decoder of the structured mode: {error}") from None
        if answer[0]:
            word, _, detail = answer[1:].decode(errors="replace").partition(": ")
            raise BatchError(word, detail)
        return unpack(answer[1:], count, 0, Limits(content_bytes=_ANSWER_BYTES))

    async def close(self) -> None:
        """End the processes."""
        for one in self._processes:
            await one.worker.close()


class StructuredLine:
    """One connection's structured decoder."""

    __slots__ = ("__weakref__", "_fresh", "_gateway", "_number", "_pool")

    def __init__(self, pool: StructuredPool, number: int, gateway: str) -> None:
        self._pool = pool
        self._gateway = gateway.encode()
        self._number = number
        self._fresh = True

    def reset(self) -> None:
        """Drop the context: until a body starts a new one, all are refused."""
        self._fresh = True

    async def decode(self, body: bytes, count: int, limits: Limits) -> Columns:
        """Return exactly `count` readings in seq order.

        Raises:
            BatchError: the body has to be refused.
        """
        fresh, self._fresh = self._fresh, False
        return await self._pool.decode(
            self._number, self._gateway, body, count, limits, fresh=fresh
        )
