"""Topic names and topic filters: what is valid, what matches what, and trees that look both ways.

MQTT 5.0 sections 4.7 and 4.8.2. `TopicTree` finds the filters that match a name (routing);
`NameTree` finds the stored names that a filter matches (retained messages). Filters given to a
tree are valid and without `$share/{name}/`: see `topic_filter_fault` and `split_shared`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = [
    "TOPIC_BYTES_MAX",
    "TOPIC_LEVELS_MAX",
    "NameTree",
    "TopicFault",
    "TopicTree",
    "matches",
    "split_shared",
    "topic_filter_fault",
    "topic_name_fault",
]

K = TypeVar("K")
V = TypeVar("V")

TOPIC_BYTES_MAX: Final = 65_535
TOPIC_LEVELS_MAX: Final = 128
_SHARE: Final = "$share/"


class TopicFault(NamedTuple):
    """Why a topic name or filter is not valid."""

    detail: str
    clause: str


def topic_name_fault(
    topic_name: str,
    *,
    levels_max: int = TOPIC_LEVELS_MAX,
    bytes_max: int = TOPIC_BYTES_MAX,
) -> TopicFault | None:
    """Return what is wrong with a topic name to publish to, or None."""
    if (
        0 < len(topic_name) <= bytes_max >> 2  # at most 4 bytes a character
        and topic_name.count("/") < levels_max
        and "+" not in topic_name
        and "#" not in topic_name
        and "\0" not in topic_name
    ):
        return None
    if "+" in topic_name or "#" in topic_name:  # [MQTT-3.3.2-2] [MQTT-4.7.0-1]
        return TopicFault(f"topic name {_shown(topic_name)} has a wildcard", "MQTT-3.3.2-2")
    return _common_fault("topic name", topic_name, levels_max, bytes_max)


def topic_filter_fault(
    topic_filter: str,
    *,
    shared: bool = True,
    levels_max: int = TOPIC_LEVELS_MAX,
    bytes_max: int = TOPIC_BYTES_MAX,
) -> TopicFault | None:
    """Return what is wrong with a topic filter, or None.

    Args:
        topic_filter: The filter, with `$share/{name}/` if it has one.
        shared: Whether `$share/` begins a shared subscription, as it does in MQTT 5.
        levels_max: Limit on the levels of the filter, `$share/{name}` not counted.
        bytes_max: Limit on the UTF-8 bytes of the whole.
    """
    if (
        0 < len(topic_filter) <= bytes_max >> 2  # at most 4 bytes a character
        and topic_filter[0] != "$"
        and "\0" not in topic_filter
        and topic_filter.count("/") < levels_max
        and ("#" not in topic_filter or _ends_in_hash(topic_filter))
        and ("+" not in topic_filter or topic_filter.count("+") == _pluses(topic_filter))
    ):
        return None
    fault = _common_fault("topic filter", topic_filter, None, bytes_max)
    if fault is not None:
        return fault
    if shared and topic_filter.startswith(_SHARE):
        share_name, slash, rest = topic_filter[len(_SHARE) :].partition("/")
        if not share_name or not slash or not rest:  # [MQTT-4.8.2-1] [MQTT-4.8.2-2]
            detail = f"shared subscription {_shown(topic_filter)} is not $share/{{name}}/{{filter}}"
            return TopicFault(detail, "MQTT-4.8.2-1" if not share_name else "MQTT-4.8.2-2")
        if "+" in share_name or "#" in share_name:
            return TopicFault(
                f"share name {_shown(share_name)} has a wildcard character", "MQTT-4.8.2-2"
            )
        topic_filter = rest
    levels = topic_filter.split("/")
    if len(levels) > levels_max:
        return TopicFault(f"topic filter has {len(levels)} levels, the limit is {levels_max}", "")
    if "#" in topic_filter and (
        levels[-1] != "#" or topic_filter.index("#") + 1 < len(topic_filter)
    ):
        return TopicFault(  # [MQTT-4.7.1-1]
            f"topic filter {_shown(topic_filter)}: '#' must be the whole last level",
            "MQTT-4.7.1-1",
        )
    if topic_filter.count("+") != levels.count("+"):
        return TopicFault(  # [MQTT-4.7.1-2]
            f"topic filter {_shown(topic_filter)}: '+' must be a whole level", "MQTT-4.7.1-2"
        )
    return None


def _ends_in_hash(topic_filter: str) -> bool:
    """Return True when the only `#` is the whole last level."""
    at = len(topic_filter) - 1
    return topic_filter.find("#") == at and (not at or topic_filter[at - 1] == "/")


def _pluses(topic_filter: str) -> int:
    """Return how many levels are `+`."""
    return topic_filter.split("/").count("+")


def split_shared(topic_filter: str) -> tuple[str | None, str]:
    """Return `(share_name, filter)` of a valid filter; None when it is not shared."""
    if not topic_filter.startswith(_SHARE):
        return None, topic_filter
    share_name, _, rest = topic_filter[len(_SHARE) :].partition("/")
    return share_name, rest


def matches(topic_filter: str, topic_name: str) -> bool:
    """Return True when a valid filter (without `$share`) matches a valid name."""
    if topic_filter == topic_name:
        return True
    if topic_name.startswith("$") and topic_filter[0] in "+#":  # [MQTT-4.7.2-1]
        return False
    wanted = topic_filter.split("/")
    levels = topic_name.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        if len(levels) < len(wanted):  # `a/#` matches `a` too
            return False
    elif len(levels) != len(wanted):
        return False
    return all(want in ("+", level) for want, level in zip(wanted, levels, strict=False))


class _Node(Generic[K, V]):
    """One level of the wildcard filters; a field is None until a filter needs it."""

    __slots__ = ("children", "hash", "here", "plus")

    def __init__(self) -> None:
        self.children: dict[str, _Node[K, V]] | None = None  # by literal level
        self.plus: _Node[K, V] | None = None  # below `+`
        self.hash: dict[K, V] | None = None  # of the filter that ends in `#` here
        self.here: dict[K, V] | None = None  # of the filter that ends here


class TopicTree(Generic[K, V]):
    """Topic filters, each with values by key (a subscriber's id -> its options).

    Filters without a wildcard sit in one dict, so that looking them up costs the same however
    many there are; only those with a wildcard are in the tree.
    Invariant: no empty dict and no node without a filter below it stays behind.
    """

    __slots__ = ("_count", "_exact", "_root")

    def __init__(self) -> None:
        self._exact: dict[str, dict[K, V]] = {}
        self._root: _Node[K, V] = _Node()
        self._count = 0

    def __len__(self) -> int:
        """Return how many (filter, key) pairs are held."""
        return self._count

    def add(self, topic_filter: str, key: K, value: V) -> V | None:
        """Set the value of `key` at a filter; return the one it replaces."""
        if "+" in topic_filter or "#" in topic_filter:
            values = self._wildcard_values(topic_filter)
        else:
            values = self._exact.setdefault(topic_filter, {})
        previous = values.get(key)
        if key not in values:
            self._count += 1
        values[key] = value
        return previous

    def remove(self, topic_filter: str, key: K) -> V | None:
        """Forget `key` at a filter; return its value, None when there was none."""
        if "+" in topic_filter or "#" in topic_filter:
            return self._remove_wildcard(topic_filter, key)
        values = self._exact.get(topic_filter)
        if values is None or key not in values:
            return None
        value = values.pop(key)
        self._count -= 1
        if not values:
            del self._exact[topic_filter]
        return value

    def at(self, topic_filter: str) -> dict[K, V] | None:
        """Return the values of one filter, None when it has none; the dict is the tree's own."""
        if "+" not in topic_filter and "#" not in topic_filter:
            return self._exact.get(topic_filter)
        node = self._root
        *levels, last = topic_filter.split("/")
        if last != "#":
            levels.append(last)
        for level in levels:
            below = node.plus if level == "+" else (node.children or {}).get(level)
            if below is None:
                return None
            node = below
        return (node.hash if last == "#" else node.here) or None

    def match(self, topic_name: str) -> list[dict[K, V]]:
        """Return the values of every filter that matches, one dict a filter.

        The dicts are the tree's own: read them, and not after the next change.
        """
        found: list[dict[K, V]] = []
        exact = self._exact.get(topic_name)
        if exact is not None:
            found.append(exact)
        node = self._root
        nodes = [node]
        levels = topic_name.split("/")
        if topic_name[:1] == "$":  # [MQTT-4.7.2-1] a leading wildcard does not match `$`
            child = node.children.get(levels[0]) if node.children else None
            if child is None:
                return found
            nodes = [child]
            del levels[0]
        for level in levels:
            below: list[_Node[K, V]] = []
            for node in nodes:
                if node.hash is not None:
                    found.append(node.hash)
                if node.children is not None:
                    child = node.children.get(level)
                    if child is not None:
                        below.append(child)
                if node.plus is not None:
                    below.append(node.plus)
            if not below:
                return found
            nodes = below
        for node in nodes:
            if node.here is not None:
                found.append(node.here)
            if node.hash is not None:  # `a/#` matches `a` too
                found.append(node.hash)
        return found

    def match_exactly(self, topic_name: str) -> list[dict[K, V]]:
        """Return the values of the filter that is the topic name itself, as `match` does."""
        exact = self._exact.get(topic_name)
        return [] if exact is None else [exact]

    def _wildcard_values(self, topic_filter: str) -> dict[K, V]:
        """Return the values at a filter with a wildcard, made if need be."""
        levels = topic_filter.split("/")
        ends_in_hash = levels[-1] == "#"
        if ends_in_hash:
            levels.pop()
        node = self._root
        for level in levels:
            if level == "+":
                if node.plus is None:
                    node.plus = _Node()
                node = node.plus
            else:
                if node.children is None:
                    node.children = {}
                child = node.children.get(level)
                if child is None:
                    child = node.children[level] = _Node()
                node = child
        if ends_in_hash:
            if node.hash is None:
                node.hash = {}
            return node.hash
        if node.here is None:
            node.here = {}
        return node.here

    def _remove_wildcard(self, topic_filter: str, key: K) -> V | None:
        levels = topic_filter.split("/")
        ends_in_hash = levels[-1] == "#"
        if ends_in_hash:
            levels.pop()
        path: list[_Node[K, V]] = [self._root]
        for level in levels:
            node = path[-1]
            below = node.plus if level == "+" else (node.children or {}).get(level)
            if below is None:
                return None
            path.append(below)
        node = path[-1]
        values = node.hash if ends_in_hash else node.here
        if values is None or key not in values:
            return None
        value = values.pop(key)
        self._count -= 1
        if not values:
            if ends_in_hash:
                node.hash = None
            else:
                node.here = None
            self._prune(path, levels)
        return value

    @staticmethod
    def _prune(path: list[_Node[K, V]], levels: list[str]) -> None:
        """Drop the nodes at the end of `path` that hold nothing any more."""
        while len(path) > 1:
            node = path.pop()
            if node.hash or node.here or node.plus or node.children:
                return
            parent = path[-1]
            level = levels.pop()
            if level == "+":
                parent.plus = None
            elif parent.children is not None:
                del parent.children[level]
                if not parent.children:
                    parent.children = None


class _NameNode:
    """One level of the stored names that has levels below it."""

    __slots__ = ("children", "name")

    def __init__(self, name: str | None = None) -> None:
        # By level; a name with nothing below it stands for itself.
        self.children: dict[str, _NameNode | str] = {}
        self.name = name  # the whole name that ends here


class NameTree(Generic[V]):
    """Topic names, each with one value, looked up by topic filter: retained messages.

    Invariant: the tree of levels holds exactly the names in `_values`; no node but the root is
    without children.
    """

    __slots__ = ("_root", "_values")

    def __init__(self) -> None:
        self._values: dict[str, V] = {}
        self._root = _NameNode()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, topic_name: str) -> bool:
        return topic_name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, topic_name: str) -> V | None:
        """Return the value at a name, or None."""
        return self._values.get(topic_name)

    def set(self, topic_name: str, value: V) -> V | None:
        """Set the value at a name; return the one it replaces."""
        values = self._values
        previous = values.get(topic_name)
        if previous is None and topic_name not in values:
            *levels, last = topic_name.split("/")
            node = self._root
            for level in levels:
                child = node.children.get(level)
                if child is None or isinstance(child, str):
                    child = node.children[level] = _NameNode(child)
                node = child
            there = node.children.get(last)
            if isinstance(there, _NameNode):
                there.name = topic_name
            else:
                node.children[last] = topic_name
        values[topic_name] = value
        return previous

    def pop(self, topic_name: str) -> V | None:
        """Forget a name; return its value, None when there was none."""
        if topic_name not in self._values:
            return None
        *levels, last = topic_name.split("/")
        path = [self._root]
        for level in levels:
            child = path[-1].children[level]
            assert isinstance(child, _NameNode)
            path.append(child)
        there = path[-1].children[last]
        if isinstance(there, _NameNode):
            there.name = None
        else:
            del path[-1].children[last]
            self._prune(path, levels)
        return self._values.pop(topic_name)

    @staticmethod
    def _prune(path: list[_NameNode], levels: list[str]) -> None:
        """Drop the nodes at the end of `path` that have nothing below them any more."""
        while levels and not path[-1].children:
            name = path.pop().name
            level = levels.pop()
            if name is not None:
                path[-1].children[level] = name
                return
            del path[-1].children[level]

    def may_match(self, topic_filter: str) -> bool:
        """Return False when `match` would find nothing, as far as the first level tells."""
        first, slash, _ = topic_filter.partition("/")
        if not slash and first not in ("+", "#"):
            return topic_filter in self._values
        return first in self._root.children or first in ("+", "#")

    def match(self, topic_filter: str) -> list[tuple[str, V]]:
        """Return every (name, value) that a valid filter (without `$share`) matches."""
        return list(zip(*self.select(topic_filter), strict=True))

    def select(self, topic_filter: str) -> tuple[list[str], list[V]]:
        """Return what `match` does as two lists, names and values."""
        values = self._values
        if "+" not in topic_filter and "#" not in topic_filter:
            names = [topic_filter] if topic_filter in values else []
        else:
            names = self._names(topic_filter)
        return names, [values[name] for name in names]

    def _names(self, topic_filter: str) -> list[str]:
        """Return the names that a filter with a wildcard matches."""
        nodes: list[_NameNode | str] = [self._root]
        for depth, level in enumerate(topic_filter.split("/")):
            if level == "#":
                return _names_below(nodes if depth else self._visible())
            inner = [node for node in nodes if not isinstance(node, str)]
            if level != "+":
                nodes = [node.children[level] for node in inner if level in node.children]
            elif depth:
                nodes = [child for node in inner for child in node.children.values()]
            else:
                nodes = self._visible()
        ends = (node if isinstance(node, str) else node.name for node in nodes)
        return [name for name in ends if name is not None]

    def _visible(self) -> list[_NameNode | str]:
        """Return what a leading wildcard matches [MQTT-4.7.2-1]."""
        return [child for key, child in self._root.children.items() if key[:1] != "$"]


def _names_below(nodes: list[_NameNode | str]) -> list[str]:
    """Return the names at and below `nodes`."""
    found: list[str] = []
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            found.append(node)
            continue
        if node.name is not None:
            found.append(node.name)
        stack.extend(node.children.values())
    return found


def _common_fault(
    what: str, topic: str, levels_max: int | None, bytes_max: int
) -> TopicFault | None:
    """Check what names and filters have in common."""
    if not topic:  # [MQTT-4.7.3-1]
        return TopicFault(f"{what} is empty", "MQTT-4.7.3-1")
    if "\0" in topic:  # [MQTT-4.7.3-2]
        return TopicFault(f"{what} contains U+0000", "MQTT-4.7.3-2")
    # At most 4 bytes a character, so that most topics need no encoding to be measured.
    if len(topic) * 4 > bytes_max:
        size = len(topic.encode("utf-8", "surrogatepass"))
        if size > bytes_max:  # [MQTT-4.7.3-3]
            return TopicFault(f"{what} has {size} bytes, the limit is {bytes_max}", "MQTT-4.7.3-3")
    if levels_max is not None and topic.count("/") >= levels_max:
        levels = topic.count("/") + 1
        return TopicFault(f"{what} has {levels} levels, the limit is {levels_max}", "")
    return None


def _shown(topic: str) -> str:
    """Return a topic as it goes into a message for people: quoted, escaped, not too long."""
    return repr(topic if len(topic) <= 80 else topic[:77] + "...")
