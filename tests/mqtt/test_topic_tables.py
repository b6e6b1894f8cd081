"""Many filters and many names, looked up by one another, against the naive way."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mqtt.topic_tables import FilterTable, NameTree, _Node
from tests.kit.mqtt_strategies import topic_filters, topic_names
from tests.kit.naive_topics import naively_matches


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
            if naively_matches(wanted, name)
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
        assert dict(found) == {n: v for n, v in values.items() if naively_matches(topic_filter, n)}
        assert tree.may_match([topic_filter]) or not found
        assert tree.may_match(["no such name", topic_filter]) or not found
    assert not tree.may_match(["no such level/#", "no such name"])


def filters_below(node: _Node | str, *, is_root: bool = True) -> list[str]:
    """Return the filters of a tree, of which no node is in vain."""
    if isinstance(node, str):
        return [node]
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

    @rule(some=st.lists(topic_filters() | topic_names, max_size=8), key=st.integers(0, 2))
    def add_all(self, some: list[str], key: int) -> None:
        self.table.add_all(key, some, list(range(len(some))))
        self.filters.update({(each, key): value for value, each in enumerate(some)})

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
        assert found == sorted(
            (k, v) for (f, k), v in self.filters.items() if naively_matches(f, name)
        )
        assert dict(self.names.match(topic_filter)) == {
            n: v for n, v in self.values.items() if naively_matches(topic_filter, n)
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
