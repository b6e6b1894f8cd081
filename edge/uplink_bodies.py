"""Bodies for the uplink's batches: which mode, and where the structured encoder runs.

While batches are small and of few fields they are encoded on the loop (edge/inline_bodies.py),
which costs a moment and no memory to speak of; unless bytes are paid for, for only the process has
the time to begin warm. The first one whose work would hold the loop for over 3 ms, which is told
before it is done, has a process started (edge/encoder_process.py), which takes over with a new
context once it is up; until then batches go in mode 0, or wait where the configuration wants
nothing else than the structured mode. Nothing is started, nor is the codec imported, before there
is something to encode.

Invariants: the loop encodes no batch but one whose work is known to be small; the context is in one
place at a time; a body is sent, or `reset` is called before the next; when the process dies, the
batch goes in mode 0 and the next structured one starts anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from bridge.columnar import Columns, pack
from bridge.envelope import Mode
from bridge.mode_governor import ModeGovernor
from edge.encoder_process import ACKNOWLEDGED, COLD, FIRST, FRESH, KEPT, MAY_KEEP, REQUEST, SPARE
from runtime.logs import limited
from runtime.worker import Worker, WorkerError

if TYPE_CHECKING:
    from pathlib import Path

    from edge.inline_bodies import InlineBodies

__all__ = ["UplinkBodies"]

_INLINE_READINGS = 8
_INLINE_BYTES = 2048  # of payloads
_LOG_EVERY_S = 30.0


class UplinkBodies:
    """Makes the bodies of one uplink's batches.

    Args:
        mode: `uplink.mode`.
        resolution_us: The link's time unit.
        level: zstd level of mode 0.
        snapshot: Where what both ends know is kept, to start the next connection from; None: it
            starts from nothing.
        metered: Bytes are paid for: they are not given for a faster drain, and the memory of a
            process is for fewer of them.
    """

    def __init__(
        self,
        mode: str,
        resolution_us: int,
        level: int,
        snapshot: Path | None = None,
        *,
        metered: bool = False,
    ) -> None:
        self._mode = mode
        self._governed = mode == "auto" and not metered
        self._begins_warm = metered and snapshot is not None
        self._resolution_us = resolution_us
        self._level = level
        self._inline: InlineBodies | None = None
        self._loading: asyncio.Task[None] | None = None
        arguments = [str(resolution_us), str(level)]
        if snapshot is not None:
            arguments.append(str(snapshot))
        self._worker = Worker("edge.encoder_process", *arguments)
        self._made = 0  # structured bodies of this context,
        self._acked = 0  # and how many of them the cloud has acknowledged
        self._kept = 0  # number of the one that asked for the snapshot in question; 0: none
        self._confirmed = False  # that one is acknowledged, and the process is to know
        self._cold = False
        self._endpoint = ""  # connected to now
        self._kept_at = ""  # where the snapshot was acknowledged; empty: before this process
        self._warming: asyncio.Task[None] | None = None
        self._fresh = True  # the process is to start a new context
        self.governor = ModeGovernor()
        self._log = structlog.get_logger(component="uplink")

    @property
    def pid(self) -> int | None:
        """The encoder process's id; None while there is none."""
        return self._worker.pid

    @property
    def restarts(self) -> int:
        """How often the encoder process had to be started again."""
        return max(0, self._worker.starts - 1)

    def wanted(self, now_s: float, waiting: int, in_flight: int) -> int:
        """Return the mode to ask for.

        Args:
            now_s: Now.
            waiting: About how many readings wait to be sent.
            in_flight: Batches that are not answered yet.
        """
        if self._mode == "columnar":
            return Mode.COLUMNAR
        if not self._governed or not self._worker.running or self._warming is not None:
            return Mode.STRUCTURED
        structured = self.governor.structured(now_s, waiting, in_flight)
        return Mode.STRUCTURED if structured else Mode.COLUMNAR

    def linked(self, endpoint: str) -> None:
        """Note which cloud node is at the other end: what another one keeps, it does not have."""
        self._endpoint = endpoint

    def reset(self) -> None:
        """Start a new context, with the connection's."""
        self._made = self._acked = self._kept = 0
        self._fresh = True
        self.governor.restart()
        if self._inline is not None:
            self._inline.reset()

    def acknowledged(self, mode: int, readings: int, now_s: float) -> None:
        """Note that the cloud has one more batch of this context; structured ones come in order.

        Args:
            mode: Of its body.
            readings: How many it held.
            now_s: Now.
        """
        self.governor.answered(now_s, readings, columnar=mode != Mode.STRUCTURED)
        if mode != Mode.STRUCTURED:
            return
        self._acked += 1
        if 0 < self._kept <= self._acked:
            self._kept, self._confirmed = 0, True
            self._kept_at = self._endpoint

    def refused(self) -> None:
        """Note that the cloud refused a body: the next context starts from nothing."""
        self._cold = True

    async def encode(self, columns: Columns, reference: int) -> tuple[int, bytes] | None:
        """Return mode and body of one or more readings; None has them go in mode 0.

        Args:
            columns: The readings.
            reference: The connection's last time.
        """
        if not self._worker.running:
            if not self._begins_warm and _is_small(columns):
                inline = await self._loaded()
                if inline is None:
                    return None
                if inline.fits(columns):
                    mode, body = inline.encode(columns, reference)
                    self._made += mode == Mode.STRUCTURED
                    return mode, body
            self._warm_up()
        self._inline = None
        if self._warming is not None:
            if self._mode != "structured":
                return None
            await asyncio.shield(self._warming)
        flags = (
            FRESH * self._fresh
            | COLD * (self._fresh and self._cold)
            | ACKNOWLEDGED * self._confirmed
            | MAY_KEEP * (not self._kept)
            | FIRST * (not self._made and self._kept_at in ("", self._endpoint))
            | SPARE * (self._governed and not self.governor.much)
        )
        request = REQUEST.pack(flags, reference, len(columns)) + pack(columns, reference)
        self._confirmed = False
        try:
            answer = await self._worker.call(request)
        except WorkerError as error:
            self._fresh, self._kept = True, 0
            limited(self._log, "encoder_failed", _LOG_EVERY_S).warning(
                "encoder_failed", reason=str(error)
            )
            return None
        self._fresh = self._cold = False
        mode = answer[0] & ~KEPT
        self._made += mode == Mode.STRUCTURED
        if answer[0] & KEPT:
            self._kept, self._confirmed = self._made, False
        return mode, answer[1:]

    async def _loaded(self) -> InlineBodies | None:
        """Return what encodes on the loop; None while it is made and mode 0 does meanwhile."""
        if self._inline is None:
            if self._loading is None:
                self._loading = asyncio.create_task(self._load(), name="uplink-codec")
            if self._mode != "structured":
                return None
            await asyncio.shield(self._loading)
        return self._inline

    async def _load(self) -> None:
        """Import the codec and make a context, in a thread: the loop has its turn meanwhile."""
        try:
            self._inline = await asyncio.to_thread(_inline_bodies, self._resolution_us, self._level)
        finally:
            self._loading = None

    def _warm_up(self) -> None:
        if self._warming is None:
            self._warming = asyncio.create_task(self._warm(), name="uplink-encoder")

    async def _warm(self) -> None:
        """Start the process: an empty request is answered once the codec is imported."""
        try:
            with contextlib.suppress(WorkerError):  # tried again by the next batch
                await self._worker.call(b"")
                self._fresh = True
        finally:
            self._warming = None

    async def close(self) -> None:
        """End the process; the next batch may start another one."""
        tasks = [task for task in (self._warming, self._loading) if task is not None]
        self._warming = self._loading = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._worker.close()
        self._inline = None
        self._fresh = True


def _is_small(columns: Columns) -> bool:
    size = sum(map(len, columns.payloads))
    return len(columns) <= _INLINE_READINGS and size <= _INLINE_BYTES


def _inline_bodies(resolution_us: int, level: int) -> InlineBodies:
    from edge.inline_bodies import InlineBodies  # noqa: PLC0415 - it brings the codec with it

    return InlineBodies(resolution_us, level)
