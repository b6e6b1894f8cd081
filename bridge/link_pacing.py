"""Credits: how fast the cloud lets a gateway drain its backlog (docs/link-format.md section 8).

The cloud says it on the control topic, of one gateway or of all; the gateway obeys with a token
bucket that may be overdrawn by one batch: small batches would cost the cloud more than they spare
it, so a small credit means full batches far apart. Only backlog is paced: live and urgent readings
go as they come. A credit ends by itself after `valid_s`, so a cloud that stops speaking never
holds a gateway for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import cbor2

from bridge.cbor import read_map
from bridge.errors import BatchError

__all__ = [
    "DOWN_ALL",
    "DOWN_PREFIX",
    "UPLINK_CLIENT_PREFIX",
    "Credit",
    "Pace",
    "decode_credit",
    "encode_credit",
    "retry_after",
]

DOWN_ALL = "tidegate/v1/down"
DOWN_PREFIX = "tidegate/v1/down/"
UPLINK_CLIENT_PREFIX = "tidegate-"  # of a gateway's client id
VERSION = 1
_BYTES_MAX = 4096
_READINGS_MAX = 1 << 32
_SECONDS_MAX = 86_400
_SECONDS = re.compile(r"[0-9]{1,5}(\.[0-9]{1,6})?")
_BURST_S = 1.0  # of the rate that may be sent at once


class _Rng(Protocol):
    def uniform(self, a: float, b: float, /) -> float: ...


@dataclass(slots=True, frozen=True)
class Credit:
    """What the cloud allows.

    Attributes:
        readings_s: Backlog readings a second; None: as many as the link carries.
        hold_s: No backlog for about so long: between this and half as much again, at random.
        valid_s: After so long without another credit there is no limit any more.
    """

    readings_s: int | None = None
    hold_s: int = 0
    valid_s: int = 30


def encode_credit(credit: Credit) -> bytes:
    """Return the payload of a control message."""
    fields: dict[int, Any] = {0: VERSION, 3: credit.valid_s}
    if credit.readings_s is not None:
        fields[1] = credit.readings_s
    if credit.hold_s:
        fields[2] = credit.hold_s
    return cbor2.dumps(dict(sorted(fields.items())))


def decode_credit(payload: bytes) -> Credit | None:
    """Return what a control message says; None when it says nothing this end must do.

    Raises:
        BatchError: "malformed", "bounds", "too-large".
    """
    if len(payload) > _BYTES_MAX:
        raise BatchError("too-large", f"a control message of {len(payload)} bytes")
    fields = read_map(payload)
    if fields.get(0) != VERSION:
        return None
    readings_s = fields.get(1)
    if readings_s is not None:
        readings_s = _uint(readings_s, _READINGS_MAX)
    hold_s, valid_s = _uint(fields.get(2, 0), _SECONDS_MAX), _uint(fields.get(3, 30), _SECONDS_MAX)
    return Credit(readings_s, hold_s, valid_s)


def _uint(value: Any, most: int) -> int:
    if type(value) is not int:
        raise BatchError("malformed", "a control message whose fields are no numbers")
    if not 0 <= value <= most:
        raise BatchError("bounds", f"a control message with {value}, past {most}")
    return value


def retry_after(user_properties: Iterable[tuple[str, str]]) -> float:
    """Return the seconds that a refusing CONNACK's user property `retry-after` says; else 0."""
    for name, value in user_properties:
        if name == "retry-after" and _SECONDS.fullmatch(value):
            return float(value)
    return 0.0


class Pace:
    """The gateway's side: when backlog may be sent.

    Args:
        rng: Spreads the end of a hold, so that a fleet does not come back at once.
        batch_readings: About how many readings a batch has.
    """

    __slots__ = (
        "_batch_readings",
        "_credit",
        "_filled_s",
        "_held_until_s",
        "_own",
        "_rng",
        "_tokens",
        "_valid_until_s",
    )

    def __init__(self, rng: _Rng, batch_readings: int = 500) -> None:
        self._rng = rng
        self._batch_readings = batch_readings
        self.reset()

    def reset(self) -> None:
        """Forget what was allowed: another connection, another node."""
        self._own = False
        self._credit: int | None = None
        self._tokens = 0.0
        self._filled_s = 0.0
        self._valid_until_s = 0.0
        self._held_until_s = 0.0

    def take(self, credit: Credit, now_s: float, *, own: bool = True) -> None:
        """Note what the cloud allows from now on.

        Args:
            credit: What it says.
            now_s: Now.
            own: To this gateway; else to all, which counts until there was a word of its own.
        """
        if self._own and not own:
            return
        self._own = own
        self._fill(now_s)
        if self._credit is None and credit.readings_s is not None:
            # anywhere in the time of its first batch, so that a fleet does not go in step
            self._tokens = -self._rng.uniform(0.0, self._batch_readings)
        self._credit = credit.readings_s
        self._filled_s = now_s
        self._valid_until_s = now_s + credit.valid_s
        if not credit.hold_s:
            self._held_until_s = 0.0
        elif now_s >= self._held_until_s:
            self._held_until_s = now_s + self._rng.uniform(credit.hold_s, credit.hold_s * 1.5)

    def readings_s(self, now_s: float) -> int | None:
        """Return the rate allowed now; None without a limit."""
        return self._credit if now_s < self._valid_until_s else None

    def wait_s(self, now_s: float) -> float:
        """Return how long backlog has to wait; 0 when a batch may go."""
        held_s = max(0.0, self._held_until_s - now_s)
        if now_s >= self._valid_until_s or self._credit is None:
            return held_s
        self._fill(now_s)
        if self._tokens > 0:
            return held_s
        left_s = self._valid_until_s - now_s
        short_s = (1.0 - self._tokens) / self._credit if self._credit else left_s
        return max(held_s, min(left_s, short_s))

    def sent(self, readings: int) -> None:
        """Note that a batch of backlog has gone."""
        self._tokens -= readings

    def _fill(self, now_s: float) -> None:
        if self._credit is not None:
            gained = (now_s - self._filled_s) * self._credit
            self._tokens = min(self._credit * _BURST_S, self._tokens + gained)
        self._filled_s = now_s
