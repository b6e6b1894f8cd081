"""What a gateway expects, from what it has seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from bridge.devices import DeviceIds
from edge.contract import Lane
from edge.forecast import Forecaster
from edge.uplink import Uplink
from edge.uplink_config import BudgetConfig, UplinkConfig
from runtime.clock import ManualClock
from tests.kit.journal_files import fill, journal_at, journal_config


async def test_rates_and_room_are_forecast_from_what_comes_in(tmp_path: Path) -> None:
    clock = ManualClock()
    config = UplinkConfig()
    async with journal_at(tmp_path, journal_config(file_bytes_max=64 << 20), clock) as journal:
        uplink = Uplink(config, "gw", journal, DeviceIds(), clock)
        forecaster = Forecaster(journal, uplink, config, clock)
        quiet = forecaster.forecast()
        assert (quiet.readings_s, quiet.full_s, quiet.drain_s) == (0.0, None, 0.0)
        for _ in range(20):
            await fill(journal, 10, readings=5, size=200)
            clock.advance(5)
            forecaster.look()
        await journal.maintain()
        found = forecaster.forecast()
    assert found.readings_s == pytest.approx(10.0, rel=0.01)
    assert found.drain_readings == 1000
    assert 200 < found.journal_reading_bytes < 300
    assert found.full_s == pytest.approx(
        found.room_bytes / (10 * found.journal_reading_bytes), rel=0.02
    )
    assert found.drain_s is None, "the link has not been seen yet"
    assert found.drain_bytes > 0
    assert found.waits_until_us == 0


async def test_what_is_gone_up_makes_no_reading_look_larger(tmp_path: Path) -> None:
    """Rows whose readings the cloud has are deleted a little later: their bytes are nobody's."""
    clock, config = ManualClock(), UplinkConfig()
    async with journal_at(tmp_path, clock=clock) as journal:
        uplink = Uplink(config, "gw", journal, DeviceIds(), clock)
        forecaster = Forecaster(journal, uplink, config, clock)
        await fill(journal, 100, readings=5, size=200)
        before = forecaster.forecast().journal_reading_bytes
        await journal.trim(Lane.LIVE, 490)
        assert journal.stats().lanes[Lane.LIVE].readings == 10
        assert forecaster.forecast().journal_reading_bytes == before
    async with journal_at(tmp_path, clock=clock) as journal:  # before it has taken any itself
        uplink = Uplink(config, "gw", journal, DeviceIds(), clock)
        found = Forecaster(journal, uplink, config, clock).forecast()
        assert found.journal_reading_bytes == pytest.approx(before, rel=0.01)


async def test_a_rate_that_changes_is_followed_within_minutes(tmp_path: Path) -> None:
    clock = ManualClock()
    config = UplinkConfig()
    async with journal_at(tmp_path, clock=clock) as journal:
        uplink = Uplink(config, "gw", journal, DeviceIds(), clock)
        forecaster = Forecaster(journal, uplink, config, clock)
        await fill(journal, 50)
        clock.advance(5)
        forecaster.look()
        assert forecaster.forecast().readings_s == pytest.approx(30.0)
        for _ in range(120):
            clock.advance(5)
            forecaster.look()
        assert forecaster.forecast().readings_s < 0.5


async def test_a_budget_of_a_day_or_a_month_is_in_the_forecast(tmp_path: Path) -> None:
    clock = ManualClock()
    budgets = {10_000: BudgetConfig(day_bytes=10_000, month_bytes=31 * 90_000),
               9_000: BudgetConfig(month_bytes=31 * 9_000), 0: BudgetConfig()}  # fmt: skip
    async with journal_at(tmp_path, clock=clock) as journal:
        for day_bytes, budget in budgets.items():
            config = UplinkConfig(budget=budget)
            uplink = Uplink(config, "gw", journal, DeviceIds(), clock)
            found = Forecaster(journal, uplink, config, clock).forecast()
            assert found.day_bytes == day_bytes


async def test_few_readings_that_wait_do_not_change_what_one_takes_in_the_journal(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    config = UplinkConfig()
    async with journal_at(tmp_path, clock=clock) as journal:
        uplink = Uplink(config, "gw", journal, DeviceIds(), clock)
        forecaster = Forecaster(journal, uplink, config, clock)
        await fill(journal, 5, readings=50, size=200)
        stats = journal.stats()
        live = replace(stats.lanes[Lane.LIVE], readings=1)  # its row is not written anew
        few = replace(stats, lanes={**stats.lanes, Lane.LIVE: live})
        with patch.object(journal, "stats", return_value=few):
            found = forecaster.forecast()
    assert found.drain_readings == 1
    assert 200 < found.journal_reading_bytes < 300


async def test_under_a_budget_a_backlog_that_fits_in_what_is_left_drains_at_the_links_speed(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    config = UplinkConfig(budget=BudgetConfig(day_bytes=1_000_000))
    async with journal_at(tmp_path, clock=clock) as journal:
        uplink = Uplink(config, "gw", journal, DeviceIds(), clock)
        await fill(journal, 20, readings=50, size=200)
        forecaster = Forecaster(journal, uplink, config, clock)
        with patch.object(Uplink, "rate_bytes_s", 8000.0):
            found = forecaster.forecast()
    assert found.drain_s == pytest.approx(found.drain_bytes / 8000)
