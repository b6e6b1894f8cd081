"""The structured encoder in a process of its own: `python -m edge.encoder_process UNIT_US LEVEL`.

A request is flags, the connection's last time, the count, and the content of mode 0
(docs/link-format.md section 4.1); the answer is the mode chosen, with `KEPT` if the body asks the
cloud to keep a snapshot, and the body. An empty request is answered by nothing. The process has the
context of one connection; it is started and spoken to by edge/uplink_bodies.py.

With a third argument, a file, contexts start warm: from the last snapshot that was acknowledged,
which is kept there. It is written anew and renamed, and named by its hash: one that was damaged or
cut short is not used. It is not fsynced, for all that hangs on it is some bytes.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import time
from pathlib import Path

from bridge.columnar import Limits, unpack
from runtime.worker import serve

__all__ = [
    "ACKNOWLEDGED",
    "COLD",
    "FIRST",
    "FRESH",
    "KEPT",
    "MAY_KEEP",
    "REQUEST",
    "SPARE",
    "SnapshotFile",
    "main",
]

REQUEST = struct.Struct("<BqI")  # flags, last time, count; then the content
# new context; the snapshot is not at the cloud; the last one asked for is acknowledged; another may
# be asked for; the new context is the connection's first, so that it may go on from the snapshot;
# the link has bytes to spare
FRESH, COLD, ACKNOWLEDGED, MAY_KEEP, FIRST, SPARE = 1, 2, 4, 8, 16, 32
KEPT = 0x80
_NICENESS = 5  # devices first
_NAME_BYTES = 16
_SNAPSHOT_BYTES_MAX = 16 << 20


class SnapshotFile:
    """The snapshot a new context starts from; none at all without a path."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._pending: tuple[bytes, bytes] | None = None

    def hold(self, name: bytes, data: bytes) -> None:
        """Remember a snapshot that is still to be acknowledged."""
        self._pending = (name, data)

    def acknowledged(self) -> None:
        """Write down the snapshot held."""
        held, self._pending = self._pending, None
        if held is None or self.path is None or len(held[1]) > _SNAPSHOT_BYTES_MAX:
            return
        beside = self.path.with_suffix(".new")
        try:
            beside.write_bytes(held[0] + held[1])
            beside.replace(self.path)
        except OSError:  # a full disk: the next context starts from the one before, or cold
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)

    def read(self) -> tuple[bytes, bytes] | None:
        """Return name and bytes of what was written down, proven or not; drops what is held."""
        self._pending = None
        if self.path is None:
            return None
        try:
            with self.path.open("rb") as file:
                data = file.read(_SNAPSHOT_BYTES_MAX + _NAME_BYTES)
        except OSError:
            return None
        return (data[:_NAME_BYTES], data[_NAME_BYTES:]) if len(data) > _NAME_BYTES else None

    def forget(self) -> None:
        """Remove what was written down: the cloud does not have it."""
        self._pending = None
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def main(arguments: list[str]) -> None:
    """Serve until standard input ends."""
    from bridge.structured_bodies import BodyChoice  # noqa: PLC0415 - not where REQUEST is used

    resolution_us, level = map(int, arguments[:2])
    snapshots = SnapshotFile(Path(arguments[2]) if len(arguments) > 2 else None)
    choice = BodyChoice(
        resolution_us, level=level, keeps=snapshots.path is not None, cpu_s=time.process_time
    )
    limits = Limits(content_bytes=64 << 20)

    def encode(request: bytes) -> bytes:
        if not request:
            return b""
        flags, reference, count = REQUEST.unpack_from(request)
        if flags & ACKNOWLEDGED:
            snapshots.acknowledged()
        if flags & COLD:
            snapshots.forget()
        if flags & FRESH:
            known = snapshots.read()
            choice.reset(known if flags & FIRST else None)
        content = request[REQUEST.size :]
        columns = unpack(content, count, reference, limits)
        may_keep = flags & MAY_KEEP != 0
        spare = flags & SPARE != 0
        mode, body = choice.encode(columns, reference, content, may_keep=may_keep, spare=spare)
        if choice.kept is not None:
            snapshots.hold(*choice.kept)
            mode |= KEPT
        return bytes((mode,)) + body

    serve(encode, niceness=_NICENESS)


if __name__ == "__main__":
    main(sys.argv[1:])
