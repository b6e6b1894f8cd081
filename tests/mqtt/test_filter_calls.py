"""The filters of a SUBSCRIBE in C and in Python: both do the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtt import decoding, filter_calls, session_subscriptions, topic_tables
from mqtt.broker import requests
from mqtt.broker.router import Router
from mqtt.decoding import Limits, decode
from mqtt.errors import MqttError
from mqtt.packets import Subscription
from mqtt.session import Session
from mqtt.session_policy import SessionPolicy
from mqtt.session_subscriptions import Subscribed, subscribed
from mqtt.topic_tables import FilterTable, NameTree, _Node
from mqtt.topics import is_plain_filter
from tests.kit.mqtt_strategies import topic_filters, topic_names

# Where nothing was built, Python is compared with itself.
NATIVE: Any = filter_calls.native
USERS = (decoding, session_subscriptions, topic_tables, requests)

# Right and wrong, shared and not, in ASCII and beyond it.
filter_texts = (
    st.text(st.sampled_from("+#/$ab\0é"), max_size=6)
    | topic_filters()
    | st.sampled_from(("$share/g/a", "$share/g/a/#", "$share/h/a/+", "$SYS/#", "a/b", "a/+", "a/#"))
)
valid_filters = topic_filters() | topic_names


@contextmanager
def in_python() -> Iterator[None]:
    """Nothing was built."""
    with ExitStack() as stack:
        for user in USERS:
            stack.enter_context(patch.object(user, "native", None))
        yield


def outcome(body: bytes, version: int, limits: Limits) -> object:
    """Return the packet, or what is wrong with it."""
    try:
        return decode(0x82, body, version, "server", limits)
    except MqttError as fault:
        return type(fault), fault.reason_code, str(fault)


@given(
    st.lists(st.tuples(filter_texts, st.integers(0, 3) | st.integers(0, 255)), max_size=8),
    st.integers(0, 12),
    st.sampled_from((4, 5)),
    st.integers(1, 9),
)
def test_a_subscribe_is_read_alike(
    asked: list[tuple[str, int]], missing: int, version: int, most: int
) -> None:
    body = b"\0\1" + b"\0" * (version == 5)
    for text, options in asked:
        name = text.encode()
        body += len(name).to_bytes(2, "big") + name + bytes((options,))
    limits = Limits(subscriptions_max=most)
    for cut in {len(body), max(0, len(body) - missing)}:
        found = outcome(body[:cut], version, limits)
        with in_python():
            assert outcome(body[:cut], version, limits) == found


@given(st.binary(max_size=40))
def test_bytes_that_are_no_subscribe_are_refused_alike(body: bytes) -> None:
    found = outcome(body, 4, Limits())
    with in_python():
        assert outcome(body, 4, Limits()) == found


def shape(node: _Node | str | None) -> object:
    """Return a tree with its keys in order, to compare."""
    if not isinstance(node, _Node):
        return node
    children = [(level, shape(child)) for level, child in (node.children or {}).items()]
    return children, shape(node.plus), node.hash, node.here


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(valid_filters, max_size=10)), min_size=1, max_size=4
    )
)
def test_filters_are_added_alike(batches: list[tuple[int, list[str]]]) -> None:
    one: FilterTable[int, int] = FilterTable()
    other: FilterTable[int, int] = FilterTable()
    for key, filters in batches:
        values = list(range(len(filters)))
        one.add_all(key, filters, values)
        with in_python():
            other.add_all(key, filters, values)
        assert list(one._values.items()) == list(other._values.items())
        assert shape(one._root) == shape(other._root)
        assert len(one) == len(other)


def test_a_table_wants_a_value_for_each_filter() -> None:
    table: FilterTable[int, int] = FilterTable()
    with pytest.raises(ValueError, match=r"value|zip"):
        table.add_all(1, ["a", "b"], [1])


asked_for = st.builds(
    Subscription,
    st.sampled_from(("$share/g/a", "$share/g/a/#", "$share/h/a", "a/$share/b")) | valid_filters,
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2),
)


def fields_of(entry: Subscribed) -> list[object]:
    """Return what a subscription holds; its session and its group by name."""
    values = {name: getattr(entry, name) for name in Subscribed.__slots__}
    values["session"] = entry.session.client_id
    values["share"] = entry.share and entry.share.topic_filter
    return list(values.items())


@given(st.lists(st.tuples(st.integers(0, 1), st.lists(asked_for, max_size=6)), max_size=4))
def test_sessions_subscribe_alike(batches: list[tuple[int, list[Subscription]]]) -> None:
    policy = SessionPolicy()
    routers = Router(policy), Router(policy)
    sessions = [[Session(f"client-{n}", policy) for n in range(2)] for _ in routers]
    known: list[dict[str, Subscription]] = [{}, {}]
    for number, subscriptions in batches:
        existed = routers[0].subscribe_all(sessions[0][number], subscriptions, 7)
        with in_python():
            assert routers[1].subscribe_all(sessions[1][number], subscriptions, 7) == existed
        expected = []
        for each in subscriptions:
            expected.append(each.topic_filter in known[number])
            known[number][each.topic_filter] = each
        assert existed == expected
    for number in range(2):
        one, other = [each[number].subscriptions or {} for each in sessions]
        assert {f: fields_of(e) for f, e in one.items()} == {
            f: fields_of(e) for f, e in other.items()
        }
        assert {f: (e.qos, e.no_local) for f, e in one.items()} == {
            f: (s.qos, s.no_local) for f, s in known[number].items()
        }
    assert shape(routers[0].filters._root) == shape(routers[1].filters._root)
    for router, group in zip(routers, sessions, strict=True):
        for one_session in group:
            router.forget(one_session)
        assert len(router.filters) == 0


@given(st.lists(valid_filters, max_size=6), st.lists(valid_filters, max_size=3))
def test_retained_names_are_looked_for_alike(filters: list[str], names: list[str]) -> None:
    tree: NameTree[int] = NameTree()
    for name in names:
        if "+" not in name and "#" not in name:
            tree.set(name, 1)
    found = tree.may_match(filters)
    with in_python():
        assert tree.may_match(filters) == found


@pytest.mark.parametrize("given_for_one", ["a", 1, None, Subscription, FilterTable()])
def test_of_what_is_no_subscription_none_is_made(given_for_one: Any) -> None:
    with pytest.raises((TypeError, AttributeError)):
        subscribed(Session("c", SessionPolicy()), [given_for_one], b"").pop().qos.bit_length()


def test_a_class_that_does_not_fit_changes_nothing_for_one_that_does() -> None:
    class Other:
        __slots__ = ("no_local", "other", "qos", "retain_as_published", "topic_filter")

    session = Session("c", SessionPolicy())
    one = Subscription("a", 1, no_local=True)
    other: Any = Other()
    assert subscribed(session, [one], b"")[0].qos == 1
    with pytest.raises((TypeError, AttributeError)):
        subscribed(session, [other], b"")
    (entry,) = subscribed(session, [one], b"")
    assert (entry.topic_filter, entry.qos, entry.no_local) == ("a", 1, True)


def limits_are_kept(filters: Sequence[str], slashes_max: int, characters_max: int) -> bool:
    """Say what `are_within` does, the plain way."""
    return all(
        each[:1] not in ("", "$") and each.count("/") <= slashes_max and len(each) <= characters_max
        for each in filters
    )


@given(st.lists(filter_texts, max_size=5), st.integers(0, 4), st.integers(0, 8))
def test_nothing_is_to_be_asked_of_filters_within_limits(
    filters: list[str], slashes_max: int, characters_max: int
) -> None:
    are_within = NATIVE.are_within if NATIVE else limits_are_kept
    assert are_within(filters, slashes_max, characters_max) == limits_are_kept(
        filters, slashes_max, characters_max
    )


@given(filter_texts)
def test_what_is_read_at_a_call_needs_no_second_look(text: str) -> None:
    name = text.encode()
    body = len(name).to_bytes(2, "big") + name + b"\1"
    plain = bool(text) and text.isascii() and is_plain_filter(text)
    read = NATIVE.subscriptions(Subscription, body, 0, 9)[0] if NATIVE else [0] * plain
    assert len(read) == plain
