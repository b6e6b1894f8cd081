"""Budgets of a metered link: kept over restarts, and a whole day of one in compressed time."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bridge.devices import DeviceIds
from bridge.envelope import LinkLane
from bridge.link_budget import BudgetLimits
from edge.contract import Lane
from edge.uplink import Uplink
from edge.uplink_budget import BudgetAccount
from edge.uplink_config import BudgetConfig, UplinkConfig
from runtime.clock import ManualClock
from tests.kit.cloud_peer import CloudPeer
from tests.kit.journals import MemoryJournal

MIDNIGHT = 1_700_006_400_000_000  # 2023-11-15 00:00 UTC
INFINITE = '{"bytes_by_day": {"2023-11-15": Infinity}}'
DAY = "2023-11-15"
# no linger: the clock stands still while a test looks
FAST = UplinkConfig(linger_ms=0, backoff_min_s=0.01, backoff_max_s=0.05, historical_s=1e6)


def account(path: Path, limits: BudgetLimits, clock: ManualClock) -> BudgetAccount:
    return BudgetAccount(limits, path, clock)


def kept(path: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads(path.read_text())["bytes_by_day"]
    return found


# ---- the account on disk -------------------------------------------------------------------------


async def test_what_was_spent_is_known_after_a_restart(tmp_path: Path) -> None:
    clock, path = ManualClock(MIDNIGHT), tmp_path / "uplink.json"
    first = account(path, BudgetLimits(day_bytes=1000, urgent_share=0), clock)
    first.count(1200)
    await first.close()
    again = account(path, BudgetLimits(day_bytes=1000, urgent_share=0), clock)
    assert again.budget.day_bytes(clock.wall_us()) == 1200
    assert again.verdict(LinkLane.LIVE, 0).wait_s == 86_400
    assert not list(tmp_path.glob("*.new"))


async def test_after_a_crash_the_account_is_over_by_at_most_its_reserve_and_never_under(
    tmp_path: Path,
) -> None:
    clock, path = ManualClock(MIDNIGHT), tmp_path / "uplink.json"
    rng = random.Random(1)
    running = account(path, BudgetLimits(day_bytes=1_000_000), clock)
    running.budget.count(1, MIDNIGHT + 400 * 86_400_000_000)  # by a clock that was wrong
    spent = 0
    for _ in range(200):
        moved = rng.randrange(5000)
        spent += moved
        running.count(moved)
        if rng.random() < 0.5:  # else a write may be under way
            await running.written()
            assert spent <= kept(path)[DAY] <= spent + 10_000
    await running.written()
    assert spent <= kept(path)[DAY] <= spent + 10_000


async def test_a_file_that_cannot_be_read_counts_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "uplink.json"
    for text in ("", "{", "[]", '{"bytes_by_day": 5}', '{"bytes_by_day": {"x": "y"}}', INFINITE):
        path.write_text(text)
        found = account(path, BudgetLimits(day_bytes=5), ManualClock(MIDNIGHT))
        assert found.budget.days() == {}


async def test_a_disk_that_is_full_does_not_stop_the_link(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "uplink.json"
    one = account(path, BudgetLimits(day_bytes=1_000_000), ManualClock(MIDNIGHT))
    one.count(500_000)
    await one.close()
    assert not path.exists()


async def test_without_limits_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "uplink.json"
    one = account(path, BudgetLimits(), ManualClock(MIDNIGHT))
    one.count(1 << 30)
    await one.close()
    assert not path.exists()


async def test_days_go_by_the_time_that_the_cloud_told(tmp_path: Path) -> None:
    """A gateway without a clock of its own: each boot begins in 1970."""
    limits, path = BudgetLimits(day_bytes=100_000, urgent_share=0), tmp_path / "uplink.json"
    for boot, moved_bytes in enumerate((60_000, 30_000), 1):
        one = account(path, limits, ManualClock(5_000_000, boot_id=f"boot-{boot}"))
        one.count(2_000)  # dialling
        assert one.budget.day_bytes(one.now_us()) == 2_000
        one.told(MIDNIGHT)
        one.count(moved_bytes)
        await one.close()
    assert kept(path) == {DAY: 94_000}
    clock = ManualClock(5_000_000)
    again = account(path, limits, clock)
    again.told(MIDNIGHT)
    again.count(6_000)
    assert again.verdict(LinkLane.LIVE, 0).wait_s == 86_400
    clock.advance(86_400)
    assert again.verdict(LinkLane.LIVE, 0).wait_s == 0
    await again.close()


async def test_a_clock_behind_the_account_is_no_reason_not_to_ask_the_time(tmp_path: Path) -> None:
    limits, path = BudgetLimits(day_bytes=1_000), tmp_path / "uplink.json"
    path.write_text(json.dumps({"bytes_by_day": {"1970-01-01": 5_000, DAY: 10}}))
    behind = account(path, limits, ManualClock(5_000_000))
    assert behind.verdict(LinkLane.LIVE, 0).reason == "day budget"
    assert behind.doubtful()
    behind.told(0)  # an older cloud
    assert not behind.doubtful(), "nor is it asked again and again"
    behind.told(MIDNIGHT)
    assert not behind.doubtful()
    assert behind.verdict(LinkLane.LIVE, 0).wait_s == 0
    assert not account(path, limits, ManualClock(MIDNIGHT)).doubtful()


class Teller:
    """What comes down the link, as far as an uplink asks: the time, at each connection."""

    def __init__(self, told: Callable[[int], None]) -> None:
        self.told = told
        self.heard = False

    def linked(self, _link: object) -> None:
        self.told(MIDNIGHT)
        self.heard = True

    def unlinked(self) -> None: ...

    def ready(self) -> bool:
        return self.heard

    def unheard(self) -> bool:
        return not self.heard

    def disowned(self) -> None: ...

    def received(self, _payload: bytes) -> bool:
        return True


async def test_a_gateway_that_wakes_in_a_spent_day_of_1970_dials(tmp_path: Path) -> None:
    path = tmp_path / "uplink.json"
    path.write_text(json.dumps({"bytes_by_day": {"1970-01-01": 90_000, DAY: 10}}))
    async with CloudPeer() as cloud:
        config = replace(FAST, endpoints=(cloud.url,), budget=BudgetConfig(day_bytes=80_000))
        journal = MemoryJournal()
        clock = ManualClock(5_000_000)
        uplink = Uplink(config, "gw-1", journal, DeviceIds(), clock, budget_path=path)
        uplink.attach(Teller(uplink.told))
        await uplink.start()
        journal.capture([b"20.5"] * 3, time_us=clock.wall_us())
        await journal.until_trimmed()
        await uplink.stop()
    assert len(cloud.rows) == 3
    assert kept(path)["1970-01-01"] == 90_000
    assert kept(path)[DAY] > 10, "what it took to be told is of the true day"


# ---- a day ---------------------------------------------------------------------------------------


class Day:
    """A gateway on a metered link, and a clock that is turned by hand."""

    def __init__(self, budget: BudgetConfig, cloud: CloudPeer) -> None:
        self.clock = ManualClock(MIDNIGHT)
        self.journal = MemoryJournal()
        self.cloud = cloud
        self.rng = random.Random(5)
        self.uplink = Uplink(
            # columnar: made here and now, so that `settle` sees all that goes on
            replace(FAST, endpoints=(cloud.url,), budget=budget, mode="columnar"),
            "gw-1", self.journal, DeviceIds(), self.clock, rng=random.Random(1),
        )  # fmt: skip

    def capture(self, count: int, lane: Lane = Lane.LIVE) -> range:
        """Capture readings that do not compress."""
        payloads = [self.rng.randbytes(100) for _ in range(count)]
        return self.journal.capture(payloads, lane=lane, time_us=self.clock.wall_us())

    async def settle(self) -> None:
        """Let the uplink do all that it may do now."""
        quiet, before = 0, (0, 0)
        async with asyncio.timeout(60):
            while quiet < 5:
                await asyncio.sleep(0.01)
                now = (self.cloud.batches, self.journal.last_seq)
                busy = self.uplink.status().batches_in_flight or now != before
                quiet, before = (0 if busy else quiet + 1), now

    async def hours(self, count: int, readings: int) -> None:
        """Let hours pass, each with so many readings."""
        for _ in range(count):
            self.clock.advance(3600)
            self.capture(readings)
            await self.settle()


def arrived(cloud: CloudPeer, lane: LinkLane) -> list[int]:
    return [seq for batch in cloud.accepted if batch.lane == lane for seq in batch.readings.seqs]


async def test_a_day_with_a_budget_of_bytes() -> None:
    """24 hours of 50 readings of 100 random bytes, and a budget for about half of them."""
    budget = BudgetConfig(day_bytes=80_000, urgent_share=0.2)
    async with CloudPeer() as cloud:
        day = Day(budget, cloud)
        await day.uplink.start()
        await day.hours(23, 50)
        status = day.uplink.status()
        assert (status.link, status.waits_for) == ("parked", "day budget")
        assert status.waits_s == 3600, "the forecast says until when"
        sent = arrived(cloud, LinkLane.LIVE)
        assert sent == list(range(1, len(sent) + 1)), "in order"
        assert 200 <= len(sent) < 23 * 50
        assert 64_000 <= status.day_bytes < 80_000, "to within a batch"

        urgent = day.capture(5, Lane.URGENT)
        await day.settle()
        assert arrived(cloud, LinkLane.URGENT) == list(urgent), "urgent has a share of its own"
        assert arrived(cloud, LinkLane.LIVE) == sent, "and nobody goes along"

        day.clock.advance(3600)
        day.capture(1)
        await day.journal.until_trimmed()
        await day.uplink.stop()
    live = [seq for seq in range(1, day.journal.last_seq + 1) if seq not in urgent]
    assert sorted(arrived(cloud, LinkLane.LIVE)) == live, "after midnight all of it went"
    assert cloud.doubled == 0


async def test_a_day_with_a_time_window() -> None:
    async with CloudPeer() as cloud:
        day = Day(BudgetConfig(windows=("02:00-04:00", "20:00-21:00")), cloud)
        await day.uplink.start()
        sent = []
        for hour in range(1, 24):
            await day.hours(1, 10)
            if hour in (2, 3, 20):
                await day.journal.until_trimmed()
            sent.append(len(cloud.rows))
        await day.uplink.stop()
    assert sent[:3] == [0, 20, 30]
    assert set(sent[3:19]) == {30}
    assert set(sent[19:]) == {200}
    assert cloud.connections == 2, "no connection is kept that may not send"


async def test_a_rate_is_kept() -> None:
    async with CloudPeer() as cloud:
        day = Day(BudgetConfig(rate_bytes_s=2000), cloud)
        await day.uplink.start()
        day.capture(600)
        for second in range(1, 51):
            day.capture(1)  # it looks at the clock when there is news
            await day.settle()
            sent = sum(len(p) for _, p in cloud.rows)
            assert sent <= 2000 * second + 6000, "the first batch knows no sizes yet"
            assert sent >= min(60_000, 1900 * second - 6000), "and made use of"
            day.clock.advance(1)
        await day.journal.until_trimmed()
        await day.uplink.stop()
    assert len(cloud.rows) == 650


async def test_dials_that_are_refused_are_paid_for_as_well() -> None:
    async with CloudPeer(connack=0x87) as cloud:
        day = Day(BudgetConfig(day_bytes=1_000_000), cloud)
        await day.uplink.start()
        await cloud.until("a dial", lambda: cloud.connections >= 1)
        async with asyncio.timeout(60):
            while not day.uplink.status().last_error:
                await asyncio.sleep(0.01)
        spent = day.uplink.status().day_bytes
        await day.uplink.stop()
    assert spent > 60, "CONNECT and CONNACK with their headers"
