"""What an outage would do to a gateway: does the journal last, and how long is the drain.

    tidegate whatif --outage 8h --link 64kbps                    of the gateway on this machine
    tidegate whatif --outage 8h --link 64kbps --url http://127.0.0.1:8080     of `tidegate up`
    tidegate whatif --outage 3d --link 1Mbps --url http://gw-3:8081
    tidegate whatif --outage 8h --link 64kbps --rate 200 --room 4GB --link-bytes 6   of none yet

Rates and sizes are those the gateway has measured, unless they are given. Exit code 1 when the
journal would be full before the link is back, or the backlog would never drain.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from typing import Any

from bridge.forecast import Allowance, Traffic, WhatIf, what_if
from runtime.config import ConfigError
from runtime.service import StartError
from tidegate.node_api import ask_service
from tidegate.words import size, span

__all__ = ["add_arguments", "run"]

DEFAULT_URL = "http://127.0.0.1:8081"
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)?")
_SPAN_S = {None: 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_LINK = re.compile(r"(\d+(?:\.\d+)?)\s*(k|m|g)?(bps|bit/s|b/s|bytes/s)", re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(k|m|g|t)?i?b?", re.IGNORECASE)
_DAY_S = 86_400.0
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--outage", required=True, metavar="TIME", help="such as 90s, 45m, 8h, 3d")
    parser.add_argument(
        "--link", metavar="SPEED", help="such as 64kbps, 2Mbps, 8kB/s; as measured if not given"
    )
    parser.add_argument("--url", help=f"HTTP address of the gateway [{DEFAULT_URL}]")
    parser.add_argument("--rate", type=float, metavar="N", help="readings captured a second")
    parser.add_argument("--room", metavar="SIZE", help="what the journal takes, such as 4GB")
    parser.add_argument("--journal-bytes", type=float, metavar="N", help="of a reading on disk")
    parser.add_argument("--link-bytes", type=float, metavar="N", help="of a reading on the link")
    parser.add_argument("--budget", metavar="SIZE", help="bytes a day the link may carry")
    parser.add_argument("--json", action="store_true", help="the figures, as JSON")


def run(options: argparse.Namespace) -> int:
    """Print what would happen; 0 when nothing is lost and it drains."""
    outage_s = _span_s(options.outage)
    measured = _measured(options)
    link = _average_link(options, measured)
    rate = _given(options.rate, measured, "readings_s", "--rate")
    traffic = Traffic(
        rate,
        _given(options.journal_bytes, measured, "journal_reading_bytes", "--journal-bytes", 200.0),
        _given(options.link_bytes, measured, "link_reading_bytes", "--link-bytes"),
        0.0 if options.link_bytes is not None else measured.get("backlog_reading_bytes", 0.0),
    )
    room = _size("--room", options.room) if options.room else measured.get("room_bytes")
    if room is None:
        raise ConfigError("--room: needed when no gateway is asked")
    found = what_if(
        outage_s,
        traffic,
        link,
        room_bytes=room,
        backlog_share=measured.get("backlog_share", 0.3),
        waiting=measured.get("drain_readings", 0),
        allowances=_allowances(options, measured),
    )
    if options.json:
        print(json.dumps(_as_json(found), indent=2))
    else:
        print("\n".join(_lines(found, outage_s, traffic, link)))
    return 0 if found.full_s is None and found.drain.seconds is not None else 1


def _average_link(options: argparse.Namespace, measured: dict[str, Any]) -> float:
    """Return what the link carries a second: as given or as seen, within the budget's limits."""
    if not options.link:
        seen = measured.get("link_bytes_s")
        if not seen:
            raise ConfigError("--link: this gateway has not seen its link's speed yet; give it")
        return float(seen)
    link = _link_bytes_s(options.link)
    limit = measured.get("rate_limit_bytes_s") or link
    return min(link, float(limit)) * float(measured.get("open_share", 1.0))


def _allowances(options: argparse.Namespace, measured: dict[str, Any]) -> list[Allowance]:
    """Return what a day's budget leaves: all of it, as the link comes back on another day."""
    day = _size("--budget", options.budget) if options.budget else measured.get("day_bytes")
    if not day:
        return []
    allowed = float(day) * (1.0 - measured.get("urgent_share", 0.0))
    return [Allowance(allowed, allowed, _DAY_S, _DAY_S)]


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the gateway forecasts; nothing when everything is given by flags."""
    given = (options.rate, options.link, options.room, options.link_bytes)
    if options.url is None and None not in given:
        return {}
    url = options.url or DEFAULT_URL
    try:
        status = ask_service(url, "status")
    except StartError as error:
        hint = "or give --rate, --link, --room and --link-bytes"
        raise StartError(f"{error} {hint}") from None
    site = status.get("gateway")  # of `tidegate up`
    forecast = (site if isinstance(site, dict) else status).get("forecast")
    if not isinstance(forecast, dict):
        raise StartError(f"{url}: that is no gateway's status")
    return forecast


def _given(
    value: float | None,
    measured: dict[str, Any],
    name: str,
    flag: str,
    default: float | None = None,
) -> float:
    found = value if value is not None else measured.get(name, default)
    if found is None:
        raise ConfigError(f"{flag}: needed when no gateway is asked")
    if found < 0 or not math.isfinite(found):
        raise ConfigError(f"{flag}: expected a number of at least 0, got {found}")
    return float(found)


def _span_s(text: str) -> float:
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"--outage: expected a time such as 90s, 45m, 8h or 3d, got '{text}'")
    return float(found[1]) * _SPAN_S[found[2]]


def _link_bytes_s(text: str) -> float:
    found = _LINK.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"--link: expected a speed such as 64kbps, 2Mbps or 8kB/s, got '{text}'")
    rate = float(found[1]) * _SCALE[(found[2] or "").lower()]
    return rate if found[3] in ("B/s", "bytes/s") else rate / 8


def _size(flag: str, text: str) -> float:
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{flag}: expected a size such as 500MB or 4GB, got '{text}'")
    return float(found[1]) * _SCALE[(found[2] or "").lower()]


def _as_json(found: WhatIf) -> dict[str, Any]:
    return {
        "backlog_readings": found.readings,
        "journal_bytes": found.journal_bytes,
        "full_s": found.full_s,
        "lost_or_refused": found.lost_or_refused,
        "drain_bytes": found.drain.bytes,
        "drain_s": found.drain.seconds,
        "live_waits": found.drain.live_waits,
    }


def _lines(found: WhatIf, outage_s: float, traffic: Traffic, link: float) -> list[str]:
    lines = [
        f"outage     {span(outage_s)} at {traffic.readings_s:,.1f} readings/s",
        f"journal    {size(found.journal_bytes)} for {found.readings:,} readings",
    ]
    if found.full_s is not None:
        lines.append(
            f"FULL       after {span(found.full_s)}: {found.lost_or_refused:,} readings more are"
            " refused, or drop the oldest, as the lane's policy says"
        )
    speed = f"{link * 8 / 1000:,.0f} kbit/s"
    if found.drain.seconds is None:
        lines.append(
            f"drain      never: live readings alone are more than {speed}, or the budget, carries"
        )
    else:
        lines.append(
            f"drain      {size(found.drain.bytes)} at {speed}: {span(found.drain.seconds)},"
            f" {traffic.drained_bytes:.1f} bytes a reading, live beside it"
        )
    if found.drain.live_waits:
        lines.append(
            "live       waits at times: it needs more than its share of the link, or than a day's"
            " budget leaves it"
        )
    if not traffic.readings_s:
        lines.append("note       it has captured nothing lately, so nothing waits: give --rate N")
    return lines
