"""Structured bodies decoded beside the loop: this process's end of cloud/decoder_process.py.

One process serves all connections, started by the first structured batch. When it dies, every
context is gone: each connection's next batch is refused with `context`, and its gateway starts a
new one.
"""

from __future__ import annotations

import struct
import weakref
from itertools import count as numbers
from pathlib import Path

from bridge.columnar import Columns, Limits, unpack
from bridge.errors import BatchError
from runtime.worker import Worker, WorkerError

__all__ = ["StructuredLine", "StructuredPool"]

REQUEST = struct.Struct("<?Q?IIH")  # as in cloud/decoder_process.py, which has the codec with it
_ANSWER_BYTES = 64 << 20


class StructuredPool:
    """The process, and the connections it decodes for.

    Args:
        contexts_max: How many connections may have a context at once; 0 refuses the mode.
        snapshots: Where what gateways ask to be kept is kept; None: nowhere.
        snapshot_bytes_max: Most bytes there; 0: nothing is kept.
    """

    def __init__(
        self, contexts_max: int, snapshots: Path | None = None, snapshot_bytes_max: int = 0
    ) -> None:
        self._contexts_max = contexts_max
        arguments = [str(contexts_max)]
        if snapshots is not None and snapshot_bytes_max:
            arguments += (str(snapshots), str(snapshot_bytes_max))
        self._worker = Worker("cloud.decoder_process", *arguments, retry_s=0.2)
        self._numbers = numbers(1)
        self._gone: list[int] = []  # connections to be forgotten

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
        return self._worker.pid

    @property
    def restarts(self) -> int:
        """How often the process had to be started again."""
        return max(0, self._worker.starts - 1)

    def line(self, gateway: str) -> StructuredLine:
        """Return the decoder of a gateway's new connection; it is forgotten with the object."""
        number = next(self._numbers)
        line = StructuredLine(self, number, gateway)
        weakref.finalize(line, self._gone.append, number)
        return line

    async def decode(
        self, number: int, gateway: bytes, body: bytes, count: int, limits: Limits, *, fresh: bool
    ) -> Columns:
        """Return the readings of a body.

        Raises:
            BatchError: it has to be refused.
        """
        if not self._contexts_max:
            raise BatchError("mode", "the structured mode is switched off here")
        try:
            while self._gone:
                gone = self._gone.pop()
                await self._worker.call(REQUEST.pack(False, gone, False, 0, 0, 0))
            head = REQUEST.pack(True, number, fresh, count, limits.content_bytes, len(gateway))
            answer = await self._worker.call(b"".join((head, gateway, body)))
        except WorkerError as error:
            raise BatchError("context", f"no decoder of the structured mode: {error}") from None
        if answer[0]:
            word, _, detail = answer[1:].decode(errors="replace").partition(": ")
            raise BatchError(word, detail)
        return unpack(answer[1:], count, 0, Limits(content_bytes=_ANSWER_BYTES))

    async def close(self) -> None:
        """End the process."""
        await self._worker.close()


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
