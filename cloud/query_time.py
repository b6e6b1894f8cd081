"""Times and durations as people write them: `-2h`, `now`, `2026-11-21T08:00`, `5m`."""

from __future__ import annotations

import re
from datetime import UTC, datetime

__all__ = ["iso", "parse_duration", "parse_time"]

_UNITS_US = {
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_EPOCH = re.compile(r"\d{1,19}(?:\.\d+)?")
_DURATION_US_MAX = 1 << 61


def parse_duration(text: str) -> int:
    """Return a duration such as `90s`, `1h30m` or `500ms` in microseconds.

    Raises:
        ValueError: it is none, or not over 0; one line.
    """
    at, total = 0, 0.0
    while at < len(text):
        match = _PART.match(text, at)
        if match is None:
            break
        total += float(match[1]) * _UNITS_US[match[2]]
        at = match.end()
    if at < len(text) or not 1 <= total < _DURATION_US_MAX:
        raise ValueError(f"'{text}' is no duration; write 90s, 5m or 1h30m (ms, s, m, h, d, w)")
    return round(total)


def parse_time(text: str, now_us: int) -> int:
    """Return a moment in microseconds since 1970 UTC.

    `now`; `-2h` or `now-2h`, that long ago; an ISO 8601 date or time, UTC unless it says
    otherwise; or a number since 1970, taken for seconds, milliseconds or microseconds by its size.

    Args:
        text: What was written.
        now_us: What `now` is.

    Raises:
        ValueError: it is no moment; one line.
    """
    given = text.strip()
    ago = given.removeprefix("now")
    if not ago and given:
        return now_us
    if ago.startswith("-"):
        return now_us - parse_duration(ago[1:])
    if _EPOCH.fullmatch(given):
        return _from_epoch(float(given) if "." in given else int(given))
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise ValueError(
            f"'{text}' is no time; write now, -2h, 2026-11-21T08:00 or seconds since 1970"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def iso(time_us: int) -> str:
    """Return a moment as ISO 8601 in UTC to the millisecond; as a number if no date has it."""
    try:
        moment = datetime.fromtimestamp(time_us // 1_000_000, UTC)
    except (ValueError, OverflowError, OSError):
        return str(time_us)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_us % 1_000_000 // 1_000:03}Z"


def _from_epoch(number: float) -> int:
    if number < 100_000_000_000:  # until the year 5138
        return round(number * 1_000_000)
    return round(number * 1_000) if number < 100_000_000_000_000 else round(number)
