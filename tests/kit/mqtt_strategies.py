"""Hypothesis strategies for MQTT: topics, properties, every packet in either version, streams."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from mqtt import properties as p
from mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)
from mqtt.properties import TABLE, WILL, Kind, Properties
from mqtt.reason_codes import ALLOWED, CONNECT_RETURN_CODES

__all__ = [
    "packets",
    "properties",
    "publishes",
    "splits",
    "texts",
    "topic_filters",
    "topic_names",
    "versions",
]

versions = st.sampled_from((4, 5))
qos_levels = st.integers(0, 2)
packet_ids = st.integers(1, 0xFFFF)
payloads = st.binary(max_size=300)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)

# Few different levels, so that names and filters meet.
_level = st.sampled_from(("", "a", "b", "$a", "é")) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0+#/"), max_size=4
)
topic_names = st.lists(_level, min_size=1, max_size=5).map("/".join).filter(bool)


@st.composite
def topic_filters(draw: st.DrawFn) -> str:
    """A valid filter, without `$share`."""
    levels = draw(st.lists(_level | st.just("+"), max_size=4))
    if draw(st.booleans()):
        levels.append("#")
    topic_filter = "/".join(levels)
    return topic_filter or "#"


@st.composite
def properties(draw: st.DrawFn, packet: int) -> Properties:
    """Any properties that `packet` (a packet type, or WILL) may carry."""
    allowed = [identifier for identifier, row in TABLE.items() if packet in row.packets]
    if not allowed:
        return {}
    chosen = draw(st.lists(st.sampled_from(allowed), unique=True, max_size=6))
    if p.AUTHENTICATION_DATA in chosen and p.AUTHENTICATION_METHOD not in chosen:
        chosen.append(p.AUTHENTICATION_METHOD)
    return {identifier: draw(_value(identifier, packet)) for identifier in chosen}


def _value(identifier: int, packet: int) -> st.SearchStrategy[object]:
    row = TABLE[identifier]
    if identifier == p.RESPONSE_TOPIC:
        return topic_names
    if identifier == p.SUBSCRIPTION_IDENTIFIER:
        size = 1 if packet == 8 else 3
        return st.lists(st.integers(1, 268_435_455), min_size=1, max_size=size)
    if identifier == p.USER_PROPERTY:
        return st.lists(st.tuples(texts, texts), min_size=1, max_size=3)
    if row.kind == Kind.STRING:
        return texts
    if row.kind == Kind.BINARY:
        return st.binary(max_size=20)
    limit = row.maximum or (0xFF, 0xFFFF, 0xFFFFFFFF)[row.kind]
    return st.integers(row.minimum, limit)


@st.composite
def packets(draw: st.DrawFn, version: int) -> Packet:
    """Any packet that `version` allows either end to send."""
    makers = [_connect, _connack, publishes, _ack, _subscribe, _suback, _unsubscribe, _unsuback]
    makers += [_ping, _disconnect]
    if version == 5:
        makers.append(_auth)
    return draw(draw(st.sampled_from(makers))(version))


def _props(draw: st.DrawFn, packet: int, version: int) -> Properties:
    return draw(properties(packet)) if version == 5 else {}


@st.composite
def _connect(draw: st.DrawFn, version: int) -> Connect:
    clean_start = draw(st.booleans())
    client_id = draw(texts)
    if version == 4 and not client_id:
        clean_start = True
    will = None
    if draw(st.booleans()):
        will = Will(
            draw(topic_names),
            draw(payloads),
            draw(qos_levels),
            draw(st.booleans()),
            _props(draw, WILL, version),
        )
    username = draw(st.none() | texts)
    password = draw(st.none() | st.binary(max_size=20))
    if version == 4 and username is None:
        password = None
    return Connect(
        client_id,
        version,
        clean_start,
        draw(st.integers(0, 0xFFFF)),
        will,
        username,
        password,
        _props(draw, 1, version),
    )


@st.composite
def _connack(draw: st.DrawFn, version: int) -> Connack:
    codes = sorted(ALLOWED[2]) if version == 5 else list(CONNECT_RETURN_CODES)
    code = draw(st.sampled_from(codes))
    return Connack(draw(st.booleans()) and not code, code, _props(draw, 2, version))


@st.composite
def publishes(draw: st.DrawFn, version: int) -> Publish:
    """Any PUBLISH that `version` allows."""
    qos = draw(qos_levels)
    props = _props(draw, 3, version)
    topic_name = draw(topic_names)
    if p.TOPIC_ALIAS in props and draw(st.booleans()):
        topic_name = ""
    return Publish(
        topic_name,
        draw(payloads),
        qos,
        draw(st.booleans()),
        draw(st.booleans()) and qos > 0,
        draw(packet_ids) if qos else 0,
        props,
    )


@st.composite
def _ack(draw: st.DrawFn, version: int) -> Packet:
    cls = draw(st.sampled_from((Puback, Pubrec, Pubrel, Pubcomp)))
    if version == 4:
        return cls(draw(packet_ids))
    code = draw(st.sampled_from(sorted(ALLOWED[cls.packet_type])))
    return cls(draw(packet_ids), code, _props(draw, cls.packet_type, version))


@st.composite
def _subscribe(draw: st.DrawFn, version: int) -> Subscribe:
    subscriptions = []
    for _ in range(draw(st.integers(1, 3))):
        topic_filter = draw(topic_filters())
        if version == 4:
            subscriptions.append(Subscription(topic_filter, draw(qos_levels)))
            continue
        shared = draw(st.booleans())
        if shared:
            topic_filter = "$share/g/" + topic_filter
        subscriptions.append(
            Subscription(
                topic_filter,
                draw(qos_levels),
                draw(st.booleans()) and not shared,
                draw(st.booleans()),
                draw(st.integers(0, 2)),
            )
        )
    return Subscribe(draw(packet_ids), subscriptions, _props(draw, 8, version))


@st.composite
def _suback(draw: st.DrawFn, version: int) -> Suback:
    codes = sorted(ALLOWED[9]) if version == 5 else [0, 1, 2, 0x80]
    chosen = draw(st.lists(st.sampled_from(codes), min_size=1, max_size=5))
    return Suback(draw(packet_ids), chosen, _props(draw, 9, version))


@st.composite
def _unsubscribe(draw: st.DrawFn, version: int) -> Unsubscribe:
    filters = draw(st.lists(topic_filters(), min_size=1, max_size=3))
    return Unsubscribe(draw(packet_ids), filters, _props(draw, 10, version))


@st.composite
def _unsuback(draw: st.DrawFn, version: int) -> Unsuback:
    if version == 4:
        return Unsuback(draw(packet_ids))
    chosen = draw(st.lists(st.sampled_from(sorted(ALLOWED[11])), min_size=1, max_size=5))
    return Unsuback(draw(packet_ids), chosen, _props(draw, 11, version))


def _ping(_version: int) -> st.SearchStrategy[Packet]:
    return st.sampled_from((Pingreq(), Pingresp()))


@st.composite
def _disconnect(draw: st.DrawFn, version: int) -> Disconnect:
    if version == 4:
        return Disconnect()
    code = draw(st.sampled_from(sorted(ALLOWED[14])))
    return Disconnect(code, _props(draw, 14, version))


@st.composite
def _auth(draw: st.DrawFn, version: int) -> Auth:
    if draw(st.booleans()):
        return Auth()
    props = _props(draw, 15, version)
    props.setdefault(p.AUTHENTICATION_METHOD, draw(texts))
    return Auth(draw(st.sampled_from((0x00, 0x18, 0x19))), props)


@st.composite
def splits(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` cut into pieces anywhere, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in pairwise(edges)]
