"""Stamps: who sent a payload, as which of its readings, in which attempt, and when.

A JSON object gets one member more, at its end: `"_sim":"RUN.DEVICE.COUNTER.ATTEMPT.SENT_US"`.
`RUN` names the run, so that what other runs left in a store is told apart; `ATTEMPT` rises when a
device sends readings again after a refusal or a lost connection: the same reading in another
attempt is another publish, and may rightly be stored again; the same attempt may not.

Payloads that are no JSON object (plain numbers, binary) go out as they are and are recognised by
what they are: the nth publish on a topic with this payload. That also works for MQTT 3.1.1 and for
stores that keep payloads but not properties, where a user property would be lost.

Invariant: `unstamp(stamp(p, ...))` gives back `p` to the bit.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Stamp", "stamp", "stampable", "unstamp"]

_TAIL = re.compile(rb'"_sim":"([0-9a-z]+)\.(\d+)\.(\d+)\.(\d+)\.(\d+)"\}')
_MEMBER = b'"_sim":"'


class Stamp(NamedTuple):
    """What a payload says of itself."""

    run: str
    device: int
    counter: int
    attempt: int
    sent_us: int  # wall clock of the simulator, microseconds since 1970 UTC


def stampable(payload: bytes) -> bool:
    """Return True when a payload has the shape of a JSON object."""
    return payload[:1] == b"{" and payload[-1:] == b"}" and len(payload) > 1


def stamp(payload: bytes, run: str, device: int, counter: int, attempt: int, sent_us: int) -> bytes:
    """Return a stampable payload with its stamp."""
    body = payload[:-1]
    comma = "" if body.strip() == b"{" else ","
    text = f'{comma}"_sim":"{run}.{device}.{counter}.{attempt}.{sent_us}"}}'
    return body + text.encode()


def unstamp(payload: bytes) -> tuple[Stamp, bytes] | None:
    """Return a payload's stamp and the payload without it; None when there is no stamp."""
    at = payload.rfind(_MEMBER)
    if at < 0:
        return None
    match = _TAIL.fullmatch(payload, at)
    if match is None:
        return None
    run, device, counter, attempt, sent_us = match.groups()
    found = Stamp(run.decode(), int(device), int(counter), int(attempt), int(sent_us))
    if payload[at - 1 : at] == b",":
        at -= 1
    return found, payload[:at] + b"}"
