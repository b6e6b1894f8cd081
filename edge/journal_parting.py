"""A journal that goes on in an epoch of its own: another gateway runs on a copy of it.

The cloud says so in answer to a hello, with a seq: past it this gateway and the other have captured
each its own (bridge/runs.py). What lies up to it is the same in both and keeps its epoch; all past
it gets another, seqs unchanged, in one transaction that moves no row. As a connection's batches are
of one epoch, what still waits up to that seq is sent first: the rest waits until it is settled.

Invariants:
- Nothing past that seq is sent under the old epoch (uplink_journal.py), nothing up to it under the
  new.
- The file has the new epoch only together with lanes that know all up to that seq to be gone; until
  then nothing is kept of a parting, and the next contact begins it anew.
docs/journal-format.md section 5.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from bridge.runs import Fork, Origin, runs_past
from edge.contract import Lane
from edge.journal_high import write_high
from edge.journal_keeper import Keeper
from edge.journal_schema import JournalError
from edge.journal_state import JournalState, Parting

__all__ = ["begin_parting", "end_parting"]

log = structlog.get_logger(component="journal")


async def begin_parting(keeper: Keeper, fork: Fork) -> None:
    """Note that what lies past a seq is to get another epoch; the caller holds the writing lock.

    Raises:
        JournalError: the file cannot be read or written.
    """
    state = keeper.state
    after_seq = min(fork.after_seq, state.last_seq)
    while True:  # a row lies in one epoch: one that begins before the seq goes with what follows
        rows = {lane: await keeper.file.newest_row(lane, after_seq) for lane in Lane}
        crossing = [first for first, last in rows.values() if last > after_seq]
        if not crossing:
            break
        after_seq = min(crossing) - 1
    ends = {lane: last for lane, (_, last) in rows.items()}
    state.parting = Parting(after_seq, fork.epoch, ends)
    log.error(
        "gateway_runs_twice", epoch=f"{state.epoch:016x}", after_seq=after_seq,
        new_epoch=f"{fork.epoch:016x}",
        hint="another gateway of this name goes on from the same journal, a clone or this one"
        " put back from a copy: both go on, each with an account of its own; once one has sent all,"
        " give it another id and an empty data folder",
    )  # fmt: skip


async def end_parting(path: Path, keeper: Keeper) -> bool:
    """Give what lies past the seq its epoch if all up to it is settled; return True once done.

    The caller holds the writing lock.

    Raises:
        JournalError: the file cannot be written; done again, it goes on where it was.
    """
    state = keeper.state
    parting = state.parting
    if parting is None or not _settled(state, parting):
        return False
    await keeper.split_tombstones(parting.after_seq)
    if any(stone.first_seq <= parting.after_seq for stone in state.tombstones):
        return False
    runs = runs_past(state.runs, parting.after_seq)
    origin = Origin(parting.after_seq, state.epoch)
    await keeper.file.begin_epoch(parting.epoch, runs, origin, state.lanes)
    state.epoch, state.runs, state.origin, state.parting = parting.epoch, runs, origin, None
    try:
        await asyncio.to_thread(write_high, path, state.epoch, state.reserved_seq, state.runs[-1])
    except OSError as error:
        hint = f"journal.high cannot be written: {error.strerror or error}"
        raise JournalError(path, 0, hint, "io") from None
    log.warning(
        "journal_parted", epoch=f"{state.epoch:016x}", after_seq=origin.after_seq,
        from_epoch=f"{origin.epoch:016x}",
    )  # fmt: skip
    return True


def _settled(state: JournalState, parting: Parting) -> bool:
    return all(state.lanes[lane].gone_seq >= end for lane, end in parting.lane_ends.items())
