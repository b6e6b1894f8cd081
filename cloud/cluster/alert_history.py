"""What happened to the alerts of all nodes: `h.` keys of the control bucket.

    h.{digest of which transitions}    some transitions of one node, CBOR

A key is made once and never changed. Its revision orders it among all, and is the upper part of the
ids of its transitions. Whoever adds removes the oldest keys beyond what is kept.

Invariants:
- transitions are in the bucket, at a quorum, before `add` returns;
- the history leaves room for the others in the bucket, which takes nothing more once it is full:
  no command, no correction, no alert.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from functools import partial
from typing import Final

import cbor2

from cloud.alerts.history import Heard
from cloud.alerts.series import Transition
from cloud.cluster.bucket import Conflict
from cloud.cluster.connection import ClusterError
from cloud.cluster.control import Control
from cloud.cluster.reading import all_at_once
from cloud.sinks.contract import SinkUnavailable

__all__ = ["ClusterAlertHistory"]

_KEY_TRANSITIONS: Final = 1_000  # in one key, at most
_KEY_BYTES: Final = 256 << 10
# More than a key has transitions. Revisions begin at the bucket's first µs: ids have 63 bits.
_ID_SHIFT: Final = 12
_REMOVED_AT_ONCE: Final = 100
_BYTES_MAX: Final = 64 << 20  # a quarter of the bucket
_OVERHEAD_BYTES: Final = 200  # of a key: subject, headers, the server's own


class ClusterAlertHistory:
    """The history of a cluster.

    Args:
        control: The bucket; not started yet.
        bytes_max: Of it, at most so much; some more for a moment.
    """

    def __init__(self, control: Control, *, bytes_max: int = _BYTES_MAX) -> None:
        self._bucket = control.bucket
        self._bytes_max = bytes_max
        # transitions and bytes of each key, oldest first
        self._keys: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._count = 0
        self._bytes = 0
        self._found: list[tuple[int, list[Transition]]] = []  # before anybody follows
        self._heard: Heard | None = None
        control.on("h", self._seen)

    def follow(self, heard: Heard) -> None:
        """Have all there are heard, and from then on all that any node adds."""
        found, self._found, self._heard = self._found, [], heard
        for first_id, transitions in found:
            heard(first_id, transitions)

    async def add(self, transitions: Sequence[Transition], history_max: int) -> None:
        """Add transitions, durable on return; the newest `history_max` of all, or some more, stay.

        Fewer where those would not leave the bucket its room.

        Raises:
            SinkUnavailable: the bucket does not answer.
        """
        try:
            for key, data in _packed(transitions):
                try:
                    await self._bucket.create(key, data)
                except Conflict:
                    continue  # added before: by the holder until now, or the answer was not heard
                await self._remove_beyond(history_max)
        except ClusterError as error:
            raise SinkUnavailable(f"alerts: {error}") from None

    async def _remove_beyond(self, history_max: int) -> None:
        excess = self._count - history_max
        excess_bytes = self._bytes - self._bytes_max
        # many at once: who is to be told waits for each time
        if excess <= history_max // 100 and excess_bytes <= self._bytes_max // 100:
            return
        oldest: list[str] = []
        for key, (count, size) in self._keys.items():
            excess -= count
            if (excess < 0 and excess_bytes <= 0) or len(oldest) == _REMOVED_AT_ONCE:
                break
            excess_bytes -= size
            oldest.append(key)
        await all_at_once([partial(self._remove, key) for key in oldest])

    async def _remove(self, key: str) -> None:
        await self._bucket.delete(key)

    def _seen(self, key: str, value: bytes | None, revision: int) -> None:
        count, size = self._keys.pop(key, (0, 0))
        self._count -= count
        self._bytes -= size
        if value is None:
            return
        transitions = [Transition(*fields) for fields in cbor2.loads(value)]
        count, size = len(transitions), len(value) + _OVERHEAD_BYTES
        self._keys[key] = count, size
        self._count += count
        self._bytes += size
        if self._heard is None:
            self._found.append((revision << _ID_SHIFT, transitions))
        else:
            self._heard(revision << _ID_SHIFT, transitions)


def _packed(transitions: Sequence[Transition]) -> Iterator[tuple[str, bytes]]:
    """Yield keys and values; what is added again has the key that it had."""
    some: list[Transition] = []
    size = 0
    for one in transitions:
        some.append(one)
        size += len(cbor2.dumps(astuple(one)))
        if len(some) == _KEY_TRANSITIONS or size >= _KEY_BYTES:
            yield _keyed(some)
            some, size = [], 0
    if some:
        yield _keyed(some)


def _keyed(some: Sequence[Transition]) -> tuple[str, bytes]:
    said = cbor2.dumps([(one.alert_id, one.state, one.at_us) for one in some])
    key = f"h.{hashlib.blake2b(said, digest_size=16).hexdigest()}"
    return key, cbor2.dumps([astuple(one) for one in some])
