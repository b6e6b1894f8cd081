"""Topic filters and topic names, many of them, looked up by one another.

MQTT 5.0 section 4.7. `FilterTable` finds the filters that match a name (routing); `NameTree` finds
the stored names that a filter matches (retained messages). Filters given to either are valid and
without `$share/{name}/`: see `mqtt.topics.topic_filter_fault` and `split_shared`. What many filters
of one SUBSCRIBE need is in C where that was built (`mqtt.filter_calls`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final, Generic, TypeVar

from mqtt.filter_calls import native

__all__ = ["FilterTable", "NameTree"]

K = TypeVar("K")
V = TypeVar("V")

_WILDCARDS: Final = ("+", "#")


class _Node:
    """Filters with a wildcard that have their first levels in common; None where there is none.

    A filter that is alone on its way down stands where its node would be.
    """

    __slots__ = ("children", "hash", "here", "plus")

    def __init__(self) -> None:
        self.children: dict[str, _Node | str] | None = None  # by literal level
        self.plus: _Node | str | None = None  # below `+`
        self.hash: str | None = None  # the filter that ends in `#` here
        self.here: str | None = None  # the filter that ends here


class FilterTable(Generic[K, V]):
    """Topic filters, each with values by key (a subscriber -> its options).

    All of them are in one dict, so that finding one without a wildcard costs the same however many
    there are. Those with a wildcard are in a tree of their levels as well, which says what matches;
    it is no deeper than they have levels in common.
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

    def add_all(self, key: K, topic_filters: list[str], values: Sequence[V]) -> None:
        """Set the value of `key` at each filter, in their order."""
        if native is not None:
            self.count += native.add_filters(
                self._values, self._root, key, topic_filters, list(values)
            )
            return
        for topic_filter, value in zip(topic_filters, values, strict=True):
            self.add(topic_filter, key, value)

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
        for depth, level in enumerate(levels, 1):
            below: list[_Node | str] = []
            for node in nodes:
                if node.children is not None:
                    child = node.children.get(level)
                    if child is not None:
                        below.append(child)
                if depth == 1 and level[:1] == "$":  # [MQTT-4.7.2-1]
                    continue
                if node.hash is not None:
                    found.append(node.hash)
                if node.plus is not None:
                    below.append(node.plus)
            nodes = [each for each in below if isinstance(each, _Node)]
            if len(nodes) < len(below):
                alone = [each for each in below if isinstance(each, str)]
                found += [each for each in alone if _ends_alike(each, levels, depth)]
            if not nodes:
                return found
        for node in nodes:
            if node.here is not None:
                found.append(node.here)
            if node.hash is not None:  # `a/#` matches `a` too
                found.append(node.hash)
        return found

    def _add_wildcard(self, topic_filter: str) -> None:
        node = self._root
        for depth, level in enumerate(topic_filter.split("/"), 1):
            if level == "#":
                node.hash = topic_filter
                return
            children = node.children
            if level == "+":
                child = node.plus
            elif children is None:
                children = node.children = {}
                child = None
            else:
                child = children.get(level)
            if isinstance(child, _Node):
                node = child
                continue
            below = topic_filter if child is None else _node_of(child, depth)
            if level == "+":
                node.plus = below
            elif children is not None:
                children[level] = below
            if isinstance(below, str):
                return
            node = below
        node.here = topic_filter

    def _remove_wildcard(self, topic_filter: str) -> None:
        node = self._root
        path = [node]
        levels = topic_filter.split("/")
        for level in levels:
            if level == "#":
                node.hash = None
                break
            child = node.plus if level == "+" else (node.children or {})[level]
            if not isinstance(child, _Node):
                _drop(node, level)
                break
            node = child
            path.append(node)
        else:
            node.here = None
        while len(path) > 1:
            node = path.pop()
            if node.hash or node.here or node.plus or node.children:
                return
            _drop(path[-1], levels[len(path) - 1])


def _node_of(topic_filter: str, depth: int) -> _Node:
    """Return a node below `depth` levels that has one filter, which was alone until now."""
    node = _Node()
    levels = topic_filter.split("/", depth + 1)
    if len(levels) == depth:
        node.here = topic_filter
    elif levels[depth] == "#":
        node.hash = topic_filter
    elif levels[depth] == "+":
        node.plus = topic_filter
    else:
        node.children = {levels[depth]: topic_filter}
    return node


def _drop(node: _Node, level: str) -> None:
    """Take out what a node has below a level."""
    if level == "+":
        node.plus = None
    elif node.children is not None:
        del node.children[level]
        if not node.children:
            node.children = None


def _ends_alike(topic_filter: str, levels: list[str], depth: int) -> bool:
    """Return True when a filter matches a name, as its first `depth` levels do."""
    wanted = topic_filter.split("/")
    count = len(wanted)
    if wanted[-1] == "#":
        count -= 1
        if len(levels) < count:  # `a/#` matches `a` too
            return False
    elif len(levels) != count:
        return False
    for at in range(depth, count):
        want = wanted[at]
        if want not in ("+", levels[at]):
            return False
    return True


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

    __slots__ = ("_folders", "_root", "count")

    def __init__(self) -> None:
        self._root: _Folder[V] = _Folder("")
        self._folders = {"": self._root}  # by path
        self.count = 0  # names

    def __len__(self) -> int:
        return self.count

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
        values[topic_name] = value
        if previous is None:
            self.count += 1
        return previous

    def pop(self, topic_name: str) -> V | None:
        """Forget a name; return its value, None when there was none."""
        folder = self._folders.get(topic_name[: topic_name.rfind("/") + 1])
        if folder is None or topic_name not in folder.values:
            return None
        value = folder.values.pop(topic_name)
        self.count -= 1
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

    def may_match(self, topic_filters: list[str]) -> bool:
        """Return False when `match` would find nothing for any, as far as first levels tell."""
        if native is not None:
            firsts = native.first_levels(topic_filters)
        else:
            firsts = {each.partition("/")[0] for each in topic_filters}
        values, below = self._root.values, self._root.below or {}
        if any(first in values or first in below for first in firsts):
            return True
        return not firsts.isdisjoint(_WILDCARDS) and any(
            level[:1] != "$"
            for level in chain(values, below)  # [MQTT-4.7.2-1]
        )

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
