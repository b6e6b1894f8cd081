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
