"""Runs: which of two that go on from one journal keep its epoch, and what the other's readings get.

The model has cards that are copied, started, used and connected in any order, and a cloud that
keeps by (epoch, seq) what came first: no two readings may ever have one identity, none two.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import pytest

from bridge.runs import Fork, Run, forked_epoch, judge, may_send_through, runs_past

EPOCH = 77


def test_the_first_word_of_an_epoch_is_taken() -> None:
    assert judge(EPOCH, [], [Run(1, 0), Run(2, 5)], 0) == (Run(1, 0), Run(2, 5))


def test_a_run_that_is_known_and_the_last_goes_on() -> None:
    assert judge(EPOCH, [Run(1, 0)], [Run(1, 0)], 900) == ()


def test_runs_that_go_on_where_the_last_one_ended_become_known() -> None:
    said = [Run(1, 0), Run(2, 5), Run(3, 5)]
    assert judge(EPOCH, [Run(1, 0)], said, 5) == (Run(2, 5), Run(3, 5))


def test_a_copy_of_a_journal_whose_gateway_went_on_parts_where_it_was_made() -> None:
    fork = judge(EPOCH, [Run(1, 0)], [Run(1, 0), Run(2, 5)], 6)
    assert fork == Fork(5, forked_epoch(EPOCH, 2, 5))


def test_a_run_that_another_was_taken_on_from_parts_where_that_began() -> None:
    known = [Run(1, 0), Run(2, 5)]
    assert judge(EPOCH, known, [Run(1, 0)], 9) == Fork(5, forked_epoch(EPOCH, 1, 5))
    later = judge(EPOCH, known, [Run(1, 0), Run(3, 8)], 9)
    assert later == Fork(5, forked_epoch(EPOCH, 1, 5)), "what run 1 captured is one reading"
    sooner = judge(EPOCH, known, [Run(1, 0), Run(3, 4)], 9)
    assert sooner == Fork(4, forked_epoch(EPOCH, 3, 4))


def test_who_shares_no_run_that_is_known_parts_with_all_it_can_tell_apart() -> None:
    assert judge(EPOCH, [Run(1, 0)], [Run(8, 3)], 9) == Fork(3, forked_epoch(EPOCH, 8, 3))


def test_a_run_may_send_what_lies_before_the_next_one() -> None:
    known = [Run(1, 0), Run(2, 5)]
    assert may_send_through(known, 1) == 5
    assert may_send_through(known, 2) is None
    assert may_send_through(known, 3) == 0


def test_the_history_past_a_seq_begins_there() -> None:
    runs = [Run(1, 0), Run(2, 5), Run(3, 9)]
    assert runs_past(runs, 7) == (Run(2, 7), Run(3, 9))
    assert runs_past(runs, 5) == (Run(2, 5), Run(3, 9))
    assert runs_past(runs, 9) == (Run(3, 9),)


# ---- any number of copies ------------------------------------------------------------------------


@dataclass
class Card:
    """A journal, and what its gateway does with it."""

    epoch: int = EPOCH
    last_seq: int = 0
    runs: list[Run] = field(default_factory=list)
    waiting: dict[int, int] = field(default_factory=dict)  # reading by seq

    def copy(self) -> Card:
        return Card(self.epoch, self.last_seq, list(self.runs), dict(self.waiting))


class Cloud:
    """Takes runs and readings as the ingest does."""

    def __init__(self) -> None:
        self.runs: dict[int, list[Run]] = {}
        self.stored: dict[tuple[int, int], int] = {}

    def highest(self, epoch: int) -> int:
        return max((seq for of, seq in self.stored if of == epoch), default=0)

    def send(self, card: Card, seqs: Sequence[int], *, heard: bool = True) -> None:
        """Take some of what waits; what is held is dropped by its identity."""
        through = may_send_through(self.runs[card.epoch], card.runs[-1].run)
        for seq in seqs:
            reading = card.waiting[seq]
            held = self.stored.setdefault((card.epoch, seq), reading)
            assert held == reading, f"{held} is held where {reading} came: it is lost"
            assert through in (None, 0) or seq <= through, "no run that is known sends past that"
            if heard:  # else the answer was lost, and it is sent again
                del card.waiting[seq]

    def meet(self, card: Card, rng: random.Random, *, whole: bool) -> None:
        """Have a card say hello, part as often as it has to, and send some or all."""
        while True:
            known = self.runs.setdefault(card.epoch, [])
            verdict = judge(card.epoch, known, card.runs, self.highest(card.epoch))
            seqs = sorted(card.waiting)
            if not isinstance(verdict, Fork):
                known += verdict
                some = seqs[: rng.randint(0, len(seqs))]
                self.send(card, seqs if whole else some, heard=whole or rng.random() < 0.5)
                return
            after_seq = min(verdict.after_seq, card.last_seq)
            self.send(card, [seq for seq in seqs if seq <= after_seq])
            card.runs = list(runs_past(card.runs, after_seq))
            card.epoch = verdict.epoch


@pytest.mark.parametrize("seed", range(100))
def test_whatever_is_copied_every_reading_has_one_identity(seed: int) -> None:
    rng = random.Random(seed)
    numbers, ids = count(1), count(1)
    cloud = Cloud()
    cards = [Card(runs=[Run(next(ids), 0)])]
    captured: set[int] = set()
    for _ in range(rng.randint(5, 60)):
        card = rng.choice(cards)
        what = rng.choice(["capture", "capture", "connect", "connect", "start", "copy"])
        if what == "capture":
            for _ in range(rng.randint(1, 3)):
                card.last_seq += 1
                card.waiting[card.last_seq] = next(numbers)
                captured.add(card.waiting[card.last_seq])
        elif what == "connect":
            cloud.meet(card, rng, whole=rng.random() < 0.5)
        elif what == "start":
            card.runs.append(Run(next(ids), card.last_seq))
        elif len(cards) < 5:
            clone = card.copy()
            clone.runs.append(Run(next(ids), clone.last_seq))
            cards.append(clone)
    for card in cards:
        cloud.meet(card, rng, whole=True)
    assert sorted(cloud.stored.values()) == sorted(captured)
