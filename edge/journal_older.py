"""What is done when the cloud holds seqs that this journal has not given out: it is an older copy.

A copy of the whole folder that was made while its gateway ran, or a card's image, looks like a
crash when it is opened: it goes on with seqs that the journal it was copied from has used since.
The cloud would take what is captured under those for what it holds already. So before the first
batch of a process the gateway waits for the cloud's word (edge/commands.py), and if its journal is
older, what was captured since the opening gets new seqs, row by row, past all that is held.

The file keeps past which seq nothing was compared with the cloud, from the first opening until it
is (table `unmet`): however often the gateway starts in between, and wherever a crash cuts the move
short, the next contact finds all that may collide, and nothing goes up before that.

Invariants:
- The seqs of the copied journal are never used for anything else after this.
- A row's old seqs leave the file in the transaction that brings its new ones.
- `unmet` is forgotten only when every row past it has seqs of its own.
docs/journal-format.md section 5.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import structlog

from edge.contract import Lane, Tombstone
from edge.journal_commit import RESERVE_MIN, OnCommit, row_of
from edge.journal_high import write_high
from edge.journal_keeper import Keeper
from edge.journal_schema import JournalError, Row, key_of
from edge.journal_state import us_since_boot
from edge.journal_tail import Tail
from runtime.clock import Clock

__all__ = ["go_past"]

log = structlog.get_logger(component="journal")

_MOVE_BYTES = 1 << 20  # in one transaction


async def go_past(
    path: Path, keeper: Keeper, tail: Tail, clock: Clock, on_commit: OnCommit, held_seq: int
) -> None:
    """Give nothing out any more up to `held_seq`, and what was not compared yet new seqs.

    Args:
        path: The journal's file.
        keeper: Its state; nobody else commits meanwhile.
        tail: What it holds of the old commits is dropped.
        clock: Wall clock, for the tombstone.
        on_commit: Told of each row before it is there under its new seqs.
        held_seq: The highest that the cloud holds.

    Raises:
        JournalError: the disk is full or fails; done again, it goes on where it was.
    """
    state = keeper.state
    unmet_seq = state.unmet_seq
    assert unmet_seq is not None, "it was not compared yet"
    past = max(held_seq, state.last_seq)
    reserved_seq = max(state.reserved_seq, past + state.last_seq - unmet_seq + RESERVE_MIN)
    stone = Tombstone(Lane.LIVE, unmet_seq + 1, past, past - unmet_seq, "restored", clock.wall_us())
    await keeper.file.go_past(stone, reserved_seq)
    keeper.record(stone)
    # after the file: a mark past what that has reserved says that it was put back from a backup
    try:
        await asyncio.to_thread(write_high, path, state.epoch, reserved_seq, state.runs[-1])
    except OSError as error:
        hint = f"journal.high cannot be written: {error.strerror or error}"
        raise JournalError(path, past, hint, "io") from None
    state.reserved_seq, state.next_seq, state.last_seq = reserved_seq, past + 1, past
    moved = 0
    for lane in Lane:
        while rows := await _colliding(keeper, lane, unmet_seq, past):
            moved += await _move(keeper, lane, rows, clock, on_commit)
        tail.restart(lane, state.lanes[lane].last_seq)
    log.error(
        "journal_is_older", unmet_seq=unmet_seq, held_seq=held_seq, readings_moved=moved,
        hint="put back from a copy made while it ran; what was captured since has new seqs",
    )  # fmt: skip


async def _colliding(keeper: Keeper, lane: Lane, after_seq: int, past: int) -> list[Row]:
    """Return some rows of a lane whose seqs the cloud may hold for others."""
    rows = await keeper.file.rows_from(lane, after_seq + 1, _MOVE_BYTES)
    end = key_of(lane, past)
    return [row for row in rows if row[0] <= end]


async def _move(
    keeper: Keeper, lane: Lane, rows: list[Row], clock: Clock, on_commit: OnCommit
) -> int:
    """Give rows the next seqs; return how many readings they have."""
    state = keeper.state
    seq = state.next_seq
    moved: list[Row] = []
    for _, count, _, time_us, boot, boot_us, _, body in rows:
        # of another boot only the wall clock is known: told as it would be of a commit made now
        of_boot = boot == state.boot
        told = on_commit(
            seq,
            time_us if of_boot else clock.wall_us(),
            boot_us if of_boot else us_since_boot(clock),
        )
        if told is not None:
            await told
        moved.append(row_of(lane, seq, count, time_us, boot, boot_us, body))
        seq += count
    lane_state = state.lanes[lane]
    after = replace(lane_state, last_seq=seq - 1)
    lane_state.head = await keeper.file.move_rows(lane, [row[0] for row in rows], moved, after)
    lane_state.last_seq = state.last_seq = seq - 1
    readings = seq - state.next_seq
    state.next_seq = seq
    return readings
