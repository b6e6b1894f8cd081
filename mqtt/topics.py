"""Topic names and topic filters: what is valid, what matches what.

MQTT 5.0 sections 4.7 and 4.8.2; `mqtt.topic_tables` looks both ways among many.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = [
    "TOPIC_BYTES_MAX",
    "TOPIC_LEVELS_MAX",
    "TopicFault",
    "is_plain_filter",
    "matches",
    "split_shared",
    "topic_filter_fault",
    "topic_name_fault",
]

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
