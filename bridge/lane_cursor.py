"""How far one lane of the uplink is: acknowledged, sent, and what of it the cloud has refused.

A refused batch makes its range *suspect* until everything up to its end is settled. What is tried
next goes one `Step` further at each refusal: in a fresh context, in mode 0, in halves down to one
reading, which is then to be set aside. What is taken meanwhile doubles the batches again.

Invariants: acked_seq <= sent_seq; `acked_seq` never falls; `chain` is contiguous from `acked_seq`
to `sent_seq`, but for what was jumped over.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

from bridge.envelope import Tombstone
from bridge.uplink_events import Durable, Sent

__all__ = ["LaneCursor", "Step", "Suspect"]


class Step(IntEnum):
    """How far a suspect batch has been tried."""

    FRESH = 1
    PLAIN = 2
    HALVES = 3


@dataclass(slots=True)
class Suspect:
    """A refused range of a lane, until everything up to `last_seq` is settled."""

    last_seq: int
    step: Step
    readings_max: int


@dataclass(slots=True)
class LaneCursor:
    """One lane's place in the journal."""

    acked_seq: int = 0
    sent_seq: int = 0
    chain: deque[Sent] = field(default_factory=deque)  # this generation's, in the order sent
    suspect: Suspect | None = None

    def jump(self, seq: int) -> None:
        """Go on past `seq`: what lies before it is settled, or another lane's."""
        self.acked_seq = self.sent_seq = seq

    def sent(self, batch: Sent) -> None:
        """Note that the lane's next batch is on its way."""
        self.sent_seq = batch.last_seq
        self.chain.append(batch)

    def rewind(self) -> None:
        """Read and encode again what has not been acknowledged."""
        self.sent_seq = self.acked_seq
        self.chain.clear()

    def advance(self, lane: int) -> Durable | None:
        """Move past the batches at the front that the cloud has taken; None without one."""
        chain = self.chain
        if not chain or not chain[0].durable:
            return None
        after_seq = self.acked_seq
        readings = 0
        tombstones: list[Tombstone] = []
        while chain and chain[0].durable:
            batch = chain.popleft()
            self.acked_seq = batch.last_seq
            readings += batch.count
            tombstones += batch.tombstones
        self.clear_suspect()
        return Durable(lane, self.acked_seq, readings, tombstones, after_seq)

    def set_aside(self, last_seq: int) -> None:
        """Move past readings that are safe among the dead letters."""
        self.jump(last_seq)
        self.chain.clear()
        self.clear_suspect()

    def clear_suspect(self) -> None:
        """Note that something was settled: the suspect range, or a part of it."""
        suspect = self.suspect
        if suspect is None:
            return
        if self.acked_seq >= suspect.last_seq:
            self.suspect = None
        else:
            suspect.readings_max *= 2

    def refused(self, batch: Sent, *, too_large: bool) -> bool:
        """Choose how the readings of a refused batch are tried next.

        Returns:
            True when nothing smaller or plainer is left to try.
        """
        suspect = self.suspect
        if suspect is None:
            step = Step.HALVES if too_large else Step.FRESH
            suspect = self.suspect = Suspect(batch.last_seq, step, max(1, batch.count))
            if step is Step.FRESH:
                return False
        elif suspect.step is Step.FRESH and not too_large:
            suspect.step = Step.PLAIN
            return False
        suspect.step = Step.HALVES
        if batch.count > 1:
            suspect.readings_max = batch.count // 2
            return False
        return True
