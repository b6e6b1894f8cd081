"""The lines of `tidegate status` that are read first."""

from __future__ import annotations

from typing import Any

from tidegate.status_summary import summary

NOW_US = 1_700_000_600_000_000
GATEWAY: dict[str, Any] = {
    "gateway": "gw-1",
    "capture": {"readings": 1_204, "refused_full": 0, "refused_broken": 0},
    "journal": {
        "disk_free_bytes": 57_800_000_000, "evicted": {}, "dead_letters": 0, "damaged_rows": 0,
    },
    "uplink": {
        "link": "online", "endpoint": "mqtt://c:2883", "since_us": NOW_US - 600_000_000,
        "last_error": "mqtt://c:2883: Connection refused", "backlog_readings": 0,
        "oldest_age_s": 0.0, "drain_s": None, "waits_for": "",
    },
    "forecast": {"readings_s": 10.2, "full_s": 432_000.0, "room_bytes": 4_000_000_000},
}  # fmt: skip
SINK = {"lag_s": 0.5, "lag_readings": 3, "held_up_by": "", "dead_letters": 0}
NODE: dict[str, Any] = {
    "node": "one",
    "readings_in": 9_000,
    "readings_stored": 8_997,
    "gateways": {"gw-1": {"connected": True, "backlog_readings": 0}},
    "sinks": {"storage": SINK, "live": SINK},
    "alerts": {"firing": 1, "pending": 2},
    "ledger": {"balanced": True},
}


def changed(figures: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """Return figures with some of a part's changed."""
    return figures | {
        name: figures.get(name, {}) | part if isinstance(part, dict) else part
        for name, part in parts.items()
    }


def test_a_gateway_that_is_well() -> None:
    assert summary(GATEWAY, NOW_US) == [
        "link     online for 10 min, to mqtt://c:2883",
        "taken    1,204 readings since the start, 10.2/s now",
        "waiting  nothing: the cloud has all",
        "journal  takes 4.0 GB more, which last 5.0 days without a link; the disk has 57.8 GB free",
    ]


def test_a_gateway_without_a_link_says_why_and_how_much_waits() -> None:
    uplink = {"link": "offline", "backlog_readings": 1_204, "oldest_age_s": 600.0, "drain_s": 9.0}
    lines = summary(changed(GATEWAY, uplink=uplink), NOW_US)
    assert lines[0] == "link     offline for 10 min: mqtt://c:2883: Connection refused"
    assert lines[2] == "waiting  1,204 readings, the oldest for 10 min"
    draining = uplink | {"link": "online", "drain_s": 40.0}
    assert summary(changed(GATEWAY, uplink=draining), NOW_US)[2].endswith("; gone in 40 s")
    budget = uplink | {"link": "parked", "waits_for": "the day's bytes", "last_error": ""}
    (line, *_) = summary(changed(GATEWAY, uplink=budget), NOW_US)
    assert line == "link     parked for 10 min; waits for the day's bytes"
    off = summary(changed(GATEWAY, uplink={"link": "off"}), NOW_US)
    assert off[0] == "link     off: no uplink.endpoints are configured, readings stay here"


def test_every_loss_of_a_gateway_has_a_line() -> None:
    lines = summary(
        changed(
            GATEWAY,
            capture={"refused_full": 3, "refused_broken": 2},
            journal={"evicted": {"evicted-bytes": 40}, "dead_letters": 5, "damaged_rows": 1},
        ),
        NOW_US,
    )
    assert lines[4:] == [
        "trouble  3 times publishes were refused: the journal was full",
        "trouble  2 times the journal could not be written; see the log",
        "trouble  40 readings given up: evicted-bytes",
        "trouble  5 dead letters: tidegate deadletter list",
        "trouble  1 rows of the journal could not be read; see the log",
    ]


def test_a_gateway_whose_card_wears_faster_than_it_may_says_so() -> None:
    over = changed(GATEWAY, journal={"over_write_budget": True, "written_bytes_s": 10_000.0})
    (line,) = summary(over, NOW_US)[4:]
    assert line.startswith("trouble  864.0 MB a day are written, more than journal.day_write_bytes")


def test_a_node_that_is_well() -> None:
    assert summary(NODE, NOW_US) == [
        "readings  9,000 in, 8,997 stored here since the start",
        "gateways  1 of 1 connected",
        "sinks     all keep up",
        "alerts    1 firing, 2 pending",
        "ledger    balances",
    ]


def test_a_node_in_trouble() -> None:
    away = {f"gw-{n}": {"connected": False, "backlog_readings": 10} for n in range(2, 7)}
    slow = SINK | {"lag_s": 700.0, "lag_readings": 5_000, "held_up_by": "no database"}
    lines = summary(
        changed(
            NODE,
            gateways=away,
            sinks={"storage": slow, "live": SINK | {"dead_letters": 2}},
            ledger={"balanced": False},
            cluster={"without_quorum": ["RAW0", "RAW1"], "replicas_behind": [], "slow": ["RAW2"]},
            silent_nodes=["two"],
        ),
        NOW_US,
    )
    behind = "storage is 5,000 readings behind, the oldest from 12 min ago"
    gone = "away: gw-2, gw-3, gw-4 and 2 more"
    assert [line.split(maxsplit=1) for line in lines[1:]] == [
        ["gateways", f"1 of 6 connected, {gone}; 50 readings wait at them"],
        ["sinks", f"{behind}, held up by: no database"],
        ["alerts", "1 firing, 2 pending"],
        ["ledger", "does NOT balance: tidegate audit"],
        ["trouble", "no quorum, nothing is acknowledged: RAW0, RAW1"],
        ["trouble", "appends are slow: RAW2"],
        ["trouble", "two does not answer: gateways that it has are shown as away"],
        ["trouble", "sink live: 2 dead letters: tidegate deadletter list"],
    ]  # fmt: skip


def test_a_whole_site_is_both() -> None:
    words = [line.split()[0] for line in summary(NODE | {"gateway": GATEWAY}, NOW_US)]
    assert words[:5] == ["link", "taken", "waiting", "journal", "readings"]


def test_what_is_neither_says_nothing() -> None:
    assert summary({"version": "0.1.0", "uplink": {"link": "online"}}, NOW_US) == []
