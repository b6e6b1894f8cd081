"""Thinning in the journal: at a limit, in order, and whatever happens in the middle of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edge.config import LaneConfig
from edge.contract import Lane
from edge.journal import Journal
from edge.journal_file import JournalFile
from edge.journal_schema import JournalError
from runtime.clock import ManualClock, SystemClock
from tests.edge.test_journal_kill import killed_after
from tests.edge.test_journal_power import AFTER_THE_CUT, STRACE, cuts, recorded, said
from tests.kit.journal_files import (
    drop_oldest,
    fill,
    journal_at,
    journal_config,
    look,
    payloads_in,
    read_all,
    seqs_in,
)
from tests.kit.journal_writer import Plan, number_of

ONE_OF_5 = {"thin": "one-of", "thin_keep_one_of": 5, "thin_after_s": 0}


def thinning(bytes_max: int = 40_000, **changes: object) -> LaneConfig:
    return drop_oldest(bytes_max=bytes_max, **(ONE_OF_5 | changes))


async def accounted(journal: Journal) -> tuple[list[int], int]:
    """Return the seqs held and how many are given up, after checking that this is all."""
    held = seqs_in(await read_all(journal))
    given_up = sum(stone.count for stone in journal.tombstones())
    assert len(held) + given_up == journal.last_seq
    assert held == sorted(set(held))
    assert journal.stats().lanes[Lane.LIVE].readings == len(held)
    return held, given_up


def test_thinning_is_for_lanes_that_drop() -> None:
    with pytest.raises(ValueError, match="'thin' = one-of needs 'policy' = drop-oldest"):
        LaneConfig(thin="one-of")


async def test_a_lane_is_thinned_before_anything_is_dropped(tmp_path: Path) -> None:
    config = journal_config(live=thinning())
    async with journal_at(tmp_path, config) as journal:
        payloads = await fill(journal, 60, size=300)
        held, given_up = await accounted(journal)
        [stone] = journal.tombstones()
        assert (stone.reason, stone.count) == ("thinned", given_up)
        assert held[0] == 1, "the oldest is thinned, not dropped"
        kept = payloads_in(await read_all(journal))
        assert kept == [payloads[seq - 1] for seq in held], "a seq stays its reading's"
        assert journal.stats().evicted == {"thinned": given_up}
    async with journal_at(tmp_path, config) as journal:
        assert list(journal.tombstones()) == [stone]
        assert payloads_in(await read_all(journal)) == kept


async def test_what_is_thinned_once_is_dropped_next_and_both_are_told(tmp_path: Path) -> None:
    config = journal_config(live=thinning(20_000))
    async with journal_at(tmp_path, config) as journal:
        for turn in range(6):
            await fill(journal, 60, size=300, first=turn * 180)
        await accounted(journal)
        assert journal.stats().evicted.keys() == {"thinned", "evicted-bytes"}
        assert len(journal.tombstones()) <= 2, "they grow by turns"


async def test_a_restart_does_not_thin_the_same_twice(tmp_path: Path) -> None:
    config = journal_config(live=thinning())
    async with journal_at(tmp_path, config) as journal:
        await fill(journal, 60, size=300)
        before = seqs_in(await read_all(journal))
    [(through,)] = look(tmp_path, "SELECT through_seq FROM thinned WHERE lane = 1")
    async with journal_at(tmp_path, config) as journal:
        await fill(journal, 20, size=300)
        held, _ = await accounted(journal)
        assert [seq for seq in held if seq <= through] == [s for s in before if s <= through]


async def test_young_readings_are_never_thinned(tmp_path: Path) -> None:
    clock = ManualClock()
    config = journal_config(live=thinning(thin_after_s=60))
    async with journal_at(tmp_path, config, clock) as journal:
        await fill(journal, 30, size=300)
        clock.advance(61)
        await fill(journal, 30, size=300)
        held, _ = await accounted(journal)
        assert set(range(91, 181)) <= set(held)
        await fill(journal, 30, size=300)
        assert "evicted-bytes" in journal.stats().evicted


async def test_what_the_uplink_has_read_goes_up_as_it_was(tmp_path: Path) -> None:
    config = journal_config(live=thinning(), tail_bytes_max=0)
    async with journal_at(tmp_path, config) as journal:
        payloads = await fill(journal, 10, size=300)
        read = await journal.read(Lane.LIVE, 0, bytes_max=5_000)
        through = read[-1].first_seq + read[-1].count - 1
        await fill(journal, 50, size=300, first=30)
        held, _ = await accounted(journal)
        assert held[: through + 1] == list(range(1, through + 2))
        await journal.trim(Lane.LIVE, through)
        assert payloads_in(read) == payloads[:through]


async def test_what_was_acknowledged_out_of_order_is_not_given_up(tmp_path: Path) -> None:
    config = journal_config(live=thinning(), tail_bytes_max=0)
    async with journal_at(tmp_path, config) as journal:
        await fill(journal, 20, size=300)
        await journal.trim(Lane.LIVE, 40, after_seq=20)
        await fill(journal, 45, size=300)
        lost = sum(stone.count for stone in journal.tombstones())
        held = [seq for seq in seqs_in(await read_all(journal)) if not 20 < seq <= 40]
        assert len(held) + lost + 20 == journal.last_seq


async def test_aggregates_in_the_journal(tmp_path: Path) -> None:
    config = journal_config(live=thinning(thin="aggregate", thin_interval_s=60))
    async with journal_at(tmp_path, config) as journal:
        payloads = await fill(journal, 60, size=300)
        held, _ = await accounted(journal)
        kept = payloads_in(await read_all(journal))
        assert kept == [payloads[seq - 1] for seq in held], "they have no numbers: the last stays"


async def test_a_limit_of_the_whole_journal_thins_as_well(tmp_path: Path) -> None:
    config = journal_config(file_bytes_max=16 << 20, live=thinning(0))
    async with journal_at(tmp_path, config) as journal:
        for turn in range(9):
            await fill(journal, 30, readings=20, size=3_000, first=turn * 600)
        held, _ = await accounted(journal)
        assert journal.stats().evicted.keys() == {"thinned"}
        assert held[0] == 1
        assert journal.stats().file_bytes <= 16 << 20


async def test_a_pass_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: JournalFile, *_: object) -> None:
        raise JournalError(tmp_path, 0, "the disk reports an error")

    async with journal_at(tmp_path, journal_config(live=thinning())) as journal:
        payloads = await fill(journal, 35, size=300)
        monkeypatch.setattr(JournalFile, "replace_rows", fails)
        with pytest.raises(JournalError, match="the disk reports"):
            await fill(journal, 30, size=300)
        assert not journal.tombstones()
        kept = payloads_in(await read_all(journal))
        assert kept[:105] == payloads
        assert len(kept) == journal.last_seq == journal.stats().lanes[Lane.LIVE].readings
        monkeypatch.undo()
        await fill(journal, 30, size=300)
        await accounted(journal)
        assert journal.tombstones()


async def test_sigkill_among_thinnings_leaves_everything_accounted_for(tmp_path: Path) -> None:
    rng = random.Random("thinnings")
    live = {"policy": "drop-oldest", "bytes_max": 60_000, **ONE_OF_5}
    config = journal_config(live=LaneConfig(**live))
    number_by_seq: dict[int, int] = {}
    thinned = 0
    for turn in range(6):
        first = 1 + turn * 100_000
        plan = Plan(str(tmp_path), readings=90_000, first=first, seed=turn, live=live)
        lines = killed_after(plan, rng.randint(60, 200))
        acked = {int(words[1]) for words in lines if words[0] == "ack"}
        async with journal_at(tmp_path, config, SystemClock()) as journal:
            held, _ = await accounted(journal)
            assert journal.last_seq >= len(acked)
            numbers = [number_of(payload) for payload in payloads_in(await read_all(journal))]
            assert numbers == sorted(numbers)
            for seq, number in zip(held, numbers, strict=True):
                assert number_by_seq.setdefault(seq, number) == number
            thinned += sum(s.count for s in journal.tombstones() if s.reason == "thinned")
    assert thinned


@STRACE
async def test_a_power_cut_among_thinnings(tmp_path: Path) -> None:
    live = {"policy": "drop-oldest", "bytes_max": 60_000, **ONE_OF_5}
    config = journal_config(live=LaneConfig(**live))
    done = recorded(tmp_path, Plan(str(tmp_path / "a"), readings=250, live=live, seed=4))
    rng = random.Random(4)
    thinned = 0
    for turn, cut in enumerate(cuts(done, rng, 30)):
        left = tmp_path / f"cut-{turn}"
        left.mkdir()
        done.power_cut(cut, left, rng)
        async with journal_at(left, config, AFTER_THE_CUT) as journal:
            held, lost = await accounted(journal)
            # one lane, one reading after the other: the reading's number is its seq
            assert [number_of(p) for p in payloads_in(await read_all(journal))] == held
            assert max(said(done, cut, "ack"), default=0) <= len(held) + lost
            thinned += sum(s.count for s in journal.tombstones() if s.reason == "thinned")
    assert thinned
