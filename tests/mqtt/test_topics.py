"""Topics: what is valid, what matches, and both ways to look against the naive way."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mqtt.topics import (
    FilterTable,
    NameTree,
    _Node,
    matches,
    split_shared,
    topic_filter_fault,
    topic_name_fault,
)
from tests.kit.mqtt_strategies import topic_filters, topic_names


def naive(topic_filter: str, topic_name: str) -> bool:
    """Section 4.7 word by word, level after level."""
    if topic_name[0] == "$" and topic_filter[0] in "+#":
        return False

    def match(wanted: list[str], levels: list[str]) -> bool:
        if not wanted:
            return not levels
        if wanted[0] == "#":
            return True
        if not levels:
            return False
        return wanted[0] in ("+", levels[0]) and match(wanted[1:], levels[1:])

    wanted, levels = topic_filter.split("/"), topic_name.split("/")
    return match(wanted, levels) or (wanted[-1] == "#" and match(wanted[:-1], levels))


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
    assert naive(topic_filter, topic_name) is expected
    table: FilterTable[str, int] = FilterTable()
    table.add(topic_filter, "c", 1)
    assert table.match(topic_name) == ([("c", 1)] if expected else [])
    names: NameTree[int] = NameTree()
    names.set(topic_name, 1)
    assert names.match(topic_filter) == ([(topic_name, 1)] if expected else [])


@given(topic_filters(), topic_names)
def test_matches_agrees_with_the_naive_way(topic_filter: str, topic_name: str) -> None:
    assert matches(topic_filter, topic_name) == naive(topic_filter, topic_name)


@given(
    st.lists(st.tuples(topic_filters() | topic_names, st.integers(0, 3)), max_size=30),
    st.lists(topic_names, min_size=1, max_size=10),
)
def test_a_filter_table_finds_the_filters_that_match(
    pairs: list[tuple[str, int]], topic_names: list[str]
) -> None:
    table: FilterTable[int, str] = FilterTable()
    expected: dict[str, dict[int, str]] = {}
    for topic_filter, key in pairs:
        table.add(topic_filter, key, topic_filter)
        expected.setdefault(topic_filter, {})[key] = topic_filter
    for name in topic_names:
        found = table.match(name)
        wanted = [
            pair
            for wanted, values in expected.items()
            if naive(wanted, name)
            for pair in values.items()
        ]
        assert sorted(found) == sorted(wanted)
    for topic_filter, values in expected.items():
        assert dict(table.at(topic_filter)) == values


@given(st.lists(topic_names, max_size=30), st.lists(topic_filters(), min_size=1, max_size=10))
def test_a_name_tree_finds_the_names_that_match(names: list[str], filters: list[str]) -> None:
    tree: NameTree[int] = NameTree()
    for index, name in enumerate(names):
        tree.set(name, index)
    values = {name: index for index, name in enumerate(names)}
    for topic_filter in filters:
        found = tree.match(topic_filter)
        assert len(found) == len(dict(found))
        assert dict(found) == {n: v for n, v in values.items() if naive(topic_filter, n)}
        assert tree.may_match(topic_filter) or not found
    assert not tree.may_match("no such level/#")
    assert not tree.may_match("no such name")


def filters_below(node: _Node, *, is_root: bool = True) -> list[str]:
    """Return the filters of a tree, of which no node is in vain."""
    inner = [*(node.children or {}).values(), *([node.plus] if node.plus else [])]
    here = [one for one in (node.here, node.hash) if one is not None]
    found = here + [one for each in inner for one in filters_below(each, is_root=False)]
    assert found or is_root
    assert node.children != {}
    return found


class FiltersAndNamesUnderChange(RuleBasedStateMachine):
    """A table and a tree against dicts, while filters and names come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.table: FilterTable[int, int] = FilterTable()
        self.filters: dict[tuple[str, int], int] = {}
        self.names: NameTree[int] = NameTree()
        self.values: dict[str, int] = {}

    @rule(topic_filter=topic_filters() | topic_names, key=st.integers(0, 2), value=st.integers())
    def add(self, topic_filter: str, key: int, value: int) -> None:
        assert self.table.add(topic_filter, key, value) == self.filters.get((topic_filter, key))
        self.filters[topic_filter, key] = value

    @rule(data=st.data(), other=topic_filters())
    def remove(self, data: st.DataObject, other: str) -> None:
        known = sorted(self.filters)
        topic_filter, key = data.draw(st.sampled_from([*known, (other, 9)]))
        removed = self.filters.pop((topic_filter, key), None)
        assert self.table.remove(topic_filter, key) == removed

    @rule(name=topic_names, value=st.integers())
    def set_name(self, name: str, value: int) -> None:
        assert self.names.set(name, value) == self.values.get(name)
        self.values[name] = value

    @rule(data=st.data(), other=topic_names)
    def pop_name(self, data: st.DataObject, other: str) -> None:
        name = data.draw(st.sampled_from([*sorted(self.values), other]))
        assert self.names.pop(name) == self.values.pop(name, None)

    @rule(name=topic_names, topic_filter=topic_filters())
    def look(self, name: str, topic_filter: str) -> None:
        found = sorted(self.table.match(name))
        assert found == sorted((k, v) for (f, k), v in self.filters.items() if naive(f, name))
        assert dict(self.names.match(topic_filter)) == {
            n: v for n, v in self.values.items() if naive(topic_filter, n)
        }

    @invariant()
    def nothing_is_left_behind(self) -> None:
        assert len(self.table) == len(self.filters)
        assert set(self.names) == set(self.values)
        assert len(self.names) == len(self.values)
        if not self.filters:
            assert not self.table._values
        wild = {one for one, _ in self.filters if "+" in one or "#" in one}
        assert sorted(filters_below(self.table._root)) == sorted(wild)
        if not self.values:
            assert (self.names._root.values, self.names._root.below) == ({}, None)
            assert list(self.names._folders) == [""]


TestFiltersAndNamesUnderChange = FiltersAndNamesUnderChange.TestCase
TestFiltersAndNamesUnderChange.settings = settings(max_examples=40, stateful_step_count=30)


def test_a_table_of_many_filters_looks_at_few() -> None:
    table: FilterTable[int, int] = FilterTable()
    for device in range(20_000):
        table.add(f"devices/{device}/+/set", device, device)
        table.add(f"devices/{device}/state", device, device)
    table.add("devices/#", -1, -1)
    assert len(table) == 40_001
    assert table.match("devices/77/lamp/set") == [(-1, -1), (77, 77)]
    assert table.match("devices/77/state") == [(77, 77), (-1, -1)]
    assert table.match("other/77/state") == []
    assert table._wildcards("devices/77/lamp/set") == ["devices/#", "devices/77/+/set"]


def test_filters_of_many_shapes_cost_a_name_no_more_than_those_that_could_match() -> None:
    table: FilterTable[str, int] = FilterTable()
    for bits in range(1 << 12):
        levels = ["+" if bits >> at & 1 else f"{at}" for at in range(12)]
        table.add("/".join(["elsewhere", *levels]), "c", bits)
        table.add("/".join(["elsewhere", *levels, "#"]), "c", bits)
    root = table._root.children
    assert root is not None
    looked_at: list[str] = []

    class Watched(dict[str, _Node]):
        def get(self, level: str, default: object = None) -> _Node | None:  # type: ignore[override]
            looked_at.append(level)
            return super().get(level)

    table._root.children = Watched(root)
    assert table.match("/".join(["here", *map(str, range(12))])) == []
    assert looked_at == ["here"]  # and none below it


def test_names_with_values_in_a_tree() -> None:
    names: NameTree[str] = NameTree()
    names.set("a/b", "1")
    assert "a/b" in names
    assert "a" not in names
    assert names.get("a/b") == "1"
    assert names.get("a") is None
    assert names.match("a/b") == [("a/b", "1")]
    assert names.match("a/c") == []


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
