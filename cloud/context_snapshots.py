"""Snapshots of structured contexts on disk, for gateways that come back: DIR/cloud/snapshots.

One file a gateway and snapshot, named by the hashes of both; the last two of a gateway are there,
of all of them so many bytes, those unused for longest dropped first. What is damaged, cut short or
lost costs its gateway a cold start and nothing else, so nothing is fsynced.

Several decoders may share the folder. Each bounds what it wrote or read there, and its share, by
name, of what it found at its start; so all of it is bounded, and any of them reads any file.

Invariants: a snapshot is only ever given to the gateway it was made with; whoever reads one proves
it by its name (bridge/structured/snapshot.py).
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

__all__ = ["GatewaySnapshots", "SnapshotFolder"]

_OF_A_GATEWAY = 2
_SUFFIX = ".snapshot"
_NEW = ".new"  # behind it, while a file is written


class SnapshotFolder:
    """The snapshots of all gateways.

    Args:
        path: The folder, made when something is put there.
        bytes_max: Most bytes of those this process looks after.
        share: Which process this is, and of how many that share the folder.
    """

    def __init__(self, path: Path, bytes_max: int, share: tuple[int, int] = (0, 1)) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._sizes: OrderedDict[str, int] = OrderedDict()  # by file name, the last used last
        self._bytes = 0
        number, processes = share
        found = []
        for file in path.glob(f"*{_SUFFIX}"):
            if crc32(file.name.encode()) % processes == number:
                with contextlib.suppress(OSError):  # another process dropped it meanwhile
                    found.append((file.stat(), file.name))
        for status, name in sorted(found, key=lambda item: item[0].st_mtime_ns):
            self._note(name, status.st_size)
        self._shrink()
        for file in path.glob(f"*{_SUFFIX}{_NEW}"):  # of a process that died while it wrote
            if crc32(file.name.encode()) % processes == number:
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)

    def of(self, gateway: str) -> GatewaySnapshots:
        """Return the snapshots of one gateway."""
        return GatewaySnapshots(self, blake2b(gateway.encode(), digest_size=16).hexdigest())

    def read(self, name: str) -> bytes | None:
        """Return what is in a file, None if it cannot be read."""
        try:
            data = (self._path / name).read_bytes()
        except OSError:
            self._drop(name)
            return None
        self._note(name, len(data))  # perhaps another process wrote it
        self._shrink()
        return data

    def write(self, name: str, data: bytes) -> None:
        """Keep a file; older ones of its gateway, or of others, give way."""
        if len(data) > self._bytes_max:
            return
        beside = self._path / f"{name}{_NEW}"
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(data)
            beside.replace(self._path / name)
        except OSError:  # a full disk: its gateway starts cold
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            return
        self._note(name, len(data))
        gateway = name.partition("-")[0]
        mine = [other for other in self._sizes if other.startswith(gateway)]
        for other in mine[:-_OF_A_GATEWAY]:
            self._drop(other)
        self._shrink()

    def _note(self, name: str, size: int) -> None:
        self._bytes += size - self._sizes.pop(name, 0)
        self._sizes[name] = size

    def _shrink(self) -> None:
        while self._bytes > self._bytes_max:
            self._drop(next(iter(self._sizes)))

    def _drop(self, name: str) -> None:
        self._bytes -= self._sizes.pop(name, 0)
        with contextlib.suppress(OSError):
            (self._path / name).unlink(missing_ok=True)


class GatewaySnapshots:
    """The snapshots of one gateway, as its decoder wants them."""

    __slots__ = ("_folder", "_gateway")

    def __init__(self, folder: SnapshotFolder, gateway: str) -> None:
        self._folder = folder
        self._gateway = gateway

    def get(self, name: bytes) -> bytes | None:
        """Return the snapshot of that name, None if it is not here."""
        return self._folder.read(self._file(name))

    def put(self, name: bytes, data: bytes) -> None:
        """Keep a snapshot."""
        self._folder.write(self._file(name), data)

    def _file(self, name: bytes) -> str:
        return f"{self._gateway}-{name.hex()}{_SUFFIX}"
