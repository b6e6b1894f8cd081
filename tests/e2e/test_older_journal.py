"""A journal put back from a copy of its card, killed at any point until it has met the cloud.

The gateway that the copy was made of has gone on and used the seqs that the copy gives out. Each
reading that had its PUBACK, of either, must be stored once, and the ledger balance, wherever the
power goes in between: before the cloud has said what it holds, at any system call of the move to
new seqs, and after it. Needs strace.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from edge.contract import Lane
from tests.kit.cloud import query
from tests.kit.journal_files import body_of
from tests.kit.ledger_site import LedgerSite
from tests.kit.lossy_storage import Record, record, strace_fault
from tests.kit.older_journal import OlderJournal

pytestmark = pytest.mark.skipif(bool(strace_fault()), reason=strace_fault() or "strace works")
GATEWAY = "gw-1"
CUTS = 16
AFTER_THE_CUT = ("after-1", "after-2")


async def imaged(folder: Path) -> tuple[Path, int, set[str]]:
    """Make an image of a card, and a cloud that has got more since.

    Returns:
        The image, the highest seq that the cloud holds, and the payloads it has.
    """
    site = LedgerSite(folder)
    stored: set[str] = set()
    site.on_ack = lambda _gateway, _epoch, _seq, payload: stored.add(payload.decode())
    await site.start_cloud()
    card = await site.insert_card(GATEWAY)
    await site.publish(GATEWAY, "d1", 3, urgent=False)
    await site.send_all(GATEWAY)
    image = folder / "image"
    image.mkdir()
    for file in card.folder.glob("journal.*"):
        if file.suffix != ".lock":
            shutil.copyfile(file, image / file.name)
    for count in (4, 5):
        await site.publish(GATEWAY, "d1", count, urgent=count == 5)
    await site.send_all(GATEWAY)
    held_seq = card.journal.last_seq
    await site.close()
    return image, held_seq, stored


def recorded(tmp_path: Path, image: Path, held_seq: int, sessions: int) -> Record:
    plan = OlderJournal(str(tmp_path / "put-back"), str(image), held_seq, sessions)
    Path(plan.path).mkdir()
    arguments = ["-m", "tests.kit.older_journal", json.dumps(vars(plan))]
    done = record(arguments, Path(plan.path), tmp_path / "strace.log")
    assert done.exit_code == 0, done.errors
    assert done.lines()[-1] == ["end"]
    return done


async def stored_after(left: Path, cloud: Path) -> Counter[str]:
    """Start the gateway on what is left, let it meet the cloud and send all; return the payloads.

    It is started twice, and captures a reading each time, before it meets the cloud.
    """
    shutil.copytree(cloud, left / "cloud")
    site = LedgerSite(left)
    await site.start_cloud()
    try:
        card = await site.insert(GATEWAY, left / "edge", boot=9)
        for payload in AFTER_THE_CUT:
            await card.journal.append([(Lane.LIVE, 1, body_of([payload.encode()]))])
            await site.restart_gateway(GATEWAY)
        held = await site.stream.held(GATEWAY, card.journal.epoch)
        await card.journal.meet(held[-1][1])
        await site.settle()
        report = await site.balance()
        assert report.balanced, report.lines()
    finally:
        await site.close()
    rows = query(left / "cloud" / "storage.db", "SELECT payload FROM readings")
    return Counter(str(payload) for (payload,) in rows)


@pytest.mark.parametrize("sessions", [1, 2])
async def test_the_power_may_go_at_any_point_until_the_cloud_was_met(
    tmp_path: Path, sessions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = tmp_path / "before"
    image, held_seq, before = await imaged(prepared)
    done = recorded(tmp_path, image, held_seq, sessions)
    inode = (tmp_path / "put-back" / "journal.db").stat().st_ino  # what is played is that disk
    monkeypatch.setattr("edge.journal_build._inode_of", lambda _path: inode)
    at = {e.target: n for n, e in enumerate(done.events) if e.target in ("put", "meet", "met")}
    moving = range(at["meet"], at["met"] + 2)
    rng = random.Random(sessions)
    anywhere = [rng.randrange(at["put"] + 1, len(done.events)) for _ in range(CUTS // 4)]
    for cut in [*moving[:: max(1, len(moving) // CUTS)], moving[-1], *anywhere, len(done.events)]:
        left = tmp_path / f"cut-{cut}"
        (left / "edge").mkdir(parents=True)
        done.power_cut(cut, left / "edge", rng)
        stored = await stored_after(left, prepared / "cloud")
        acked = {words[1] for words in done.lines(cut) if words[0] == "ack"}
        tried = {words[1] for words in done.lines(cut) if words[0] == "try"}
        promised = before | acked | set(AFTER_THE_CUT)
        assert not promised - stored.keys(), f"lost, cut at {cut}"
        assert stored.keys() <= promised | tried
        assert set(stored.values()) == {1}, f"doubled, cut at {cut}"
        shutil.rmtree(left)
