"""What gateways said of clocks that were wrong, for all nodes: `x.` keys of the control bucket.

A correction comes to the node its gateway is connected to; each node gives it to its own storage
and shows its latest values with it. A storage of all nodes takes it once, whoever brings it.

Invariant: a correction is in the bucket before its gateway is acknowledged.
"""

from __future__ import annotations

from typing import Final

import cbor2

from bridge.commands import Correction
from cloud.cluster.bucket import Conflict, key_token
from cloud.cluster.connection import ClusterError
from cloud.cluster.control import Control
from cloud.corrections import Corrected
from cloud.database import DatabaseError

__all__ = ["ClusterCorrections"]

_KEPT_S: Final = 180 * 86_400.0  # a storage put back from an older backup lacks the oldest


class ClusterCorrections:
    """The corrections of a cluster.

    Args:
        control: The bucket; not started yet.
    """

    def __init__(self, control: Control) -> None:
        self._bucket = control.bucket
        self._found: list[tuple[str, Correction]] = []
        self._heard: Corrected | None = None
        control.on("x", self._seen)

    async def open(self) -> None:
        """Nothing is to be opened."""

    async def close(self) -> None:
        """Hear of nothing more."""
        self._heard = None

    async def add(self, gateway: str, correction: Correction) -> None:
        """Keep a correction; durable on return. One that is known changes nothing."""
        one = correction
        key = f"x.{key_token(gateway)}.{one.epoch:x}.{one.first_seq}"
        data = cbor2.dumps(
            [gateway, one.epoch, one.first_seq, one.last_seq, one.delta_us, one.uncertainty_us]
        )
        try:
            await self._bucket.create(key, data, ttl_s=_KEPT_S)
        except Conflict:
            return
        except ClusterError as error:
            raise DatabaseError(f"corrections: {error}") from error

    async def all(self, heard: Corrected) -> list[tuple[str, Correction]]:
        """Return those there are, oldest first; those that come after that are `heard`."""
        found, self._found = self._found, []
        self._heard = heard
        return found

    def _seen(self, _key: str, value: bytes | None, _revision: int) -> None:
        if value is None:
            return
        gateway, *fields = cbor2.loads(value)
        correction = Correction(*fields)
        if self._heard is None:
            self._found.append((gateway, correction))
        else:
            self._heard(gateway, correction)
