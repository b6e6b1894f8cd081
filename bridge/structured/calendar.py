"""Civil time as integers and back: ISO 8601 date-times and elapsed clocks, to the byte.

docs/link-format-structured.md section 5.2. The proleptic Gregorian calendar, years 0000 to 9999,
no leap seconds. Parsing is generous; a caller keeps a value only when showing it gives the same
bytes (`Printer`).
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["DAY_S", "parse_clock", "parse_stamp", "show_clock", "show_stamp"]

DAY_S = 86_400
_ERA_DAYS = 146_097  # days of 400 years
_EPOCH_DAYS = 719_468  # from 0000-03-01 to 1970-01-01
_FIRST_DAY = -719_528  # 0000-01-01
_LAST_DAY = 2_932_896  # 9999-12-31


def _days(year: int, month: int, day: int) -> int:
    """Return days since 1970-01-01, counting years from March so that the leap day is last."""
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * _ERA_DAYS + day_of_era - _EPOCH_DAYS


def _civil(days: int) -> tuple[int, int, int]:
    era, day_of_era = divmod(days + _EPOCH_DAYS, _ERA_DAYS)
    year_of_era = (
        day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096
    ) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month + 2) // 5 + 1
    month += 3 if month < 10 else -9
    return era * 400 + year_of_era + (month <= 2), month, day


def parse_stamp(token: bytes, digits: int) -> int:
    """Return the units of 10^-digits s since 1970 of `YYYY-MM-DD?HH:MM:SS[.fraction]`.

    Raises:
        ValueError: it is not of that form.
    """
    seconds = (
        _parse_date(token[:10])
        + int(token[11:13]) * 3600
        + int(token[14:16]) * 60
        + int(token[17:19])
    )
    fraction = token[20:]
    if len(fraction) > digits:
        raise ValueError("more digits than the column has")
    units = int(fraction.ljust(digits, b"0")) if digits else 0
    scale: int = 10**digits
    return seconds * scale + units


@lru_cache(64)
def _parse_date(token: bytes) -> int:
    """Return the seconds from 1970 to the day of `YYYY-MM-DD`."""
    year, month, day = int(token[0:4]), int(token[5:7]), int(token[8:10])
    if not 1 <= month <= 12:
        raise ValueError("a month that does not exist")
    return _days(year, month, day) * DAY_S


@lru_cache(64)
def _show_date(days: int) -> bytes:
    return b"%04d-%02d-%02d" % _civil(days)


def show_stamp(value: int, digits: int, separator: bytes) -> bytes:
    """Return the date-time of `value`, with exactly `digits` digits of the second.

    Raises:
        ValueError: the year is outside 0000 to 9999.
    """
    seconds, units = divmod(value, 10**digits)
    days, second = divmod(seconds, DAY_S)
    if not _FIRST_DAY <= days <= _LAST_DAY:
        raise ValueError("a year of more than four digits")
    minute, second = divmod(second, 60)
    hour, minute = divmod(minute, 60)
    text = b"%b%b%02d:%02d:%02d" % (_show_date(days), separator, hour, minute, second)
    return text + b".%0*d" % (digits, units) if digits else text


def parse_clock(token: bytes, separator: bytes) -> int:
    """Return the seconds of `[days separator]hours:MM:SS`.

    Raises:
        ValueError: it is not of that form.
    """
    days = 0
    if separator:
        head, found, token = token.partition(separator)
        if not found:
            raise ValueError("no days")
        days = int(head)
    hours, minutes, seconds = token.split(b":")
    return days * DAY_S + int(hours) * 3600 + int(minutes) * 60 + int(seconds)


def show_clock(value: int, width: int, separator: bytes) -> bytes:
    """Return the clock of `value` seconds, hours padded to `width` digits.

    Raises:
        ValueError: the value is negative.
    """
    if value < 0:
        raise ValueError("a clock before zero")
    head = b""
    if separator:
        days, value = divmod(value, DAY_S)
        head = b"%d%b" % (days, separator)
    minute, second = divmod(value, 60)
    hour, minute = divmod(minute, 60)
    return head + b"%0*d:%02d:%02d" % (width, hour, minute, second)
