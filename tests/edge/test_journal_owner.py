"""A journal is of one gateway: its readings' identity does not change with a name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge.config import EdgeConfig, EdgeHttpConfig
from edge.contract import Lane
from edge.journal_schema import JournalError
from edge.service import EdgeService
from runtime.clock import SystemClock
from runtime.service import StartError
from tests.kit.journal_files import fill, flip, journal_at, look, page_of, payloads_in, read_all


async def test_another_gateways_journal_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    async with journal_at(tmp_path, gateway="gw-1") as journal:
        payloads = await fill(journal, 2)
    before = (tmp_path / "journal.db").read_bytes()
    with pytest.raises(JournalError, match="readings of gateway 'gw-1', and this is 'gw-2'") as no:
        async with journal_at(tmp_path, gateway="gw-2"):
            pass
    assert no.value.kind == "foreign"
    assert (tmp_path / "journal.db").read_bytes() == before
    async with journal_at(tmp_path, gateway="gw-1") as journal:
        assert payloads_in(await read_all(journal)) == payloads


async def test_a_journal_whose_readings_are_gone_up_is_still_its_gateways(tmp_path: Path) -> None:
    async with journal_at(tmp_path, gateway="gw-1") as journal:
        await fill(journal, 2)
        await journal.trim(Lane.LIVE, 6)
    with pytest.raises(JournalError, match="gw-1"):
        async with journal_at(tmp_path, gateway="gw-2"):
            pass


async def test_a_journal_that_took_nothing_yet_takes_another_name(tmp_path: Path) -> None:
    for name in ("raspberrypi", "hall-7"):  # a card that was made ready before it was named
        async with journal_at(tmp_path, gateway=name):
            pass
    assert look(tmp_path, "SELECT id, gateway FROM owner") == [(1, "hall-7")]


async def test_a_journal_of_before_takes_the_name_it_is_opened_by(tmp_path: Path) -> None:
    async with journal_at(tmp_path, gateway="gw-1") as journal:
        await fill(journal, 2)
    look(tmp_path, "DROP TABLE owner")
    async with journal_at(tmp_path, gateway="gw-2"):
        pass
    with pytest.raises(JournalError, match="gw-2"):
        async with journal_at(tmp_path, gateway="gw-1"):
            pass


async def test_salvage_keeps_whose_it_is(tmp_path: Path) -> None:
    async with journal_at(tmp_path, gateway="gw-1") as journal:
        payloads = await fill(journal, 60, size=900)
    flip(tmp_path / "journal.db", page_of(tmp_path, payloads[90]), 16)
    with pytest.raises(JournalError, match="gw-1"):
        async with journal_at(tmp_path, gateway="gw-2"):
            pass
    async with journal_at(tmp_path, gateway="gw-1") as journal:
        assert len(payloads_in(await read_all(journal))) > 150


async def test_a_renamed_gateway_does_not_start_and_says_what_to_do(tmp_path: Path) -> None:
    async with journal_at(tmp_path / "edge", gateway="gw-1") as journal:
        await fill(journal, 1)
    config = EdgeConfig(
        data=tmp_path, gateway="gw-2", host="127.0.0.1", port=0, http=EdgeHttpConfig(port=0)
    )
    service = EdgeService(config, SystemClock())
    hint = re.escape("set gateway = 'gw-1', or give 'gw-2' a --data of its own")
    with pytest.raises(StartError, match=hint):
        await service.start()
    await service.stop()
