"""Bytes written a reading, and a commit window that keeps them to a day's pace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from edge.config import JournalConfig
from edge.wear import Wear, written_bytes
from runtime.clock import ManualClock

CONFIG = JournalConfig(commit_window_ms=2, commit_window_max_ms=500)


@dataclass
class Card:
    """A gateway that commits whenever its window allows, each commit a page and its readings."""

    config: JournalConfig
    readings_s: float = 100.0
    clock: ManualClock = field(default_factory=ManualClock)
    window_s: float = 0.0
    bytes: float = 0.0
    readings: float = 0.0
    changes: int = 0

    def __post_init__(self) -> None:
        self.window_s = self.config.commit_window_ms / 1000
        self.wear = Wear(
            self.config, self.clock, self.set_window_s, lambda: int(self.readings),
            lambda: int(self.bytes),
        )  # fmt: skip

    def set_window_s(self, window_s: float) -> None:
        self.window_s = window_s
        self.changes += 1

    def run(self, seconds: int) -> None:
        for _ in range(seconds // 2):
            commits = min(2 * self.readings_s, 2 / max(self.window_s, 0.0001))
            self.bytes += commits * 8192 + 2 * self.readings_s * 150
            self.readings += 2 * self.readings_s
            self.clock.advance(2)
            self.wear.look()


def test_without_a_budget_the_window_stays_and_wear_is_told() -> None:
    card = Card(CONFIG)
    card.run(600)
    assert card.changes == 0
    assert card.wear.window_s == 0.002
    assert 8000 < card.wear.bytes_a_reading < 8500
    assert card.wear.written == int(card.bytes)
    assert not card.wear.over_budget


def test_under_a_budget_the_window_widens_until_the_pace_is_kept() -> None:
    pace = 100_000.0
    card = Card(replace(CONFIG, day_write_bytes=int(pace * 86_400)))
    card.run(600)
    before = card.bytes
    card.run(3600)
    assert (card.bytes - before) / 3600 <= pace * 1.1
    assert (card.bytes - before) / 3600 >= pace * 0.6, "and no wider than that"
    assert card.wear.bytes_a_reading < 1500
    assert not card.wear.over_budget


def test_the_window_is_never_wider_than_its_limit() -> None:
    card = Card(replace(CONFIG, day_write_bytes=1))
    assert not card.wear.over_budget
    card.run(600)
    assert card.window_s == 0.5
    assert card.wear.over_budget, "and that is told"
    card.readings_s = 0
    card.run(600)
    assert not card.wear.over_budget


def test_when_little_is_written_the_window_is_as_configured_again() -> None:
    card = Card(replace(CONFIG, day_write_bytes=100_000 * 86_400))
    card.run(600)
    assert card.window_s > 0.01
    card.readings_s = 0.5
    card.run(1200)
    assert card.window_s == 0.002


def test_the_kernel_counts_what_is_written(tmp_path: Path) -> None:
    before = written_bytes()
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x" * 1_000_000)
    grown = written_bytes() - before
    assert grown in (0, *range(1_000_000, 2_000_000)), "0 on a file system in memory"
