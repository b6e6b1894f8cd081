"""Topics: what is valid, and what matches against the naive way."""

from __future__ import annotations

import pytest
from hypothesis import given

from mqtt.topic_tables import FilterTable, NameTree
from mqtt.topics import matches, split_shared, topic_filter_fault, topic_name_fault
from tests.kit.mqtt_strategies import topic_filters, topic_names
from tests.kit.naive_topics import naively_matches


# The examples of sections 4.7.1 to 4.7.3.
@pytest.mark.conformance("MQTT-4.7.1-1", "MQTT-4.7.1-2", "MQTT-4.7.2-1", "MQTT-4.7.3-4")
@pytest.mark.parametrize(
    ("topic_filter", "topic_name", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/tennis/player1/#", "sport/tennis/player10", False),
        ("sport/#", "sport", True),
        ("#", "sport/tennis", True),
        ("#", "/", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("+/tennis/#", "sport/tennis", True),
        ("#", "$SYS/monitor/Clients", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("+/monitor/#", "$SYS/monitor", False),
        ("$SYS/#", "$SYS/monitor/Clients", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        ("a/+", "a/$b", True),
        ("ACCOUNTS", "Accounts", False),
        ("/finance", "finance", False),
        ("Accounts payable", "Accounts payable", True),
        ("\u00e9", "e\u0301", False),
    ],
)
def test_the_examples_of_the_specification(
    topic_filter: str, topic_name: str, expected: bool
) -> None:
    assert matches(topic_filter, topic_name) is expected
    assert naively_matches(topic_filter, topic_name) is expected
    table: FilterTable[str, int] = FilterTable()
    table.add(topic_filter, "c", 1)
    assert table.match(topic_name) == ([("c", 1)] if expected else [])
    names: NameTree[int] = NameTree()
    names.set(topic_name, 1)
    assert names.match(topic_filter) == ([(topic_name, 1)] if expected else [])


@given(topic_filters(), topic_names)
def test_matches_agrees_with_the_naive_way(topic_filter: str, topic_name: str) -> None:
    assert matches(topic_filter, topic_name) == naively_matches(topic_filter, topic_name)


@pytest.mark.conformance("MQTT-3.3.2-2", "MQTT-4.7.0-1", "MQTT-4.7.3-1", "MQTT-4.7.3-2")
@pytest.mark.parametrize(
    ("topic_name", "clause"),
    [
        ("", "MQTT-4.7.3-1"),
        ("a/+", "MQTT-3.3.2-2"),
        ("a#", "MQTT-3.3.2-2"),
        ("a\0b", "MQTT-4.7.3-2"),
        ("x" * 65_536, "MQTT-4.7.3-3"),
        ("é" * 32_768, "MQTT-4.7.3-3"),
    ],
)
def test_names_that_are_not_valid(topic_name: str, clause: str) -> None:
    fault = topic_name_fault(topic_name)
    assert fault is not None
    assert fault.clause == clause
    assert len(fault.detail) < 200


@pytest.mark.parametrize("topic_name", ["/", " ", "a//b", "$SYS", "x" * 65_535, "é" * 32_767])
def test_names_that_are_valid(topic_name: str) -> None:
    assert topic_name_fault(topic_name) is None


@pytest.mark.conformance(
    "MQTT-4.7.1-1", "MQTT-4.7.1-2", "MQTT-4.7.3-1", "MQTT-4.7.3-3", "MQTT-4.8.2-1", "MQTT-4.8.2-2"
)
@pytest.mark.parametrize(
    ("topic_filter", "clause"),
    [
        ("", "MQTT-4.7.3-1"),
        ("a\0", "MQTT-4.7.3-2"),
        ("x" * 65_536, "MQTT-4.7.3-3"),
        ("#/", "MQTT-4.7.1-1"),
        ("#/a", "MQTT-4.7.1-1"),
        ("a#", "MQTT-4.7.1-1"),
        ("a/#b", "MQTT-4.7.1-1"),
        ("a/##", "MQTT-4.7.1-1"),
        ("#/#", "MQTT-4.7.1-1"),
        ("a+", "MQTT-4.7.1-2"),
        ("+a/b", "MQTT-4.7.1-2"),
        ("++", "MQTT-4.7.1-2"),
        ("a/+b/#", "MQTT-4.7.1-2"),
        ("$share/", "MQTT-4.8.2-1"),
        ("$share//a", "MQTT-4.8.2-1"),
        ("$share/g", "MQTT-4.8.2-2"),
        ("$share/g/", "MQTT-4.8.2-2"),
        ("$share/g+/a", "MQTT-4.8.2-2"),
        ("$share/#/a", "MQTT-4.8.2-2"),
        ("$share/g/a#", "MQTT-4.7.1-1"),
    ],
)
def test_filters_that_are_not_valid(topic_filter: str, clause: str) -> None:
    fault = topic_filter_fault(topic_filter)
    assert fault is not None
    assert fault.clause == clause


@pytest.mark.parametrize(
    "topic_filter",
    [
        "#",
        "+",
        "/",
        "+/+",
        "/#",
        "a/+/#",
        "$share",
        "$shares/g",
        "$share/g/#",
        "$share/g//",
        "a//b",
    ],
)
def test_filters_that_are_valid(topic_filter: str) -> None:
    assert topic_filter_fault(topic_filter) is None


def test_3_1_1_knows_no_shared_subscriptions() -> None:
    assert topic_filter_fault("$share/g", shared=False) is None


def test_limits_on_levels_and_length() -> None:
    assert topic_name_fault("a/b/c", levels_max=3, bytes_max=5) is None
    for name in ("a/b/c/d", "aaaaaa", "ééé"):
        assert topic_name_fault(name, levels_max=3, bytes_max=5) is not None
    assert topic_name_fault("a/b/c/d", levels_max=3) is not None
    assert topic_filter_fault("a/+/#", levels_max=3) is None
    assert topic_filter_fault("a/b/+/#", levels_max=3) is not None
    assert topic_filter_fault("$share/g/a/b/c", levels_max=3) is None
    assert topic_filter_fault("a/b/c/d", bytes_max=5) is not None


def test_the_parts_of_a_shared_subscription() -> None:
    assert split_shared("$share/g/a/#") == ("g", "a/#")
    assert split_shared("$share/g//a") == ("g", "/a")
    assert split_shared("a/$share/g") == (None, "a/$share/g")
