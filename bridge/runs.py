"""Runs of a gateway: which of two that go on from one journal may go on in its epoch. Pure.

Each start of a gateway is a *run* with a random id, durable in its journal with the seq after which
it captures. The journal's runs, oldest first, are its history: what a run captured is told apart
from what another one did after the same copy was made. The cloud keeps for each (gateway, epoch)
the runs whose word it took, so that only one line of them ever gives out seqs of the epoch.

A run that is not of that line captures, from where the histories part, seqs that are not its own:
it is a clone of the gateway, or one put back from an older copy. Its readings past that seq get an
epoch of their own, which follows from what they are: so all copies of one reading still have one
identity. docs/link-format.md section 10.

Invariants: a run captures past `after_seq` and up to that of the next in its history; histories
that share a run share all before it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "RUNS_MAX",
    "Fork",
    "Origin",
    "Run",
    "forked_epoch",
    "judge",
    "may_send_through",
    "runs_past",
]

RUNS_MAX = 64  # of a history: as many as a hello has, and the cloud keeps of an epoch
_PARTS = struct.Struct(">QQQ")


class Run(NamedTuple):
    """One start of a gateway."""

    run: int  # random, 1 to 2^63 - 1
    after_seq: int  # what it captured has seqs past this


@dataclass(slots=True, frozen=True)
class Fork:
    """A run has to go on in an epoch of its own."""

    after_seq: int  # with what lies past this
    epoch: int


@dataclass(slots=True, frozen=True)
class Origin:
    """Where an epoch that is a fork began."""

    after_seq: int  # its seqs lie past this
    epoch: int  # that it parted from


def judge(
    epoch: int, known: Sequence[Run], said: Sequence[Run], highest_seq: int
) -> tuple[Run, ...] | Fork:
    """Return the runs of a gateway that become known now, or where it has to part.

    Args:
        epoch: That of its journal.
        known: The runs of that epoch whose word was taken, oldest first.
        said: Its own, oldest first, at least one.
        highest_seq: The highest seq of the epoch that is held.
    """
    if not known:
        return tuple(said)
    places = {one.run: place for place, one in enumerate(known)}
    shared = max((at for at, one in enumerate(said) if one.run in places), default=-1)
    if shared < 0:  # too long ago: all that can be told apart is its own
        return _fork(epoch, said[0].run, said[0].after_seq)
    place = places[said[shared].run]
    theirs = known[place + 1] if place + 1 < len(known) else None
    own = said[shared + 1] if shared + 1 < len(said) else None
    if theirs is not None and (own is None or theirs.after_seq < own.after_seq):
        # what the shared run captured past that is not what the others captured there
        return _fork(epoch, said[shared].run, theirs.after_seq)
    if own is None:
        return ()
    if theirs is None and highest_seq <= own.after_seq:
        return tuple(said[shared + 1 :])
    return _fork(epoch, own.run, own.after_seq)


def may_send_through(known: Sequence[Run], run: int) -> int | None:
    """Return up to which seq of an epoch a run may send; None: all.

    Of a run that is not known it is 0: nothing it says was taken yet.
    """
    for place, one in enumerate(known):
        if one.run == run:
            return known[place + 1].after_seq if place + 1 < len(known) else None
    return 0


def runs_past(runs: Iterable[Run], after_seq: int) -> tuple[Run, ...]:
    """Return the history of what lies past a seq: the runs that captured it, from there on."""
    kept = list(runs)
    while len(kept) > 1 and kept[1].after_seq <= after_seq:
        del kept[0]
    return tuple(Run(one.run, max(one.after_seq, after_seq)) for one in kept)


def forked_epoch(epoch: int, run: int, after_seq: int) -> int:
    """Return the epoch of what a run captured past a seq at which others went on otherwise."""
    digest = hashlib.sha256(_PARTS.pack(epoch, run, after_seq)).digest()
    return int.from_bytes(digest[:8], "big") >> 1 or 1


def _fork(epoch: int, run: int, after_seq: int) -> Fork:
    return Fork(after_seq, forked_epoch(epoch, run, after_seq))
