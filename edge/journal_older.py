"""What is done when the cloud holds seqs that this journal has not given out: it is an older copy.

A copy of the whole folder that was made while its gateway ran, or a card's image, looks like a
crash when it is opened: it goes on with seqs that the journal it was copied from has used since.
The cloud would take what is captured under those for what it holds already. So before the first
batch of a process the gateway waits for the cloud's word (edge/commands.py), and if its journal is
older, what was captured since the opening is committed again under new seqs.

Invariants:
- the seqs of the copied journal are never used for anything else after this;
- a reading is trimmed under its old seq only after it is durable under its new one: a crash in
  between leaves it twice, and the cloud drops the one whose seq it holds.
docs/journal-format.md section 1.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from edge.contract import Lane, Tombstone
from edge.journal_commit import RESERVE_MIN, Committer
from edge.journal_high import write_high
from edge.journal_keeper import Keeper
from edge.journal_schema import key_of
from edge.journal_tail import Tail
from runtime.clock import Clock

__all__ = ["go_past"]

log = structlog.get_logger(component="journal")

_READ_BYTES = 1 << 20


async def go_past(
    path: Path, keeper: Keeper, committer: Committer, tail: Tail, clock: Clock,
    opened_seq: int, held_seq: int,
) -> int:  # fmt: skip
    """Give nothing out any more up to `held_seq`, and what was captured since the opening anew.

    Args:
        path: The journal's file.
        keeper: Its state; nobody else commits meanwhile.
        committer: Makes the commits.
        tail: What it holds of the old commits is dropped.
        clock: Wall clock, for the tombstone.
        opened_seq: The last seq when it was opened.
        held_seq: The highest that the cloud holds.

    Returns:
        How many readings got new seqs.

    Raises:
        JournalError: the disk is full or fails; what was not done is found again the next time.
    """
    state = keeper.state
    last_seq = state.last_seq
    past = max(held_seq, last_seq)
    reserved_seq = max(state.reserved_seq, past + RESERVE_MIN)
    await keeper.file.reserve(reserved_seq)
    await asyncio.to_thread(write_high, path, state.epoch, reserved_seq)
    stone = Tombstone(
        Lane.LIVE, opened_seq + 1, past, past - opened_seq, "restored", clock.wall_us()
    )
    await keeper.file.delete(Lane.LIVE, -1, state.lanes[Lane.LIVE], [stone])
    keeper.record(stone)
    state.reserved_seq, state.next_seq, state.last_seq = reserved_seq, past + 1, past
    moved = 0
    for lane in Lane:
        end_seq = state.lanes[lane].last_seq  # of what is moved
        at = opened_seq
        while at < end_seq:
            async with keeper.reading:
                rows = await keeper.file.read(lane, at, end_seq, _READ_BYTES)
            for key, count, _, _, body in rows:
                await committer.commit([(lane, count, body)])
                at = key - key_of(lane, 0) + count - 1
                moved += count
            if not rows:
                break
        if end_seq > opened_seq:
            keeper.trim(lane, end_seq, opened_seq)
            tail.forget(lane, end_seq)
    log.error(
        "journal_is_older", opened_seq=opened_seq, held_seq=held_seq, readings_moved=moved,
        hint="put back from a copy made while it ran; what was captured since has new seqs",
    )  # fmt: skip
    return moved
