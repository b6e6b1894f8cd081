"""The power goes, at a gateway, at the node, or everywhere, and takes what was not synced.

A seeded history of two gateways and a node is recorded system call by system call
(tests/kit/lossy_storage.py); then the power is cut at any point of it, the files that are left are
opened by the real thing, and what every device was told must be true: nothing that had its PUBACK
is missing unless a tombstone says so, nothing is there twice, and the ledger balances.
Needs strace.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.kit.ledger_history import GATEWAYS, History
from tests.kit.ledger_site import LedgerSite, Reading
from tests.kit.lossy_storage import Record, record, strace_fault

pytestmark = pytest.mark.skipif(bool(strace_fault()), reason=strace_fault() or "strace works")
CUTS = 14
MACHINES = (("cloud",), ("gw-1",), ("gw-2",), ("cloud", "gw-1", "gw-2"))


def recorded(tmp_path: Path, seed: int) -> Record:
    history = History(str(tmp_path / "history"), seed)
    Path(history.folder).mkdir()
    arguments = ["-m", "tests.kit.ledger_history", json.dumps(vars(history))]
    done = record(arguments, Path(history.folder), tmp_path / "strace.log")
    assert done.exit_code == 0, done.errors
    assert done.lines()[-1] == ["end"]
    return done


async def resumed(left: Path, lines: list[list[str]]) -> LedgerSite:
    """Start everything on what a power cut left, knowing only what devices were told."""
    site = LedgerSite(left)
    await site.start_cloud()
    for gateway, limit in GATEWAYS.items():
        card = await site.insert(gateway, left / gateway, limit, boot=9)
        for words in lines:
            if words[:2] == ["ack", gateway]:
                assert card.journal.epoch == int(words[2]), "an acknowledged journal is gone"
                card.acked[int(words[3])] = Reading(words[4].encode(), 0, 1)
    return site


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_power_cut_takes_nothing_that_was_promised(tmp_path: Path, seed: int) -> None:
    done = recorded(tmp_path, seed)
    rng = random.Random(seed)
    acks = [at + 1 for at, e in enumerate(done.events) if e.target.startswith("ack")]
    for turn in range(CUTS):
        cut = rng.choice(acks) if turn % 2 else rng.randint(acks[0], len(done.events))
        dark = MACHINES[turn % len(MACHINES)]
        left = tmp_path / f"cut-{turn}"
        left.mkdir()
        done.power_cut(cut, left, rng, lambda folder, dark=dark: folder in dark)
        lines = done.lines(cut)
        site = await resumed(left, lines)
        try:
            await site.settle()
            tried = frozenset(words[1].encode() for words in lines if words[0] == "try")
            await site.compare(tried=tried)
        finally:
            await site.close()
