"""`tidegate whatif`: units, figures given by hand, and what it says when it cannot say."""

from __future__ import annotations

import json

import pytest

from tidegate.main import main

GIVEN = ["--rate", "200", "--room", "4GB", "--link-bytes", "6", "--journal-bytes", "200"]


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    code = main(["whatif", *arguments, *GIVEN, "--json"])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return code, found


def test_eight_hours_over_a_slow_link(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = asked(capsys, "--outage", "8h", "--link", "64kbps")
    assert code == 0
    assert found["backlog_readings"] == 5_760_000
    assert found["journal_bytes"] == 1_152_000_000
    assert found["drain_bytes"] == 34_560_000
    assert found["drain_s"] == pytest.approx(34_560_000 / (8000 - 1200))
    assert found["full_s"] is None


@pytest.mark.parametrize("link", ["64kbps", "64 kbit/s", "8kB/s", "0.064Mbps", "8000bytes/s"])
def test_speeds_as_people_write_them(capsys: pytest.CaptureFixture[str], link: str) -> None:
    found = asked(capsys, "--outage", "480m", "--link", link)[1]
    assert found["drain_s"] == pytest.approx(34_560_000 / 6800)


def test_a_journal_that_would_be_full_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = asked(capsys, "--outage", "3d", "--link", "64kbps")
    assert code == 1
    assert found["full_s"] == 100_000
    assert found["lost_or_refused"] == 200 * (3 * 86_400 - 100_000)


def test_a_budget_that_a_day_fits_in_does_not_slow_the_drain_and_a_smaller_one_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outage = ("--outage", "24h", "--link", "1Mbps")  # 103.7 MB, and so much a day of live readings
    free = asked(capsys, *outage)[1]
    fits = asked(capsys, *outage, "--budget", "250MB")[1]
    assert fits == free
    assert asked(capsys, *outage, "--budget", "150MB")[1]["live_waits"], "for the day's end"
    bound = asked(capsys, *outage, "--budget", "104MB")[1]
    assert isinstance(bound["drain_s"], float)
    assert isinstance(free["drain_s"], float)
    assert bound["drain_s"] > 2 * 86_400
    code, never = asked(capsys, *outage, "--budget", "100MB")
    assert (code, never["drain_s"]) == (1, None)


def test_people_read_it_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["whatif", "--outage", "8h", "--link", "64kbps", *GIVEN]) == 0
    text = capsys.readouterr().out
    assert "1.2 GB for 5,760,000 readings" in text
    assert "34.6 MB at 64 kbit/s: 85 min" in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--outage", "soon", "--link", "64kbps"], "--outage"),
        (["--outage", "8h", "--link", "fast"], "--link"),
        (["--outage", "8h", "--link", "0kbps"], "--link"),
        (["--outage", "8h", "--link", "1Mbps", "--budget", "much"], "--budget"),
        (["--outage", "-8h", "--link", "1Mbps"], "--outage"),
        (["--outage", "8h", "--link", "64"], "--link"),
        (["--outage", "8h", "--link", "1Mbps", "--url", "gw-3"], "--url"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    assert main(["whatif", *arguments, *GIVEN]) == 2
    assert word in capsys.readouterr().err


def test_without_a_gateway_and_without_figures_it_says_what_to_give(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["whatif", "--outage", "8h", "--url", "http://127.0.0.1:1"]) == 1
    assert "--rate, --link, --room and --link-bytes" in capsys.readouterr().err


def test_a_gateway_that_takes_nothing_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    figures = ["--rate", "0", *GIVEN[2:]]
    assert main(["whatif", "--outage", "8h", "--link", "64kbps", *figures]) == 0
    assert "captured nothing lately" in capsys.readouterr().out
