"""Structured decoders in a process of their own: `python -m cloud.decoder_process CONTEXTS_MAX`.

A request names a connection by number, and its gateway, and has a body decoded, or the connection
forgotten. With four more arguments, a folder, a number of bytes, how many processes share it, and
which of them this is, what gateways ask to be kept is kept there, so that their next connections
start warm. The answer is the content of mode 0
(docs/link-format.md section 4.1) relative to time 0 behind a zero byte, or a one byte and
`word: detail`.

At most CONTEXTS_MAX connections have a context. One more takes the place of the one unused for
longest, which then has to start anew; but if that one is in use, it is refused with `mode`: so a
crowd of gateways goes columnar instead of driving one another out of their contexts.
"""

from __future__ import annotations

import struct
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from bridge.columnar import Limits, pack
from bridge.errors import BatchError
from bridge.structured import StructuredDecoder
from bridge.structured_bodies import LINK_LIMITS
from cloud.context_snapshots import SnapshotFolder
from runtime.worker import serve

__all__ = ["Contexts", "main"]

# decode or forget, connection, new context, count, limit, gateway's length; gateway and body
REQUEST = struct.Struct("<?Q?IIH")
IN_USE_S = 60.0
_SNAPSHOT_ARGUMENTS = 4


@dataclass(slots=True)
class _Held:
    decoder: StructuredDecoder
    used_s: float


class Contexts:
    """The decoders of all connections.

    Args:
        contexts_max: How many may have a context.
        snapshots: Where gateways' snapshots are kept; None: nowhere.
    """

    def __init__(self, contexts_max: int, snapshots: SnapshotFolder | None = None) -> None:
        self._contexts_max = contexts_max
        self._snapshots = snapshots
        self._held: OrderedDict[int, _Held] = OrderedDict()

    def handle(self, request: bytes, now_s: float) -> bytes:
        """Return the answer to a request at `now_s`."""
        decodes, connection, fresh, count, limit, size = REQUEST.unpack_from(request)
        if not decodes:
            self._held.pop(connection, None)
            return b""
        try:
            end = REQUEST.size + size
            decoder = self._decoder(connection, request[REQUEST.size : end].decode(), now_s)
            if fresh:
                decoder.reset()
            body = request[end:]
            columns = decoder.decode(body, count, 0, Limits(content_bytes=limit))
            return b"\0" + pack(columns, 0)
        except BatchError as error:
            self._held.pop(connection, None)
            return b"\1" + str(error).encode()
        except (MemoryError, RecursionError, ValueError) as error:
            self._held.pop(connection, None)
            return b"\1" + f"bounds: {type(error).__name__} in decoding".encode()

    def _decoder(self, connection: int, gateway: str, now_s: float) -> StructuredDecoder:
        held = self._held.get(connection)
        if held is None:
            if len(self._held) >= self._contexts_max:
                self._evict(now_s)
            snapshots = self._snapshots.of(gateway) if self._snapshots is not None else None
            held = self._held[connection] = _Held(StructuredDecoder(LINK_LIMITS, snapshots), now_s)
        self._held.move_to_end(connection)
        held.used_s = now_s
        return held.decoder

    def _evict(self, now_s: float) -> None:
        oldest = next(iter(self._held))
        if now_s - self._held[oldest].used_s < IN_USE_S:
            raise BatchError("mode", "as many gateways as allowed are in the structured mode")
        del self._held[oldest]


def main(arguments: list[str]) -> None:
    """Serve until standard input ends."""
    folder: SnapshotFolder | None = None
    if len(arguments) > _SNAPSHOT_ARGUMENTS:
        path, size, processes, number = arguments[1:]
        folder = SnapshotFolder(Path(path), int(size), (int(number), int(processes)))
    contexts = Contexts(int(arguments[0]), folder)
    serve(lambda request: contexts.handle(request, time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1:])
