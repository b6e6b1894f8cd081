"""What a gateway's or a node's status comes to: a few lines, the first that an operator reads.

Reads the JSON of `/status`; a figure that is not there, of an older release say, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tidegate.words import size, span

__all__ = ["summary"]

_LAG_FINE_S = 10.0  # a sink that is less behind keeps up
_NAMED = 3
_ONLINE = ("online", "waiting")

Figures = Mapping[str, Any]


def summary(status: Figures, now_us: int) -> list[str]:
    """Return the lines, each a word and what it says.

    Args:
        status: What a gateway, a node or `tidegate up` answers at /status.
        now_us: Wall clock, microseconds since 1970.
    """
    said: list[tuple[str, str]] = []
    site = status.get("gateway")  # of `tidegate up`
    gateway = site if isinstance(site, Mapping) else status
    if "journal" in gateway and "uplink" in gateway:
        said += _gateway(gateway, now_us)
    if "sinks" in status:
        said += _node(status)
    width = max((len(word) for word, _ in said), default=0)
    return [f"{word:{width}}  {text}" for word, text in said]


def _part(figures: Figures, name: str) -> Figures:
    found = figures.get(name)
    return found if isinstance(found, Mapping) else {}


# ---- a gateway -----------------------------------------------------------------------------------


def _gateway(status: Figures, now_us: int) -> Iterator[tuple[str, str]]:
    uplink, forecast, journal = (_part(status, n) for n in ("uplink", "forecast", "journal"))
    yield "link", _link(uplink, now_us)
    taken = _part(status, "capture").get("readings", 0)
    rate = forecast.get("readings_s", 0.0)
    yield "taken", f"{taken:,} readings since the start, {rate:,.1f}/s now"
    yield "waiting", _waiting(uplink)
    lasts = forecast.get("full_s")
    yield (
        "journal",
        f"takes {size(forecast.get('room_bytes', 0))} more"
        + (f", which last {span(lasts)} without a link" if lasts else "")
        + f"; the disk has {size(journal.get('disk_free_bytes', 0))} free",
    )
    for text in _losses(status):
        yield "trouble", text


def _link(uplink: Figures, now_us: int) -> str:
    link, since_us = uplink.get("link", ""), uplink.get("since_us", 0)
    if link == "off":
        return "off: no uplink.endpoints are configured, readings stay here"
    text = f"{link} for {span(max(0, now_us - since_us) / 1e6)}" if since_us else str(link)
    if link in _ONLINE:
        text += f", to {uplink.get('endpoint')}"
    if uplink.get("waits_for"):
        text += f"; waits for {uplink['waits_for']}"
    if link not in _ONLINE and uplink.get("last_error"):
        text += f": {uplink['last_error']}"
    return text


def _waiting(uplink: Figures) -> str:
    backlog = uplink.get("backlog_readings", 0)
    if not backlog:
        return "nothing: the cloud has all"
    text = f"{backlog:,} readings, the oldest for {span(uplink.get('oldest_age_s', 0.0))}"
    drain_s = uplink.get("drain_s") if uplink.get("link") in _ONLINE else None
    return text + (f"; gone in {span(drain_s)}" if drain_s else "")


def _losses(status: Figures) -> Iterator[str]:
    """Yield what was refused, given up or set aside."""
    capture, journal = _part(status, "capture"), _part(status, "journal")
    if capture.get("refused_full"):
        yield f"{capture['refused_full']:,} times publishes were refused: the journal was full"
    if capture.get("refused_broken"):
        yield f"{capture['refused_broken']:,} times the journal could not be written; see the log"
    for reason, count in _part(journal, "evicted").items():
        yield f"{count:,} readings given up: {reason}"
    if journal.get("dead_letters"):
        yield f"{journal['dead_letters']:,} dead letters: tidegate deadletter list"
    if journal.get("damaged_rows"):
        yield f"{journal['damaged_rows']:,} rows of the journal could not be read; see the log"
    if journal.get("over_write_budget"):
        day = size(journal.get("written_bytes_s", 0.0) * 86_400)
        yield f"{day} a day are written, more than journal.day_write_bytes: the card wears faster"


# ---- a node --------------------------------------------------------------------------------------


def _node(status: Figures) -> Iterator[tuple[str, str]]:
    if "readings_in" in status:
        stored = status.get("readings_stored", 0)
        yield "readings", f"{status['readings_in']:,} in, {stored:,} stored here since the start"
    yield "gateways", _gateways(_part(status, "gateways"))
    yield "sinks", _sinks(_part(status, "sinks"))
    alerts = _part(status, "alerts")
    if alerts:
        yield "alerts", f"{alerts.get('firing', 0)} firing, {alerts.get('pending', 0)} pending"
    ledger = _part(status, "ledger")
    if ledger:
        balanced = "balances" if ledger.get("balanced") else "does NOT balance"
        yield "ledger", f"{balanced}{'' if ledger.get('balanced') else ': tidegate audit'}"
    cluster = _part(status, "cluster")
    for name, words in (
        ("without_quorum", "no quorum, nothing is acknowledged: "),
        ("replicas_behind", "a server is away or behind: "),
        ("slow", "appends are slow: "),
    ):
        if cluster.get(name):
            yield "trouble", words + ", ".join(cluster[name])
    for node in status.get("silent_nodes", ()):
        yield "trouble", f"{node} does not answer: gateways that it has are shown as away"
    for name, sink in _part(status, "sinks").items():
        if sink.get("dead_letters"):
            count = sink["dead_letters"]
            yield "trouble", f"sink {name}: {count:,} dead letters: tidegate deadletter list"


def _gateways(gateways: Figures) -> str:
    if not gateways:
        return "none was ever here"
    away = [name for name, one in gateways.items() if not one.get("connected")]
    waiting = sum(one.get("backlog_readings", 0) for one in gateways.values())
    text = f"{len(gateways) - len(away)} of {len(gateways)} connected"
    if away:
        more = f" and {len(away) - _NAMED} more" if len(away) > _NAMED else ""
        text += f", away: {', '.join(away[:_NAMED])}{more}"
    return text + (f"; {waiting:,} readings wait at them" if waiting else "")


def _sinks(sinks: Figures) -> str:
    behind = [
        f"{name} is {sink.get('lag_readings', 0):,} readings behind, the oldest from "
        f"{span(sink.get('lag_s', 0.0))} ago"
        + (f", held up by: {sink['held_up_by']}" if sink.get("held_up_by") else "")
        for name, sink in sinks.items()
        if sink.get("held_up_by") or sink.get("lag_s", 0.0) > _LAG_FINE_S
    ]
    return "; ".join(behind) or "all keep up"
