"""tidegate status: what a person reads."""

from __future__ import annotations

from typing import Any

import pytest

from tidegate.commands import status
from tidegate.main import main

NODE: dict[str, Any] = {
    "version": "0.1.0",
    "started_us": 1_700_000_000_123_456,
    "uplink": {"since_us": 0, "bytes_out": 12_345, "link": "online", "last_error": "", "drain": {}},
    "ready": True,
    "lag_s": 0.25,
}


def answers(monkeypatch: pytest.MonkeyPatch, ready: dict[str, Any]) -> None:
    found = {"readyz": ready, "status": NODE}
    monkeypatch.setattr(status, "ask_service", lambda _base, name, **_: found[name])


def test_times_sizes_and_flags_are_for_people_and_empty_parts_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, {"ok": True})
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "http://127.0.0.1:8080: ready",
        "version     0.1.0",
        "started_us  2023-11-14T22:13:20.123Z",
        "uplink",
        "  since_us    -",
        "  bytes_out   12,345 B",
        "  link        online",
        "ready       yes",
        "lag_s       0.2",
    ]


def test_a_service_that_is_not_ready_says_why_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, {"ok": False, "reasons": ["stream", "sinks"]})
    assert main(["status", "--url", "http://h:1/"]) == 1
    assert capsys.readouterr().out.startswith("http://h:1: NOT READY: stream; sinks\n")


# ---- partitions ----------------------------------------------------------------------------------


def partitions(monkeypatch: pytest.MonkeyPatch, *found: dict[str, Any]) -> None:
    monkeypatch.setattr(status, "ask_node", lambda _base, _path: {"partitions": list(found)})


def partition(number: int, owners: dict[str, str], **keys: Any) -> dict[str, Any]:
    return {
        "partition": number, "last_position": 40, "cursors": {}, "lag_entries": {},
        "owners": owners, "tokens": {}, **keys,
    }  # fmt: skip


def test_partitions_by_node_then_each_with_token_and_lag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node knows the lag of its own partitions; "-" is what another has."""
    mine = {
        "cursors": {"storage": 38, "latest": 40},
        "lag_entries": {"storage": 2, "latest": 0},
        "tokens": {"storage": 17},
    }
    partitions(
        monkeypatch,
        partition(3, {"storage": "node-1", "live": "node-2"}, **mine),
        partition(12, {"storage": "node-2", "live": "node-2"}, tokens={"storage": 5}),
    )
    assert main(["status", "--partitions"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "node-1: storage 1",
        "node-2: live 2, storage 1",
        " 3  end 40  latest: lag 0  live: node-2 lag -  storage: node-1 lag 2 token 17",
        "12  end 40  live: node-2 lag -  storage: node-2 lag - token 5",
    ]


def test_partitions_of_a_node_that_is_alone_and_of_one_that_took_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    partitions(monkeypatch, partition(3, {}, cursors={"live": 40}, lag_entries={"live": 0}))
    assert main(["status", "--partitions"]) == 0
    assert capsys.readouterr().out.splitlines() == [" 3  end 40  live: lag 0"]
    partitions(monkeypatch)
    assert main(["status", "--partitions"]) == 0
    assert capsys.readouterr().out == "no partition was ever written\n"
    assert main(["status", "--partitions", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
