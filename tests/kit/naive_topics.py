"""Which topic names a filter matches, as the specification has it and in no hurry."""

from __future__ import annotations

__all__ = ["naively_matches"]


def naively_matches(topic_filter: str, topic_name: str) -> bool:
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
