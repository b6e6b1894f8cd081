"""Corrections of clocks at one node: storage gets each once, also one that cannot be had now."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.commands import Correction
from cloud.commands.clocks import Clocks
from cloud.corrections import Corrected
from cloud.database import DatabaseError
from cloud.sinks.contract import SinkUnavailable

OLD, NEWER, NEW = (Correction(7, first, first + 9, 1_000, 5) for first in (1, 11, 21))


class Storage:
    """Has `known` corrections of before; fails while it is `away`."""

    def __init__(self, *known: Correction) -> None:
        self.known = list(known)
        self.away = False
        self.on_went_back = lambda: None

    async def correct(self, gateway: str, correction: Correction) -> int:
        if self.away:
            raise SinkUnavailable("nobody listens there")
        if correction in self.known:
            return 0
        self.known.append(correction)
        return 10


class Keeper:
    """Keeps `found`."""

    def __init__(self, *found: Correction) -> None:
        self.found = [("gw", one) for one in found]
        self.heard: Corrected | None = None

    async def open(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def all(self, heard: Corrected) -> list[tuple[str, Correction]]:
        self.heard = heard
        return self.found


class Lab:
    def __init__(self, keeper: Keeper, storage: Storage) -> None:
        self.shown: list[tuple[Correction, bool]] = []
        self.woken = 0
        unused: Any = None
        seen: Any = (keeper, storage)
        self.clocks = Clocks(seen[0], unused, seen[1], self._show, self._wake)

    def _show(self, gateway: str, correction: Correction, *, known: bool) -> None:
        self.shown.append((correction, known))

    def _wake(self) -> None:
        self.woken += 1


async def test_what_storage_had_before_is_shown_as_known() -> None:
    lab = Lab(Keeper(OLD, NEWER), Storage(OLD))
    await lab.clocks.start()
    assert lab.shown == [(OLD, True), (NEWER, False)]


async def test_a_storage_that_is_away_at_the_start_gets_them_later() -> None:
    """The node runs meanwhile: it is not the operator who has to start it again and again."""
    keeper, storage = Keeper(OLD, NEWER), Storage(OLD)
    storage.away = True
    lab = Lab(keeper, storage)
    await lab.clocks.start()
    assert lab.woken
    assert keeper.heard is not None
    keeper.heard("gw", NEW)
    with pytest.raises(DatabaseError):
        await lab.clocks.apply_heard()
    assert lab.shown == []
    storage.away = False
    await lab.clocks.apply_heard()
    await lab.clocks.apply_heard()
    assert lab.shown == [(OLD, True), (NEWER, False), (NEW, False)]
    assert storage.known == [OLD, NEWER, NEW]


async def test_a_storage_that_went_back_is_given_what_it_lost_and_nothing_is_shown_twice() -> None:
    storage = Storage(OLD)
    lab = Lab(Keeper(OLD, NEWER, NEW), storage)
    await lab.clocks.start()
    shown, lab.woken = list(lab.shown), 0
    del storage.known[1:]
    storage.on_went_back()
    assert lab.woken
    storage.away = True
    with pytest.raises(DatabaseError):
        await lab.clocks.apply_heard()
    storage.away = False
    storage.on_went_back()
    await lab.clocks.apply_heard()
    assert storage.known == [OLD, NEWER, NEW]
    assert lab.shown == shown


async def test_commands_do_not_wait_for_all_that_a_storage_lost() -> None:
    storage = Storage()
    lab = Lab(Keeper(OLD, NEWER, NEW), storage)
    await lab.clocks.start()
    storage.known.clear()
    storage.on_went_back()
    for given, left in ((1, True), (2, True), (3, False)):
        lab.woken = 0
        await lab.clocks.apply_heard(for_s=0.0)
        assert (len(storage.known), bool(lab.woken)) == (given, left)
    assert storage.known == [OLD, NEWER, NEW]
