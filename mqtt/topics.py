"""Topic names and topic filters: what is valid, what matches what, and how to look both ways.

MQTT 5.0 sections 4.7 and 4.8.2. `FilterTable` finds the filters that match a name (routing);
`NameTree` finds the stored names that a filter matches (retained messages). Filters given to
either are valid and without `$share/{name}/`: see `topic_filter_fault` and `split_shared`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = [
    "TOPIC_BYTES_MAX",
    "TOPIC_LEVELS_MAX",
    "FilterTable",
    "NameTree",
    "TopicFault",
    "is_plain_filter",
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
_WILDCARDS: Final = ("+", "#")


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
        and topic_filter.count("/") < levels_max
        and is_plain_filter(topic_filter)
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


def is_plain_filter(topic_filter: str) -> bool:
    """Return True when nothing but its length can be wrong with a filter, which is not empty.

    False says that `topic_filter_fault` has to look: it may be a shared subscription, or wrong.
    """
    if topic_filter[0] == "$" or "\0" in topic_filter:
        return False
    if "#" in topic_filter:
        at = len(topic_filter) - 1
        if topic_filter.find("#") != at or (at and topic_filter[at - 1] != "/"):
            return False
    pluses = topic_filter.count("+")
    return not pluses or pluses == topic_filter.split("/").count("+")


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


class _Node:
    """One level of the filters with a wildcard; a field is None until a filter needs it."""

    __slots__ = ("children", "hash", "here", "plus")

    def __init__(self) -> None:
        self.children: dict[str, _Node] | None = None  # by literal level
        self.plus: _Node | None = None  # below `+`
        self.hash: str | None = None  # the filter that ends in `#` here
        self.here: str | None = None  # the filter that ends here


class FilterTable(Generic[K, V]):
    """Topic filters, each with values by key (a subscriber -> its options).

    All of them are in one dict, so that finding one without a wildcard costs the same however many
    there are. Those with a wildcard are in a tree of their levels as well, which says what matches.
    Invariants: a filter with one value has it as a pair, one with more as a dict; the tree has
    exactly the filters with a wildcard of the dict, and no node without one at or below it.
    """

    __slots__ = ("_root", "_values", "count")

    def __init__(self) -> None:
        self._values: dict[str, tuple[K, V] | dict[K, V]] = {}
        self._root = _Node()
        self.count = 0  # (filter, key) pairs

    def __len__(self) -> int:
        """Return how many (filter, key) pairs are held."""
        return self.count

    def add(self, topic_filter: str, key: K, value: V) -> V | None:
        """Set the value of `key` at a filter; return the one it replaces."""
        values = self._values
        there = values.get(topic_filter)
        if there is None:
            values[topic_filter] = (key, value)
            self.count += 1
            if "+" in topic_filter or "#" in topic_filter:
                self._add_wildcard(topic_filter)
            return None
        if isinstance(there, tuple):
            if there[0] == key:
                values[topic_filter] = (key, value)
                return there[1]
            there = values[topic_filter] = dict((there,))
        previous = there.get(key)
        self.count += key not in there
        there[key] = value
        return previous

    def remove(self, topic_filter: str, key: K) -> V | None:
        """Forget `key` at a filter; return its value, None when there was none."""
        values = self._values
        there = values.get(topic_filter)
        if there is None:
            return None
        if isinstance(there, tuple):
            if there[0] != key:
                return None
            del values[topic_filter]
            if "+" in topic_filter or "#" in topic_filter:
                self._remove_wildcard(topic_filter)
            self.count -= 1
            return there[1]
        if key not in there:
            return None
        value = there.pop(key)
        self.count -= 1
        if len(there) == 1:
            values[topic_filter] = there.popitem()
        return value

    def at(self, topic_filter: str) -> list[tuple[K, V]]:
        """Return the keys and values of one filter."""
        there = self._values.get(topic_filter)
        if there is None:
            return []
        return [there] if isinstance(there, tuple) else list(there.items())

    def match(self, topic_name: str) -> list[tuple[K, V]]:
        """Return the keys and values of every filter that matches."""
        get = self._values.get
        there = get(topic_name)
        found = [] if there is None else [there] if isinstance(there, tuple) else [*there.items()]
        root = self._root
        wild = self._wildcards(topic_name) if root.children or root.plus or root.hash else ()
        for topic_filter in wild:
            there = get(topic_filter)
            if isinstance(there, tuple):
                found.append(there)
            elif there is not None:
                found += there.items()
        return found

    def _wildcards(self, topic_name: str) -> list[str]:
        """Return the filters with a wildcard that match a name."""
        found: list[str] = []
        nodes = [self._root]
        levels = topic_name.split("/")
        if topic_name[0] == "$":  # [MQTT-4.7.2-1] a leading wildcard does not match it
            child = (self._root.children or {}).get(levels[0])
            if child is None:
                return found
            nodes = [child]
            del levels[0]
        for level in levels:
            below: list[_Node] = []
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

    def _add_wildcard(self, topic_filter: str) -> None:
        node = self._root
        for level in topic_filter.split("/"):
            if level == "#":
                node.hash = topic_filter
                return
            if level == "+":
                child = node.plus
                if child is None:
                    child = node.plus = _Node()
            else:
                children = node.children
                if children is None:
                    children = node.children = {}
                child = children.get(level)
                if child is None:
                    child = children[level] = _Node()
            node = child
        node.here = topic_filter

    def _remove_wildcard(self, topic_filter: str) -> None:
        levels = topic_filter.split("/")
        ends_in_hash = levels[-1] == "#"
        if ends_in_hash:
            levels.pop()
        path = [self._root]
        for level in levels:
            children = path[-1].children
            child = path[-1].plus if level == "+" else children[level] if children else None
            assert child is not None
            path.append(child)
        if ends_in_hash:
            path[-1].hash = None
        else:
            path[-1].here = None
        while len(path) > 1:
            node, level = path.pop(), levels.pop()
            if node.hash or node.here or node.plus or node.children:
                return
            above = path[-1]
            if level == "+":
                above.plus = None
            elif above.children is not None:
                del above.children[level]
                if not above.children:
                    above.children = None


class _Folder(Generic[V]):
    """The stored names that have all levels but the last in common, and the folders below."""

    __slots__ = ("below", "path", "values")

    def __init__(self, path: str) -> None:
        self.path = path  # the common levels, each with its `/`
        self.values: dict[str, V] = {}  # by whole name
        self.below: dict[str, _Folder[V]] | None = None  # by level; None when there are none

    def matched_by_wildcard(self) -> list[_Folder[V]]:
        """Return the folders directly below that `+` or `#` matches there."""
        if self.below is None:
            return []
        if self.path:
            return list(self.below.values())
        # [MQTT-4.7.2-1]
        return [folder for level, folder in self.below.items() if level[:1] != "$"]


class NameTree(Generic[V]):
    """Topic names, each with one value, looked up by topic filter: retained messages.

    A name is found by the path before its last level; only filters with wildcards walk the levels.
    Invariants: `_folders` has exactly the folders that can be reached from the root; no folder but
    the root is without both names and folders below it.
    """

    __slots__ = ("_count", "_folders", "_root")

    def __init__(self) -> None:
        self._root: _Folder[V] = _Folder("")
        self._folders = {"": self._root}  # by path
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, topic_name: str) -> bool:
        folder = self._folders.get(topic_name[: topic_name.rfind("/") + 1])
        return folder is not None and topic_name in folder.values

    def __iter__(self) -> Iterator[str]:
        return (name for folder in self._folders.values() for name in folder.values)

    def get(self, topic_name: str) -> V | None:
        """Return the value at a name, or None."""
        folder = self._folders.get(topic_name[: topic_name.rfind("/") + 1])
        return None if folder is None else folder.values.get(topic_name)

    def set(self, topic_name: str, value: V) -> V | None:
        """Set the value at a name; return the one it replaces."""
        path = topic_name[: topic_name.rfind("/") + 1]
        folder = self._folders.get(path)
        if folder is None:
            folder = self._make(path)
        values = folder.values
        previous = values.get(topic_name)
        self._count -= len(values)
        values[topic_name] = value
        self._count += len(values)
        return previous

    def pop(self, topic_name: str) -> V | None:
        """Forget a name; return its value, None when there was none."""
        folder = self._folders.get(topic_name[: topic_name.rfind("/") + 1])
        if folder is None or topic_name not in folder.values:
            return None
        value = folder.values.pop(topic_name)
        self._count -= 1
        self._prune(folder)
        return value

    def _make(self, path: str) -> _Folder[V]:
        """Make the folder of a path, and those above it."""
        folder = self._root
        end = 0
        for level in path[:-1].split("/"):
            end += len(level) + 1
            below = folder.below
            if below is None:
                below = folder.below = {}
            inner = below.get(level)
            if inner is None:
                inner = below[level] = _Folder(path[:end])
                self._folders[inner.path] = inner
            folder = inner
        return folder

    def _prune(self, folder: _Folder[V]) -> None:
        """Drop a folder with nothing in it any more, and those above it that then have nothing."""
        while folder.path and not folder.values and not folder.below:
            del self._folders[folder.path]
            start = folder.path.rfind("/", 0, -1) + 1
            above = self._folders[folder.path[:start]]
            assert above.below is not None
            del above.below[folder.path[start:-1]]
            if not above.below:
                above.below = None
            folder = above

    def may_match(self, topic_filter: str) -> bool:
        """Return False when `match` would find nothing, as far as the first level tells."""
        first, slash, _ = topic_filter.partition("/")
        if first in _WILDCARDS:
            return True
        root = self._root
        return first in root.values or (bool(slash) and first in (root.below or ()))

    def match(self, topic_filter: str) -> list[tuple[str, V]]:
        """Return every (name, value) that a valid filter (without `$share`) matches."""
        return list(zip(*self.select(topic_filter), strict=True))

    def select(self, topic_filter: str) -> tuple[list[str], list[V]]:
        """Return what `match` does as two lists, names and values."""
        names: list[str] = []
        values: list[V] = []
        before, slash, last = topic_filter.rpartition("/")
        folders = [self._root]
        for level in before.split("/") if slash else ():
            if level == "+":
                folders = [inner for folder in folders for inner in folder.matched_by_wildcard()]
            else:
                folders = [f.below[level] for f in folders if f.below and level in f.below]
        if last == "#":
            if slash:  # `a/#` matches `a` too
                names, values = self.select(before)
            folders = _with_all_below(folders)
        for folder in folders:
            here = folder.values
            name = folder.path + last
            if last in _WILDCARDS:
                if not folder.path:  # [MQTT-4.7.2-1]
                    here = {name: value for name, value in here.items() if name[0] != "$"}
                names += here
                values += here.values()
            elif name in here:
                names.append(name)
                values.append(here[name])
        return names, values


def _with_all_below(folders: list[_Folder[V]]) -> list[_Folder[V]]:
    """Return folders and all below them."""
    found = list(folders)
    for folder in found:  # it grows
        if folder.below is not None:
            found += folder.matched_by_wildcard()
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
