"""Clock repair alone: which seqs get which correction, once, over crashes and boots."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from bridge.commands import Correction, Welcome, open_message
from bridge.runs import Origin
from edge.clock_repair import ClockRepair
from edge.config import ClockConfig
from runtime.clock import ManualClock

EPOCH = 77
YEAR_S = 365 * 86_400


class Link:
    """A way to the cloud that answers when told to."""

    def __init__(self, *, answers: bool = True) -> None:
        self.answers = answers
        self.said: list[Correction] = []

    def say(self, payload: bytes, answered: Callable[[int], None]) -> bool:
        message = open_message(payload)
        assert isinstance(message, Correction)
        self.said.append(message)
        if self.answers:
            asyncio.get_running_loop().call_soon(answered, 0)
        return True


class Gateway:
    """A journal's seqs, and the clocks they are given out under."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.last_seq = 0

    async def commit(self, repair: ClockRepair, count: int) -> None:
        first = self.last_seq + 1
        before = repair.committed(
            first, self.clock.wall_us(), round(self.clock.monotonic_s() * 1e6)
        )
        if before is not None:
            await before
        self.last_seq += count


@asynccontextmanager
async def repairing(path: Path, gateway: Gateway) -> AsyncIterator[ClockRepair]:
    repair = ClockRepair(path, ClockConfig(), gateway.clock, lambda: (EPOCH, gateway.last_seq))
    await repair.start()
    try:
        yield repair
    finally:
        await repair.stop()


def true_time(clock: ManualClock, skew_s: float) -> Welcome:
    """What a cloud says whose clock is right while ours is ahead by `skew_s`."""
    return Welcome(EPOCH, 0, clock.wall_us() - round(skew_s * 1e6))


async def said(link: Link, count: int) -> list[Correction]:
    async with asyncio.timeout(60):
        while len(link.said) < count:
            await asyncio.sleep(0.005)
    return link.said


def spans(found: list[Correction]) -> list[tuple[int, int, float]]:
    return [(one.first_seq, one.last_seq, round(one.delta_us / 1e6)) for one in found]


async def test_a_clock_that_is_right_needs_nothing(tmp_path: Path) -> None:
    gateway, link = Gateway(ManualClock()), Link()
    async with repairing(tmp_path / "clock.db", gateway) as repair:
        await gateway.commit(repair, 10)
        repair.linked(link)
        repair.welcomed(true_time(gateway.clock, 1), gateway.clock.monotonic_s())
        gateway.clock.advance(100)
        await gateway.commit(repair, 10)
        await repair.turn()
        assert (link.said, repair.corrected, repair.steps) == ([], 0, 0)


async def test_the_true_time_may_come_before_any_reading(tmp_path: Path) -> None:
    clock = ManualClock(wall_us=1_000_000)
    gateway, link = Gateway(clock), Link()
    async with repairing(tmp_path / "clock.db", gateway) as repair:
        repair.linked(link)
        repair.welcomed(true_time(clock, -YEAR_S), clock.monotonic_s())
        await repair.turn()
        await gateway.commit(repair, 4)
        assert spans(await said(link, 1)) == [(1, 4, YEAR_S)]


async def test_each_segment_of_a_boot_gets_its_own_correction(tmp_path: Path) -> None:
    clock = ManualClock()
    gateway, link = Gateway(clock), Link()
    async with repairing(tmp_path / "clock.db", gateway) as repair:
        await gateway.commit(repair, 10)  # right
        clock.set_wall(clock.wall_us() + 10 * YEAR_S * 1_000_000)
        await gateway.commit(repair, 5)
        clock.set_wall(clock.wall_us() - 20 * YEAR_S * 1_000_000)
        await gateway.commit(repair, 5)
        repair.linked(link)
        repair.welcomed(true_time(clock, -10 * YEAR_S), clock.monotonic_s())
        found = spans(await said(link, 2))
        assert found == [(11, 15, -10 * YEAR_S), (16, 20, 10 * YEAR_S)]
        await gateway.commit(repair, 3)  # still wrong: it is corrected a while later
        clock.advance(11)
        repair.welcomed(true_time(clock, -10 * YEAR_S), clock.monotonic_s())
        assert spans(await said(link, 3))[2] == (21, 23, 10 * YEAR_S)
        assert repair.steps == 2


async def test_what_was_not_acknowledged_is_said_again_after_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    gateway, deaf, link = Gateway(clock), Link(answers=False), Link()
    async with repairing(tmp_path / "clock.db", gateway) as repair:
        await gateway.commit(repair, 10)
        clock.set_wall(clock.wall_us() + YEAR_S * 1_000_000)
        await gateway.commit(repair, 1)
        repair.linked(deaf)
        repair.welcomed(true_time(clock, YEAR_S), clock.monotonic_s())
        first = spans(await said(deaf, 1))
    async with repairing(tmp_path / "clock.db", gateway) as repair:
        repair.linked(link)
        assert spans(await said(link, 1)) == first == [(11, 11, -YEAR_S)]
        repair.unlinked()
        await repair.turn()
    again = Link()
    async with repairing(tmp_path / "clock.db", gateway) as repair:
        repair.linked(again)
        repair.welcomed(true_time(clock, YEAR_S), clock.monotonic_s())
        await repair.turn()
        assert again.said == []  # acknowledged, and not made anew


async def test_a_boot_that_was_never_compared_is_left_alone(tmp_path: Path) -> None:
    clock = ManualClock(wall_us=1_000_000)
    gateway, link = Gateway(clock), Link()
    async with repairing(tmp_path / "clock.db", gateway) as repair:
        await gateway.commit(repair, 10)
    clock.boot, clock.mono_s = "boot-2", 5.0
    async with repairing(tmp_path / "clock.db", gateway) as repair:
        await gateway.commit(repair, 4)
        repair.linked(link)
        repair.welcomed(true_time(clock, -YEAR_S), clock.monotonic_s())
        assert spans(await said(link, 1)) == [(11, 14, YEAR_S)]


async def test_a_slow_welcome_tells_too_little(tmp_path: Path) -> None:
    clock = ManualClock()
    gateway, link = Gateway(clock), Link()
    async with repairing(tmp_path / "clock.db", gateway) as repair:
        await gateway.commit(repair, 10)
        repair.linked(link)
        repair.welcomed(true_time(clock, YEAR_S), clock.monotonic_s() - 60)
        await repair.turn()
        assert link.said == []


async def test_what_a_boot_took_after_its_last_contact_is_corrected_in_the_next(
    tmp_path: Path,
) -> None:
    """And so it is over a crash: the true offset of the boot is on the disk."""
    gateway, link = Gateway(ManualClock()), Link()
    async with repairing(tmp_path / "clock.db", gateway) as repair:
        await gateway.commit(repair, 10)
        repair.linked(link)
        repair.welcomed(true_time(gateway.clock, YEAR_S), gateway.clock.monotonic_s())
        assert spans(await said(link, 1)) == [(1, 10, -YEAR_S)]
        repair.unlinked()
        await gateway.commit(repair, 5)
    gateway.clock = ManualClock(boot_id="boot-2")
    async with repairing(tmp_path / "clock.db", gateway) as repair:
        repair.linked(link)
        assert spans(await said(link, 2))[1:] == [(11, 15, -YEAR_S)]


async def test_a_segment_is_on_the_disk_before_its_first_reading(tmp_path: Path) -> None:
    gateway = Gateway(ManualClock())
    async with repairing(tmp_path / "clock.db", gateway) as repair:
        await gateway.commit(repair, 1)
        gateway.clock.set_wall(0)
        await gateway.commit(repair, 1)
        (tmp_path / "killed").mkdir()
        for file in tmp_path.glob("clock.db*"):
            shutil.copy(file, tmp_path / "killed")
    async with repairing(tmp_path / "killed" / "clock.db", gateway) as repair:
        assert [segment.first_seq for segment in repair._segments] == [1, 2]


async def test_of_seqs_that_may_be_another_gateways_nothing_is_said(tmp_path: Path) -> None:
    clock, through = ManualClock(), 0
    gateway, link = Gateway(clock), Link()
    repair = ClockRepair(
        tmp_path / "clock.db",
        ClockConfig(),
        clock,
        lambda: (EPOCH, gateway.last_seq),
        lambda epoch, seq: epoch == EPOCH and seq <= through,
    )
    await repair.start()
    await gateway.commit(repair, 10)
    repair.linked(link)
    repair.welcomed(true_time(clock, YEAR_S), clock.monotonic_s())
    await repair.turn()
    await repair.turn()
    assert (link.said, repair.corrected) == ([], 10)
    through = 10
    await repair.turn()
    assert spans(link.said) == [(1, 10, -YEAR_S)]
    await repair.stop()


async def test_a_journal_that_parted_before_a_power_cut_is_corrected_in_its_new_epoch(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    gateway, deaf, link = Gateway(clock), Link(answers=False), Link()
    path = tmp_path / "clock.db"
    async with repairing(path, gateway) as repair:
        await gateway.commit(repair, 10)
        repair.linked(deaf)
        repair.welcomed(true_time(clock, YEAR_S), clock.monotonic_s())
        await said(deaf, 1)
    origin = Origin(6, EPOCH)
    for _ in range(2):  # the second start finds it done
        again = ClockRepair(path, ClockConfig(), clock, lambda: (EPOCH + 1, gateway.last_seq))
        await again.start(origin)
        await again.parted(origin, EPOCH + 1)
        again.linked(link)
        await said(link, 2)
        await again.stop()
    found = sorted((one.epoch, one.first_seq, one.last_seq) for one in set(link.said))
    assert found == [(EPOCH, 1, 6), (EPOCH + 1, 7, 10)]
