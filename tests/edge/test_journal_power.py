"""Power cuts and failing disks: docs/journal-format.md section 8. Needs strace, which traces a real
journal in a process of its own."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.contract import Lane
from edge.journal import Journal
from edge.journal_schema import JournalError
from edge.limits import DISK_FLOOR_BYTES
from runtime.clock import ManualClock
from tests.kit.journal_files import (
    drop_oldest,
    fill,
    journal_at,
    journal_config,
    payloads_in,
    read_all,
    seqs_in,
)
from tests.kit.journal_writer import Plan, number_of
from tests.kit.lossy_storage import Record, failing, plan_arguments, record, strace_fault
from tests.kit.small_disk import small_disk, take_all_space

STRACE = pytest.mark.skipif(bool(strace_fault()), reason=strace_fault() or "strace works")
AFTER_THE_CUT = ManualClock(boot_id="the next boot")


def recorded(tmp_path: Path, plan: Plan) -> Record:
    """Record a plan carried out in a folder of its own."""
    Path(plan.path).mkdir()
    done = record(plan_arguments(plan), Path(plan.path), tmp_path / "strace.log")
    assert done.exit_code == 0, done.errors
    assert done.lines()[-1] == ["end"]
    return done


def cuts(done: Record, rng: random.Random, count: int) -> Iterator[int]:
    """Yield seeded points to cut at: half anywhere, half just after an acknowledgement."""
    acks = [at + 1 for at, e in enumerate(done.events) if e.target.startswith("ack")]
    for turn in range(count):
        yield rng.choice(acks) if turn % 2 else rng.randint(1, len(done.events))


def said(done: Record, cut: int, word: str) -> set[int]:
    """Return the numbers said with a word before a cut."""
    return {int(words[1]) for words in done.lines(cut) if words[0] == word}


async def readings_by_seq(journal: Journal) -> dict[int, int]:
    """Return the number of each reading in a journal by its seq; each seq once."""
    commits = [c for lane in Lane for c in await read_all(journal, lane)]
    seqs = seqs_in(commits)
    assert len(set(seqs)) == len(seqs)
    numbers = [number_of(payload) for payload in payloads_in(commits)]
    assert len(set(numbers)) == len(numbers)
    return dict(zip(seqs, numbers, strict=True))


# --- power cuts -----------------------------------------------------------------------------------


@STRACE
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_power_cut_takes_nothing_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    plan = Plan(str(tmp_path / "a"), readings=90, sessions=3, urgent=0.2, seed=seed)
    done = recorded(tmp_path, plan)
    rng = random.Random(seed)
    everywhere: dict[int, int] = {}
    for turn, cut in enumerate(cuts(done, rng, 40)):
        left = tmp_path / f"cut-{turn}"
        left.mkdir()
        done.power_cut(cut, left, rng)
        async with journal_at(left, clock=AFTER_THE_CUT) as journal:
            # what a power cut leaves is never taken for damage
            assert not list(left.glob("*.damaged-*")), f"cut at {cut}"
            assert list(journal.tombstones()) == []
            held = await readings_by_seq(journal)
            missing = said(done, cut, "ack") - set(held.values())
            assert not missing, f"cut at {cut}"
            assert set(held.values()) <= said(done, cut, "try")
            for seq, number in held.items():  # nor is a seq ever another reading's
                assert everywhere.setdefault(seq, number) == number
            await fill(journal, 1)
            assert journal.last_seq == max(held, default=0) + 3


@STRACE
async def test_a_power_cut_at_any_point_of_the_first_start(tmp_path: Path) -> None:
    done = recorded(tmp_path, Plan(str(tmp_path / "a"), readings=5))
    first = next(at for at, e in enumerate(done.events) if e.target.startswith("ack"))
    rng = random.Random(7)
    for cut in range(first + 2):
        left = tmp_path / f"cut-{cut}"
        left.mkdir()
        done.power_cut(cut, left, rng)
        async with journal_at(left, clock=AFTER_THE_CUT) as journal:
            assert not list(left.glob("*.damaged-*")), f"cut at {cut}"
            assert list(journal.tombstones()) == []
            held = set((await readings_by_seq(journal)).values())
            assert said(done, cut, "ack") <= held, f"cut at {cut}"
            await fill(journal, 1)


@STRACE
async def test_a_power_cut_among_trims_and_upkeep(tmp_path: Path) -> None:
    plan = Plan(str(tmp_path / "a"), readings=120, sessions=3, trim=0.5, size_max=9000, seed=3)
    done = recorded(tmp_path, plan)
    rng = random.Random(3)
    trimmed = 0
    for turn, cut in enumerate(cuts(done, rng, 40)):
        left = tmp_path / f"cut-{turn}"
        left.mkdir()
        done.power_cut(cut, left, rng)
        async with journal_at(left, clock=AFTER_THE_CUT) as journal:
            assert list(journal.tombstones()) == []
            held = set((await readings_by_seq(journal)).values())
            gone = max(said(done, cut, "trim"), default=0)
            trimmed += journal.stats().lanes[Lane.LIVE].gone_seq
            # one lane and no refusal: the reading's number is its seq
            assert said(done, cut, "ack") - held <= set(range(1, gone + 1)), f"cut at {cut}"
    assert trimmed


@STRACE
async def test_a_power_cut_among_evictions(tmp_path: Path) -> None:
    live = {"policy": "drop-oldest", "bytes_max": 40_000}
    plan = Plan(str(tmp_path / "a"), readings=150, sessions=2, live=live, seed=4)
    done = recorded(tmp_path, plan)
    rng = random.Random(4)
    evicted = 0
    config = journal_config(live=drop_oldest(bytes_max=40_000))
    for turn, cut in enumerate(cuts(done, rng, 30)):
        left = tmp_path / f"cut-{turn}"
        left.mkdir()
        done.power_cut(cut, left, rng)
        async with journal_at(left, config, AFTER_THE_CUT) as journal:
            held = set((await readings_by_seq(journal)).values())
            lost = journal.tombstones()
            given_up = {n for t in lost for n in range(t.first_seq, t.last_seq + 1)}
            assert {t.reason for t in lost} <= {"evicted-bytes"}
            assert said(done, cut, "ack") <= held | given_up, f"cut at {cut}"
            assert not held & given_up
            evicted += sum(t.count for t in lost)
    assert evicted


@STRACE
async def test_process_crash_durability_records_what_a_power_cut_took(tmp_path: Path) -> None:
    plan = Plan(str(tmp_path / "a"), readings=90, durability="process-crash", seed=5)
    done = recorded(tmp_path, plan)
    rng = random.Random(5)
    taken = 0
    for turn, cut in enumerate(cuts(done, rng, 30)):
        left = tmp_path / f"cut-{turn}"
        left.mkdir()
        done.power_cut(cut, left, rng)
        acked = said(done, cut, "ack")
        async with journal_at(left, clock=AFTER_THE_CUT) as journal:
            held = set((await readings_by_seq(journal)).values())
            lost = {n for t in journal.tombstones() for n in range(t.first_seq, t.last_seq + 1)}
            assert acked <= held | lost, f"cut at {cut}"
            assert not held & lost
            taken += len(acked - held)
            if acked - held:  # a seq the cloud may have seen is not given to another reading
                assert journal.last_seq >= max(acked)
    assert taken, "a disk that loses what was not synced took nothing: the test shows nothing"


@STRACE
async def test_seqs_are_reserved_before_they_are_given_out(tmp_path: Path) -> None:
    """With process-crash too: what a power cut took may be in the cloud under its seq."""
    each = 700
    plan = Plan(str(tmp_path / "a"), readings=60, repeat=each, size_max=20, seed=8)
    plan.durability = "process-crash"
    done = recorded(tmp_path, plan)
    rng = random.Random(8)
    jumped = 0
    for turn, cut in enumerate(cuts(done, rng, 20)):
        left = tmp_path / f"cut-{turn}"
        left.mkdir()
        done.power_cut(cut, left, rng)
        async with journal_at(left, clock=AFTER_THE_CUT) as journal:
            assert journal.last_seq >= each * len(said(done, cut, "ack")), f"cut at {cut}"
            jumped += bool(journal.tombstones())
    assert jumped


# --- calls that fail ------------------------------------------------------------------------------

SYNC = "fsync,fdatasync"
FAULTS = [
    ("pwrite64", "EIO", "13", "journal.db-wal"),
    ("pwrite64", "EIO", "30+", "journal.db-wal"),
    ("pwrite64", "ENOSPC", "18", "journal.db-wal"),
    ("pwrite64", "ENOSPC", "20..60", "journal.db-wal"),
    (SYNC, "EIO", "4", "journal.db-wal"),
    (SYNC, "EIO", "6..9", "journal.db-wal"),
    (SYNC, "EIO", "5+", "journal.db-wal"),
    ("pwrite64", "EIO", "3", "journal.db"),  # in a checkpoint
    ("pwrite64", "ENOSPC", "2+", "journal.db"),
    (SYNC, "EIO", "2+", "journal.db"),
    ("ftruncate", "EIO", "1+", "journal.db-wal"),
]


@STRACE
@pytest.mark.parametrize(("calls", "error", "when", "name"), FAULTS)
async def test_a_call_that_fails_costs_no_acknowledged_reading(
    tmp_path: Path, calls: str, error: str, when: str, name: str
) -> None:
    async with journal_at(tmp_path):
        pass
    # large enough that the log is checkpointed while the process runs
    plan = Plan(str(tmp_path), readings=60, size_max=200_000, give_up=True, seed=6)
    done = failing(calls, error, when, plan_arguments(plan), tmp_path / name)
    lines = [line.split() for line in done.stdout.splitlines()]
    answers = Counter(words[1] for words in lines if words[0] in ("ack", "refuse"))
    acked = {int(words[1]) for words in lines if words[0] == "ack"}
    refused = {int(words[1]) for words in lines if words[0] == "refuse"}
    if lines and lines[-1] == ["end"]:
        assert done.returncode == 0, done.stderr
        assert set(answers.values()) == {1}
        assert acked | refused == set(range(1, 61))
        codes = {words[2] for words in lines if words[0] == "refuse"}
        assert codes <= {"151" if error == "ENOSPC" else "131"}
    else:
        assert "JournalError" in done.stderr
    async with journal_at(tmp_path) as journal:
        held = await readings_by_seq(journal)
        assert acked <= set(held.values())
        assert set(held.values()) <= acked | refused
        assert list(journal.tombstones()) == []
        await fill(journal, 1)
    if calls != "ftruncate" and name == "journal.db-wal":
        assert refused, "nothing failed: the test shows nothing"


# --- real disks -----------------------------------------------------------------------------------


async def fill_up(journal: Journal, first: int = 0) -> list[bytes]:
    """Commit until the journal refuses; return the payloads."""
    payloads: list[bytes] = []
    try:
        while True:
            payloads += await fill(journal, 1, size=30_000, first=first + len(payloads))
    except JournalError as error:
        if error.kind != "full":
            raise
    return payloads


async def test_a_small_disk_refuses_before_it_is_full_and_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "24m") as disk:
        async with journal_at(disk) as journal:
            payloads = await fill_up(journal)
            assert len(payloads) > 100
            assert journal.last_seq == len(payloads)
            await journal.maintain()
            assert shutil.disk_usage(disk).free >= DISK_FLOOR_BYTES
            half = len(payloads) // 2
            await journal.trim(Lane.LIVE, half)
            more = await fill_up(journal, len(payloads))
            assert len(more) > half - 20
            kept = payloads_in(await read_all(journal))
            assert kept[-len(payloads) - len(more) + half :] == payloads[half:] + more
        async with journal_at(disk) as journal:
            assert payloads_in(await read_all(journal)) == kept


async def test_a_disk_filled_by_others_still_lets_the_journal_drain(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "24m") as disk:
        async with journal_at(disk) as journal:
            payloads = await fill_up(journal)
            await journal.maintain()
            filler = disk / "filler"
            take_all_space(filler)
            assert shutil.disk_usage(disk).free == 0
            with pytest.raises(JournalError) as caught:
                await fill(journal, 2, size=30_000)
            assert caught.value.kind == "full"
            assert payloads_in(await read_all(journal)) == payloads
            # not a byte is free, but what the cloud has can be deleted and its place written
            await journal.trim(Lane.LIVE, len(payloads) // 2)
            await journal.flush()
            await fill(journal, len(payloads) // 8, size=30_000)
            filler.unlink()
            await journal.probe()
            await fill(journal, 5, size=30_000)


async def test_a_read_only_disk_is_one_clear_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "24m") as disk:
        async with journal_at(disk) as journal:
            await fill(journal, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(JournalError, match=r"Read-only file system; check owner") as caught:
            await Journal.open(disk / "journal.db", journal_config(), ManualClock())
        assert caught.value.kind == "unwritable"
        assert "\n" not in str(caught.value)


async def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "24m") as disk:
        async with journal_at(disk) as journal:
            await fill(journal, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        (tmp_path / "journal.db").symlink_to(disk / "journal.db")
        with pytest.raises(JournalError, match="check owner, mode and mount") as caught:
            await Journal.open(tmp_path / "journal.db", journal_config(), ManualClock())
        assert caught.value.kind == "unwritable"
