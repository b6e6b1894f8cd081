"""Answering captured runs: PUBACK and PUBREC leave from here and from nowhere else.

Invariants (STYLE 13):
- a publish is answered after the capture has settled its run, and, if a stored session was given
  it, after the session store's commit as well;
- the identifier of a captured QoS 2 publish goes to the store only after its run was settled: a
  store that knew it first would, after a crash, have PUBREC sent for what no journal holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mqtt.broker.lone_calls import native
from mqtt.broker.recorder import StoreRecorder
from mqtt.broker.seams import PublishRun
from mqtt.errors import ProtocolError
from mqtt.inbound_qos_2 import ASKED, SETTLED
from mqtt.server import ServerConnection
from mqtt.server_events import CONNECTED, RunToken

if TYPE_CHECKING:
    from mqtt.broker.connection import Connection

__all__ = ["HeldRun", "answer", "settle", "settle_inbound", "settle_run"]


class HeldRun:
    """A run whose answer waits for the session store as well as for the capture.

    The QoS 2 publishes of a stored session come to local subscribers only when the capture has
    them: what the store keeps of them, deliveries and identifiers, is one group. So a crash between
    the two commits leaves them in the capture and nowhere else, from where `Exchanges` has their
    identifiers; when they come again they are shared and answered, and not captured once more.
    """

    __slots__ = ("_codes", "_is_stored", "_keeps", "_reasons", "_share", "token")

    def __init__(
        self, token: RunToken, *, is_stored: bool, share: Callable[[bool], bool] | None = None
    ) -> None:
        self.token = token
        # Gives the publishes to local subscribers, if they were taken, and returns whether the
        # store need not follow; None when they were given before.
        self._share = share
        self._codes: int | Sequence[int] | None = None
        self._reasons: Mapping[int, str] | None = None
        self._is_stored = is_stored  # what the run gave to stored sessions, if anything
        self._keeps = False  # its own identifiers are on their way to the store

    def settled(self, codes: int | Sequence[int], reasons: Mapping[int, str] | None = None) -> None:
        """The capture has settled the run."""
        self._codes = codes
        self._reasons = reasons
        if self._share is not None:
            self._is_stored = self._share(not isinstance(codes, int) or codes < 0x80)
            if not self._is_stored:
                _recorder(self.token).when_durable(self.stored)
        self._keeps = _keep_identifiers(self.token, codes, self._kept)
        if self._is_stored and not self._keeps:
            _settle(self.token, codes, reasons)

    def stored(self) -> None:
        """The session store has what came of the run."""
        self._is_stored = True
        if self._codes is not None and not self._keeps:
            _settle(self.token, self._codes, self._reasons)

    def _kept(self) -> None:
        """The session store has the identifiers, and all that was put before them."""
        assert self._codes is not None
        _settle(self.token, self._codes, self._reasons)


def _recorder(token: RunToken) -> StoreRecorder:
    connection: Connection = token[0].owner  # type: ignore[assignment] # the driver's own
    recorder = connection.core.recorder
    assert recorder is not None
    return recorder


def _keep_identifiers(
    token: RunToken, codes: int | Sequence[int], done: Callable[[], None]
) -> bool:
    """Have the identifiers of a stored session's QoS 2 publishes kept; False without any."""
    machine, flags, ids, _ = token
    connection: Connection = machine.owner  # type: ignore[assignment] # the driver's own
    session, recorder = connection.session, connection.core.recorder
    if flags & 3 != 2 or recorder is None or session is None or session.recorder is None:
        return False
    each = [codes] * len(ids) if isinstance(codes, int) else codes
    kept = [
        number
        for number, code in zip((int.from_bytes(i, "big") for i in ids), each, strict=True)
        if code < 0x80 and number in (session.inbound or ())
    ]
    for number in kept:
        recorder.inbound_saved(session, number)
    if kept:
        recorder.mark()
        recorder.when_durable(done)
    return bool(kept)


def settle_run(run: PublishRun, codes: int | Sequence[int]) -> None:
    """Answer a captured run: `PublishRun.settled` of every run."""
    token = run.token
    if type(token) is tuple:
        machine, flags, ids, _ = token
        if flags & 3 == 1 and codes == 0 and machine.state is CONNECTED:
            if machine.asks_durability:
                machine.acknowledge_durably(1, ids, 0, machine.owner.core.capture.durability)
            else:
                machine.acknowledge(1, ids)
            if machine.owner.paused:
                machine.owner.settled()
        else:
            _settle(token, codes, run.reasons)
    else:
        token.settled(codes, run.reasons)


settle = native.settle if native else settle_run
if native:
    native.leave_to(settle_run)


def _settle(token: RunToken, codes: int | Sequence[int], reasons: Mapping[int, str] | None) -> None:
    machine, flags, ids, _ = token
    if not ids:
        return
    qos = flags & 3
    if isinstance(codes, int):
        answer(machine, qos, ids, codes)
        return
    for index, (packet_id, code) in enumerate(zip(ids, codes, strict=True)):
        answer(machine, qos, [packet_id], code, reasons.get(index, "") if reasons else "")


def answer(
    machine: ServerConnection, qos: int, ids: list[bytes], code: int, reason: str = ""
) -> None:
    """Answer publishes, and let QoS 2 identifiers go on or be free again.

    Args:
        machine: Whose publishes.
        qos: Theirs.
        ids: Their packet identifiers.
        code: 0, or what refuses them.
        reason: Why one publish is refused, for a v5 client.
    """
    connection: Connection = machine.owner  # type: ignore[assignment] # the driver's own
    if qos == 2:
        settle_inbound(machine, connection, ids, code)
    if machine.state is not CONNECTED:
        return
    if code >= 0x80 and machine.version < 5:
        # 3.1.1 cannot refuse: without an answer the client sends again [MQTT-3.1.1:3.3.5-2].
        connection.fail(ProtocolError(code, "publish could not be stored"))
        return
    capture = connection.core.capture
    if reason and code >= 0x80:
        for packet_id in ids:
            machine.explain(qos, packet_id, code, reason)
    elif machine.asks_durability and capture is not None:
        machine.acknowledge_durably(qos, ids, code, capture.durability)
    else:
        machine.acknowledge(qos, ids, code)
    connection.settled()


def settle_inbound(
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
