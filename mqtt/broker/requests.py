"""What a broker does about each packet of a client that is no captured PUBLISH.

One handler an event type, in `HANDLERS`. Anything that changes a stored session or a retained
message is answered once the store has it. MQTT 5.0 and 3.1.1 sections 3.3-3.15.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from mqtt.broker.authenticating import on_auth
from mqtt.broker.config import BrokerConfig
from mqtt.broker.connecting import on_connect
from mqtt.broker.connection import Connection
from mqtt.broker.full_queues import Way
from mqtt.broker.permissions import on_verdict_pending, wait_for_subscribe
from mqtt.broker.retained import RetainedFeed
from mqtt.broker.seams import PENDING
from mqtt.broker.settling import settle_inbound
from mqtt.errors import (
    LocalProtocolError,
    MalformedPacket,
    MqttError,
    ProtocolError,
    TruncatedPacket,
    UnsupportedProtocolVersion,
)
from mqtt.filter_calls import native
from mqtt.inbound_qos_2 import ASKED, SETTLED
from mqtt.packets import (
    PACKET_NAMES,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    Auth,
    Connect,
    Disconnect,
    Pingreq,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
)
from mqtt.properties import SESSION_EXPIRY_INTERVAL, SUBSCRIPTION_IDENTIFIER
from mqtt.reason_codes import ALLOWED, ReasonCode
from mqtt.server import ServerConnection
from mqtt.server_events import Acknowledged, Arrivals, Event, State
from mqtt.server_messages import Message
from mqtt.server_routes import Route, VerdictPending
from mqtt.session import Session
from mqtt.session_subscriptions import identifier_property
from mqtt.topics import split_shared, topic_filter_fault

__all__ = ["HANDLERS"]

_PINGRESP: Final = b"\xd0\0"
_IN_MEMORY: Final = "memory"


def _when_safe(connection: Connection, before: int, answer: Callable[[], None]) -> None:
    """Answer now, or once the store has what was put since `before`."""
    recorder = connection.core.recorder
    if recorder is None or recorder.position == before:
        answer()
        return
    recorder.when_durable(partial(_answer_later, connection, answer))
    connection.check_store()


def _answer_later(connection: Connection, answer: Callable[[], None]) -> None:
    if not connection.closed:
        answer()


def _position(connection: Connection) -> int:
    recorder = connection.core.recorder
    return recorder.position if recorder is not None else 0


# -- PUBLISH that is not captured -------------------------------------------------------------


def _on_arrivals(connection: Connection, arrivals: Arrivals) -> Sequence[Event] | None:
    """Route messages and answer them, all at once if nothing has to be stored.

    Returns what has to wait, if anything: a subscriber's queue has no room for it.
    """
    policy = connection.core.policy
    if len(arrivals.messages) == 1 and arrivals.messages[0].qos < 2:
        message, route = arrivals.messages[0], arrivals.routes[0]
        if not route.verdict and not policy.crowded and message.size <= policy.leap_bytes:
            _on_lone_arrival(connection, message, route, arrivals.packet_ids[0])
            return None
    left: list[Event] | None = None
    blocker: Session | None = None
    before = _position(connection)
    received = connection.core.stats.messages_received
    answers: list[tuple[int, int, int]] = []  # (QoS, reason code, packet id)
    for index, (message, packet_id, route) in enumerate(
        zip(arrivals.messages, arrivals.packet_ids, arrivals.routes, strict=True)
    ):
        qos = message.qos
        code = route.verdict
        if qos and not code and (policy.crowded or message.size > policy.leap_bytes):
            blocker = _blocker(connection, message, route)
            if blocker is not None:
                if connection.core.queues.way(connection, blocker) is not Way.REFUSE:
                    left = [arrivals.rest(index)]
                    break
                connection.core.queues.refusals += 1
                code = int(ReasonCode.QUOTA_EXCEEDED)
        received[qos] += 1
        if qos == 2 and not code:
            _tell_arrival(connection, message, packet_id)
        code = code or _publish(connection, message, route)
        if qos:
            answers.append((qos, code, packet_id))
            if qos == 2:
                _note_inbound(connection, packet_id, code)
        if route.verdict:
            connection.core.policy.dropped("not_authorized")
    if answers:
        if before == _position(connection):
            _answer_publishes(connection, answers)
        else:
            recorder = connection.core.recorder
            assert recorder is not None
            recorder.when_durable(partial(_answer_publishes, connection, answers))
            connection.check_store()
    if left and blocker is not None:
        connection.blocked(blocker)
    return left


def _on_lone_arrival(
    connection: Connection, message: Message, route: Route, packet_id: int
) -> None:
    """Do what `_on_arrivals` does for one message that nothing stands in the way of."""
    core = connection.core
    qos = message.qos
    recorder = core.recorder
    before = recorder.position if recorder is not None else 0
    core.stats.messages_received[qos] += 1
    code = _publish(connection, message, route)
    if not qos:
        return
    if recorder is not None and recorder.position != before:
        answers = [(qos, code, packet_id)]
        recorder.when_durable(partial(_answer_publishes, connection, answers))
        connection.check_store()
    elif not connection.closed:
        _answer(connection.machine, qos, code, [packet_id.to_bytes(2, "big")])
        connection.settled()


def _blocker(connection: Connection, message: Message, route: Route) -> Session | None:
    """Return a session that has no room for a message, None when all have.

    To be asked while some queue is crowded, or of a message that could fill one that is not.
    """
    core = connection.core
    core.router.receivers(route)  # up to date
    return core.queues.blocker(route, message.qos, message.size, message.publisher)


def _publish(connection: Connection, message: Message, route: Route) -> int:
    core = connection.core
    if core.bus is not None and message.size > core.bus.message_bytes_max:
        return _too_large(connection, message)
    if message.expires_s:  # the machine's time may be a tick old
        message.expires_s += core.refresh() - connection.machine.last_received_s
    if (
        message.retain
        and not core.router.retain(message, route.name)
        and message.qos
        and connection.machine.version >= 5
    ):
        return int(ReasonCode.QUOTA_EXCEEDED)
    if core.router.deliver(message, route, core.now_s):
        return 0
    return int(ReasonCode.NO_MATCHING_SUBSCRIBERS)


def _too_large(connection: Connection, message: Message) -> int:
    """Refuse what the cluster cannot carry; 3.1.1 has no other word for it than the end."""
    connection.core.policy.dropped("too_large_for_cluster")
    if message.qos and connection.machine.version < 5:
        connection.fail(
            ProtocolError(ReasonCode.PACKET_TOO_LARGE, "publish is too large for the cluster")
        )
    return int(ReasonCode.QUOTA_EXCEEDED)


def _tell_arrival(connection: Connection, message: Message, packet_id: int) -> None:
    """Let other nodes know a QoS 2 publish again, should this one die before it has answered."""
    session, bus = connection.session, connection.core.bus
    if bus is not None and session is not None and session.recorder is not None:
        bus.arriving(message, session, packet_id)


def _note_inbound(connection: Connection, packet_id: int, code: int) -> None:
    session = connection.session
    if session is None or session.inbound is None:
        return
    if code >= 0x80 and connection.machine.version >= 5:
        session.inbound.pop(packet_id, None)  # [MQTT-4.3.3-9] the exchange ends here
    elif session.recorder is not None and connection.core.recorder is not None:
        connection.core.recorder.inbound_saved(session, packet_id)


def _answer_publishes(connection: Connection, answers: list[tuple[int, int, int]]) -> None:
    """Send PUBACKs and PUBRECs in the order of the publishes [MQTT-4.6.0-2] [MQTT-4.6.0-3].

    If the client has moved to another connection meanwhile, what it sent again there is answered
    there.
    """
    machine = connection.machine
    for qos, code, packet_id in answers:
        if qos == 2:
            refused = code if machine.version >= 5 else 0
            settle_inbound(machine, connection, [packet_id.to_bytes(2, "big")], refused)
    if connection.closed:
        return
    kind = (0, 0)
    ids: list[bytes] = []
    for qos, code, packet_id in answers:
        if (qos, code) != kind and ids:
            _answer(machine, *kind, ids)
            ids = []
        kind = (qos, code)
        ids.append(packet_id.to_bytes(2, "big"))
    _answer(machine, *kind, ids)
    connection.settled()


def _answer(machine: ServerConnection, qos: int, code: int, ids: list[bytes]) -> None:
    """Answer publishes that no capture took: what they reached is in memory for sure, no more."""
    if machine.asks_durability:
        machine.acknowledge_durably(qos, ids, code, _IN_MEMORY)
    else:
        machine.acknowledge(qos, ids, code)


# -- acknowledgements -------------------------------------------------------------------------


def _on_acknowledged(connection: Connection, event: Acknowledged) -> None:
    session = connection.session
    if session is not None:
        _ACKNOWLEDGED[event.packet_type](connection, session, event)


def _on_puback(connection: Connection, session: Session, event: Acknowledged) -> None:
    # a refusal ends it too [MQTT-4.4.0-2] [MQTT-4.8.2-6]
    wrong = session.acknowledged_together(event.packet_ids)
    if wrong:
        _out_of_place(connection, event.packet_type, wrong)
        return
    session.send_waiting(connection.core.now_s)
    connection.pump()


def _on_pubrec(connection: Connection, session: Session, event: Acknowledged) -> None:
    before = _position(connection)
    if event.reason_code >= 0x80:  # [MQTT-4.3.3-4] [MQTT-4.4.0-2] the client does not want it
        for packet_id in event.packet_ids:
            session.acknowledged(packet_id, 2)
        session.send_waiting(connection.core.now_s)
        connection.pump()
        return
    known: list[tuple[int, bool]] = []
    for packet_id in event.packet_ids:
        is_known = session.received(packet_id)
        if not is_known and session.awaits_another(packet_id):
            _out_of_place(connection, event.packet_type, packet_id)
            return
        known.append((packet_id, is_known))

    def release() -> None:
        for packet_id, is_known in known:
            connection.machine.release(packet_id, is_known)

    _when_safe(connection, before, release)


def _on_pubrel(connection: Connection, session: Session, event: Acknowledged) -> None:
    before = _position(connection)
    known: list[tuple[int, bool]] = []
    recorder = connection.core.recorder
    for packet_id in event.packet_ids:
        state = session.inbound.pop(packet_id, None) if session.inbound is not None else None
        known.append((packet_id, state is not None))
        if state is not None and session.recorder is not None and recorder is not None:
            recorder.inbound_ended(session, packet_id)

    def complete() -> None:
        for packet_id, is_known in known:
            connection.machine.complete(packet_id, is_known)

    # A PUBCOMP that the store does not know of could make the next message look like this one.
    _when_safe(connection, before, complete)


def _on_pubcomp(connection: Connection, session: Session, event: Acknowledged) -> None:
    for packet_id in event.packet_ids:
        if not session.completed(packet_id) and session.awaits_another(packet_id):
            _out_of_place(connection, event.packet_type, packet_id)
            return
    session.send_waiting(connection.core.now_s)
    connection.pump()


def _out_of_place(connection: Connection, packet_type: int, packet_id: int) -> None:
    """End the connection of a client that answers a PUBLISH with what its QoS does not have."""
    connection.fail(
        ProtocolError(
            ReasonCode.PROTOCOL_ERROR,
            f"{PACKET_NAMES[packet_type]} {packet_id} is not what that PUBLISH awaits",
            "MQTT-3.3.4-1",
        )
    )


def _on_publish_again(connection: Connection, session: Session, event: Acknowledged) -> None:
    """QoS 2 publishes sent again: not delivered again [MQTT-4.3.3-10], but answered."""
    inbound = session.inbound
    if inbound is None:
        return
    for packet_id in event.packet_ids:
        if inbound.get(packet_id) == SETTLED:
            connection.machine.acknowledge(2, [packet_id.to_bytes(2, "big")])
        else:
            inbound[packet_id] = ASKED


_ACKNOWLEDGED: Final[dict[int, Callable[[Connection, Session, Acknowledged], None]]] = {
    PUBACK: _on_puback,
    PUBREC: _on_pubrec,
    PUBREL: _on_pubrel,
    PUBCOMP: _on_pubcomp,
    PUBLISH: _on_publish_again,
}


# -- SUBSCRIBE and UNSUBSCRIBE ----------------------------------------------------------------


def _on_subscribe(connection: Connection, packet: Subscribe) -> None:
    """Subscribe, once the host has said to each filter whether it may be."""
    proceed = partial(_subscribe, connection, packet)
    if not wait_for_subscribe(connection, packet, proceed):
        proceed()


def _subscribe(connection: Connection, packet: Subscribe) -> None:
    session = connection.session
    core = connection.core
    assert session is not None
    before = _position(connection)
    identifier = packet.properties.get(SUBSCRIPTION_IDENTIFIER, [0])[0]
    refusals = _refusals(connection, session, packet.subscriptions)
    taken = packet.subscriptions
    codes = [each.qos for each in taken]  # [MQTT-3.8.4-6] [MQTT-3.8.4-7]
    if any(refusals):
        codes = [code or qos for code, qos in zip(refusals, codes, strict=True)]
        taken = [each for each, code in zip(taken, refusals, strict=True) if not code]
    existed = core.router.subscribe_all(session, taken, identifier)
    held = session.subscriptions or {}
    if session.recorder is not None and core.recorder is not None:
        for each in taken:
            core.recorder.subscription_saved(held[each.topic_filter])
    wanting: list[Subscription] = []
    if core.bus is not None or core.router.retained.may_match(
        [each.topic_filter for each in taken]
    ):
        # [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]
        wanting = [
            each
            for each, before_it in zip(taken, existed, strict=True)
            if each.retain_handling <= (not before_it) and held[each.topic_filter].share is None
        ]
    retained = _feeds(connection, wanting, identifier) if core.bus is None else []

    def answer() -> None:
        connection.machine.send_packet(Suback(packet.packet_id, codes))  # [MQTT-3.8.4-1..2]
        for source in retained if core.bus is None else _feeds(connection, wanting, identifier):
            connection.feed(source)

    if core.bus is None:
        _when_safe(connection, before, answer)
    else:  # what is published elsewhere from now on has to come here, and what is retained there
        safe = partial(_when_safe, connection, before, answer)
        core.bus.when_spread(partial(_answer_later, connection, safe))


def _feeds(
    connection: Connection, subscriptions: Sequence[Subscription], identifier: int
) -> list[RetainedFeed]:
    """Return what is retained for subscriptions, as it is now."""
    router, session = connection.core.router, connection.session
    assert session is not None
    return [
        RetainedFeed(router, session, one, identifier_property(identifier))
        for one in subscriptions
        if router.retained.may_match([one.topic_filter])
    ]


def _refusals(
    connection: Connection, session: Session, subscriptions: Sequence[Subscription]
) -> list[int]:
    """Return of each subscription why it is refused, 0 when it is not."""
    core = connection.core
    config = core.config
    slashes_max, characters = config.topic_levels_max - 1, config.topic_bytes_max >> 2
    held = session.subscriptions or {}
    is_full = len(held) + len(subscriptions) > config.subscriptions_max
    if native is not None and not is_full and core.access is None:
        topic_filters = [each.topic_filter for each in subscriptions]
        if native.are_within(topic_filters, slashes_max, characters):
            return [0] * len(subscriptions)
    new: set[str] = set()  # filters that take a place of `subscriptions_max`
    refusals = []
    for subscription in subscriptions:
        topic_filter = subscription.topic_filter
        code = 0
        # The decoder has checked its form; the limits, and `$share/` of 3.1.1, are checked here.
        if (
            topic_filter[0] == "$"
            or topic_filter.count("/") > slashes_max
            or len(topic_filter) > characters
        ):
            code = _over_limits(topic_filter, config)
        if is_full and not code and topic_filter not in held and topic_filter not in new:
            if len(held) + len(new) >= config.subscriptions_max:
                code = int(ReasonCode.QUOTA_EXCEEDED)
            elif not (code := _forbidden(connection, topic_filter)):
                new.add(topic_filter)
        elif not code and core.access is not None:
            code = _forbidden(connection, topic_filter)
        refusals.append(code)
    return refusals


def _over_limits(topic_filter: str, config: BrokerConfig) -> int:
    """Return why a filter is not taken whoever asks for it, 0 when it is."""
    fault = topic_filter_fault(
        topic_filter, levels_max=config.topic_levels_max, bytes_max=config.topic_bytes_max
    )
    return int(ReasonCode.TOPIC_FILTER_INVALID) if fault else 0


def _forbidden(connection: Connection, topic_filter: str) -> int:
    """Return why a client may not subscribe to a filter, 0 when it may."""
    access, client = connection.core.access, connection.machine.client
    if access is None or client is None:
        return 0
    code = access.subscribe(client, split_shared(topic_filter)[1])
    if code == PENDING:  # it was asked for and could not be had
        return int(ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
    return code if not code or code in ALLOWED[SUBACK] else int(ReasonCode.UNSPECIFIED_ERROR)


def _on_unsubscribe(connection: Connection, packet: Unsubscribe) -> None:
    session = connection.session
    core = connection.core
    assert session is not None
    before = _position(connection)
    codes: list[int] = []
    for topic_filter in packet.topic_filters:
        existed = core.router.unsubscribe(session, topic_filter)
        codes.append(0 if existed else int(ReasonCode.NO_SUBSCRIPTION_EXISTED))
        if existed and session.recorder is not None and core.recorder is not None:
            core.recorder.subscription_ended(session, topic_filter)
    unsuback = Unsuback(packet.packet_id, codes if connection.machine.version >= 5 else [])

    def answer() -> None:
        connection.machine.send_packet(unsuback)  # [MQTT-3.10.4-4..6]

    _when_safe(connection, before, answer)


# -- the end ----------------------------------------------------------------------------------


def _on_disconnect(connection: Connection, packet: Disconnect) -> None:
    session = connection.session
    code = packet.reason_code
    expiry_s = packet.properties.get(SESSION_EXPIRY_INTERVAL)
    if session is not None and expiry_s is not None:
        if expiry_s and not session.expiry_s:  # section 3.14.2.2.2: not taken as a DISCONNECT
            connection.machine.state = State.CONNECTED
            connection.fail(
                ProtocolError(
                    ReasonCode.PROTOCOL_ERROR,
                    "DISCONNECT sets a session expiry that CONNECT did not",
                    "MQTT-3.14.2.2.2",
                )
            )
            return
        if expiry_s != session.expiry_s:
            connection.core.registry.change_expiry(session, expiry_s)
    connection.send_will = code != 0  # [MQTT-3.14.4-3] [MQTT-3.1.2-10]
    connection.close(code, linger=False)


def _on_pingreq(connection: Connection, _packet: Pingreq) -> None:
    connection.machine.send_now(_PINGRESP)  # [MQTT-3.12.4-1]


def _on_fault(connection: Connection, fault: MqttError) -> None:
    connection.fail(fault)


HANDLERS: Final[dict[type, Callable[[Connection, Any], Sequence[Event] | None]]] = {
    Arrivals: _on_arrivals,
    Acknowledged: _on_acknowledged,
    Connect: on_connect,
    Subscribe: _on_subscribe,
    Unsubscribe: _on_unsubscribe,
    Pingreq: _on_pingreq,
    Disconnect: _on_disconnect,
    Auth: on_auth,
    VerdictPending: on_verdict_pending,
    MqttError: _on_fault,
    ProtocolError: _on_fault,
    MalformedPacket: _on_fault,
    TruncatedPacket: _on_fault,
    LocalProtocolError: _on_fault,
    UnsupportedProtocolVersion: _on_fault,
}
