"""Answering captured runs: PUBACK and PUBREC leave from here and from nowhere else.

Invariant: a publish is answered after the capture has settled its run, and, if a stored session
was given it, after the session store's commit as well (STYLE 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mqtt.broker.seams import PublishRun
from mqtt.errors import ProtocolError
from mqtt.server import ServerConnection
from mqtt.server_events import RunToken, State
from mqtt.session import ASKED, SETTLED

if TYPE_CHECKING:
    from mqtt.broker.connection import Connection

__all__ = ["HeldRun", "answer", "settle"]


class HeldRun:
    """A run whose answer waits for the session store as well as for the capture."""

    __slots__ = ("_codes", "_is_stored", "_run", "token")

    def __init__(self, token: RunToken, run: PublishRun) -> None:
        self.token = token
        self._run = run
        self._codes: int | Sequence[int] | None = None
        self._is_stored = False

    def settled(self, codes: int | Sequence[int]) -> None:
        """The capture has settled the run."""
        self._codes = codes
        if self._is_stored:
            _settle(self.token, codes)

    def stored(self) -> None:
        """The session store has what came of the run."""
        self._is_stored = True
        if self._codes is not None:
            _settle(self.token, self._codes)


def settle(run: PublishRun, codes: int | Sequence[int]) -> None:
    """Answer a captured run: `PublishRun.settled` of every run."""
    token = run.token
    if type(token) is tuple:
        machine, flags, ids, _ = token
        if flags & 3 == 1 and codes == 0 and machine.state is State.CONNECTED:
            if machine.asks_durability:
                machine.acknowledge_durably(1, ids, 0, machine.owner.core.capture.durability)
            else:
                machine.acknowledge(1, ids)
            if machine.owner.paused:
                machine.owner.settled()
        else:
            _settle(token, codes)
    else:
        token.settled(codes)


def _settle(token: RunToken, codes: int | Sequence[int]) -> None:
    machine, flags, ids, _ = token
    if not ids:
        return
    qos = flags & 3
    if isinstance(codes, int):
        answer(machine, qos, ids, codes)
        return
    for packet_id, code in zip(ids, codes, strict=True):
        answer(machine, qos, [packet_id], code)


def answer(machine: ServerConnection, qos: int, ids: list[bytes], code: int) -> None:
    """Answer publishes, and let QoS 2 identifiers go on or be free again."""
    connection: Connection = machine.owner  # type: ignore[assignment] # the driver's own
    if qos == 2:
        _settle_inbound(machine, connection, ids, code)
    if machine.state is not State.CONNECTED:
        return
    if code >= 0x80 and machine.version < 5:
        # 3.1.1 cannot refuse: without an answer the client sends again [MQTT-3.1.1:3.3.5-2].
        connection.fail(ProtocolError(code, "publish could not be stored"))
        return
    capture = connection.core.capture
    if machine.asks_durability and capture is not None:
        machine.acknowledge_durably(qos, ids, code, capture.durability)
    else:
        machine.acknowledge(qos, ids, code)
    connection.settled()


def _settle_inbound(
    machine: ServerConnection, connection: Connection, ids: list[bytes], code: int
) -> None:
    session = connection.session
    inbound = session.inbound if session is not None else None
    if session is None or inbound is None:
        return
    for packet_id in ids:
        number = int.from_bytes(packet_id, "big")
        state = inbound.get(number)
        if state is None:
            continue
        if code >= 0x80:
            del inbound[number]
            if session.recorder is not None:
                connection.core.forget_inbound(session, number)
        else:
            inbound[number] = SETTLED
        # It was sent again on another connection before it was durable: answer it there.
        link = session.link
        if state == ASKED and isinstance(link, ServerConnection) and link is not machine:
            link.acknowledge(2, [packet_id], code)
