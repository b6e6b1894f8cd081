"""Which device a publish belongs to: topic patterns, the first match wins (DESIGN section 1).

A pattern is an MQTT topic filter in which parts of levels are placeholders:

    devices/{device}/#                  the second level
    tele/{device}/SENSOR                the second level, nothing below
    site/{site}/line/{line}/#           two placeholders: the id is "site/line" joined by "/"
    zigbee2mqtt/0x{device}              a part of a level

`{device}` anywhere makes the id that text alone; without it every placeholder's text, in order,
is joined by "/". `+` and a final `#` match as in a filter. When no pattern matches, the device is
the MQTT client id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["DEFAULT_PATTERNS", "DeviceIds", "PatternError"]

DEFAULT_PATTERNS = ("devices/{device}/#",)
_CACHE_ENTRIES_MAX = 65536
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class PatternError(ValueError):
    """A device pattern that cannot be used; `str()` says which and why."""


def _level_regex(pattern: str, level: str, names: list[str]) -> str:
    """Return the regex of one level, appending its placeholders to `names`."""
    if level == "+":
        return "[^/]*"
    if "+" in level or "#" in level:
        raise PatternError(f"device pattern {pattern!r}: wildcard inside level {level!r}")
    parts: list[str] = []
    at = 0
    for match in _PLACEHOLDER.finditer(level):
        name = match[1]
        if not _NAME.match(name):
            raise PatternError(f"device pattern {pattern!r}: {match[0]!r} is no placeholder name")
        if name in names:
            raise PatternError(f"device pattern {pattern!r}: {match[0]} appears twice")
        if parts and match.start() == at:
            raise PatternError(f"device pattern {pattern!r}: two placeholders touch")
        names.append(name)
        parts += [re.escape(level[at : match.start()]), f"(?P<{name}>[^/]+)"]
        at = match.end()
    parts.append(re.escape(level[at:]))
    if "{" in _PLACEHOLDER.sub("", level) or "}" in _PLACEHOLDER.sub("", level):
        raise PatternError(f"device pattern {pattern!r}: unbalanced brace in level {level!r}")
    return "".join(parts)


def _compile(pattern: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """Return the regex of a pattern and the group names whose texts make the device id."""
    if not pattern or "\0" in pattern:
        raise PatternError(f"device pattern {pattern!r}: empty or with a NUL")
    levels = pattern.split("/")
    names: list[str] = []
    tail = ""
    if levels[-1] == "#":
        levels.pop()
        tail = "(?:/.*)?" if levels else ".*"
    body = "/".join(_level_regex(pattern, level, names) for level in levels)
    if not names:
        raise PatternError(f"device pattern {pattern!r}: has no placeholder such as {{device}}")
    wanted = ("device",) if "device" in names else tuple(names)
    return re.compile(body + tail, re.DOTALL), wanted


class DeviceIds:
    """Finds device ids by topic, with the answers kept.

    Args:
        patterns: Tried in order.

    Raises:
        PatternError: a pattern that cannot be used.
    """

    __slots__ = ("_cache", "_patterns")

    def __init__(self, patterns: Sequence[str] = DEFAULT_PATTERNS) -> None:
        self._patterns = [_compile(pattern) for pattern in patterns]
        self._cache: dict[str, str | None] = {}

    def device(self, topic_name: str, client_id: str) -> str:
        """Return the id of the device that published to `topic_name` as `client_id`."""
        try:
            found = self._cache[topic_name]
        except KeyError:
            found = self._match(topic_name)
            if len(self._cache) >= _CACHE_ENTRIES_MAX:
                self._cache.clear()
            self._cache[topic_name] = found
        return client_id if found is None else found

    def _match(self, topic_name: str) -> str | None:
        for regex, wanted in self._patterns:
            match = regex.fullmatch(topic_name)
            if match is not None:
                return "/".join(match[name] for name in wanted)
        return None
