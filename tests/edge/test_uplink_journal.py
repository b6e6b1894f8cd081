"""Of which seqs a gateway may tell: those that no other one has captured otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from bridge.runs import Origin
from edge.journal_state import Parting
from edge.uplink_journal import PartingJournal, UplinkJournal

OLD, NEW = 1, 2


def test_nothing_is_its_own_before_the_cloud_was_met_nor_what_parts_then() -> None:
    journal = SimpleNamespace(epoch=OLD, parting=None, origin=None)
    sent = UplinkJournal(cast("PartingJournal", journal))
    assert not sent.owns(OLD, 1)
    sent.met()
    assert sent.owns(OLD, 9)
    journal.parting = Parting(5, NEW, {})
    assert [sent.owns(OLD, seq) for seq in (5, 6)] == [True, False]
    journal.epoch, journal.parting, journal.origin = NEW, None, Origin(5, OLD)
    assert not sent.owns(NEW, 6)
    assert [sent.owns(OLD, seq) for seq in (5, 6)] == [True, False]
    sent.met()
    assert sent.owns(NEW, 6)
    assert not sent.owns(OLD, 6)
    assert sent.owns(77, 6)  # of a journal before this one
