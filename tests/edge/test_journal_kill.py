"""A process that captures readings is killed with SIGKILL, again and again, in one journal."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge.contract import Lane
from runtime.clock import SystemClock
from tests.kit.journal_files import (
    drop_oldest,
    journal_at,
    journal_config,
    payloads_in,
    read_all,
    seqs_in,
)
from tests.kit.journal_writer import Plan, number_of
from tests.kit.lossy_storage import plan_arguments

KILLS = 10


def killed_after(plan: Plan, acks: int) -> list[list[str]]:
    """Run a plan and kill it right after some acknowledgements; return all it said."""
    command = [sys.executable, *plan_arguments(plan)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.split())
            acks -= line.startswith("ack")
            if acks <= 0:
                break
        process.kill()
        lines += [line.split() for line in process.stdout if line.endswith("\n")]
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    return lines


@pytest.mark.parametrize("durability", ["power-loss", "process-crash"])
async def test_sigkill_takes_nothing_that_was_acknowledged(tmp_path: Path, durability: str) -> None:
    rng = random.Random(durability)
    acked: set[int] = set()
    by_seq: dict[int, int] = {}
    first = 1
    for turn in range(KILLS):
        plan = Plan(
            str(tmp_path),
            readings=1_000_000,
            first=first,
            seed=turn,
            urgent=0.2,
            size_max=rng.choice((50, 2000, 50_000)),
            durability=durability,
            window_ms=rng.choice((0, 0, 3)),
        )
        said = killed_after(plan, rng.randint(1, 60))
        acked |= {int(words[1]) for words in said if words[0] == "ack"}
        first = max(int(words[1]) for words in said if words[0] == "try") + 1
        config = journal_config(durability=durability)
        async with journal_at(tmp_path, config, SystemClock()) as journal:
            assert list(journal.tombstones()) == []
            commits = [c for lane in Lane for c in await read_all(journal, lane)]
            held = dict(zip(seqs_in(commits), map(number_of, payloads_in(commits)), strict=True))
            assert acked <= set(held.values()), f"kill {turn}"
            assert len(set(held.values())) == len(held)
            assert by_seq.items() <= held.items(), f"kill {turn}"  # a seq stays the reading's
            by_seq = held
            depth = sum(lane.readings for lane in journal.stats().lanes.values())
            assert depth == len(held)
    assert len(acked) > KILLS


async def test_sigkill_among_evictions_leaves_everything_accounted_for(tmp_path: Path) -> None:
    rng = random.Random("evictions")
    live = {"policy": "drop-oldest", "bytes_max": 30_000}
    acked: set[int] = set()
    for turn in range(5):
        first = 1 + turn * 100_000
        plan = Plan(str(tmp_path), readings=90_000, first=first, seed=turn, live=live)
        said = killed_after(plan, rng.randint(20, 80))
        acked |= {int(words[1]) for words in said if words[0] == "ack"}
        config = journal_config(live=drop_oldest(bytes_max=30_000))
        async with journal_at(tmp_path, config) as journal:
            commits = await read_all(journal)
            assert {t.reason for t in journal.tombstones()} <= {"evicted-bytes"}
            lost = sum(t.count for t in journal.tombstones())
            assert lost + len(seqs_in(commits)) == journal.last_seq >= len(acked)
            numbers = [number_of(payload) for payload in payloads_in(commits)]
            assert numbers == sorted(numbers)
            # dropped from the front only: what is there has no gap
            assert {n for n in acked if n >= numbers[0]} <= set(numbers)
    assert lost
