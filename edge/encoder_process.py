"""The structured encoder in a process of its own: `python -m edge.encoder_process UNIT_US LEVEL`.

A request is a flag whether a new context starts, the connection's last time, the count, and the
content of mode 0 (docs/link-format.md section 4.1); the answer is the mode chosen and its body.
An empty request is answered by nothing. The process has the context of one connection; it is
started and spoken to by edge/uplink_bodies.py.
"""

from __future__ import annotations

import struct
import sys

from bridge.columnar import Limits, unpack
from runtime.worker import serve

__all__ = ["REQUEST", "main"]

REQUEST = struct.Struct("<?qI")  # new context, last time, count; then the content
_NICENESS = 5  # devices first


def main(arguments: list[str]) -> None:
    """Serve until standard input ends."""
    from bridge.structured_bodies import BodyChoice  # noqa: PLC0415 - not where REQUEST is used

    resolution_us, level = map(int, arguments)
    choice = BodyChoice(resolution_us, level=level)
    limits = Limits(content_bytes=64 << 20)

    def encode(request: bytes) -> bytes:
        if not request:
            return b""
        fresh, reference, count = REQUEST.unpack_from(request)
        if fresh:
            choice.reset()
        content = request[REQUEST.size :]
        mode, body = choice.encode(unpack(content, count, reference, limits), reference, content)
        return bytes((mode,)) + body

    serve(encode, niceness=_NICENESS)


if __name__ == "__main__":
    main(sys.argv[1:])
