"""The runs a journal keeps: which, and in which order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bridge.runs import RUNS_MAX, Fork, Origin, Run, judge
from edge.contract import Lane
from edge.journal_runs import begin_run
from edge.journal_state import Parting
from tests.kit.journal_files import fill, journal_at, read_all


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as made:
        yield made


def test_however_often_it_starts_the_cloud_finds_where_its_line_goes_on(
    connection: sqlite3.Connection,
) -> None:
    known = [begin_run(connection, number)[-1] for number in range(3)]
    for number in range(3, 3 * RUNS_MAX):
        runs = begin_run(connection, number)
    assert len(runs) == RUNS_MAX
    assert runs[-1].after_seq == 3 * RUNS_MAX - 1
    admitted = judge(7, known, runs, 2)
    assert isinstance(admitted, tuple)
    assert admitted[-1] == runs[-1]


def test_the_run_of_a_mark_comes_before_the_one_that_begins(
    connection: sqlite3.Connection,
) -> None:
    begin_run(connection, 100)
    missed = Run(5, 200)
    assert begin_run(connection, 300, missed)[1:-1] == (missed,)
    assert begin_run(connection, 400, missed).count(missed) == 1


def test_the_run_of_a_mark_of_another_line_is_left_out(connection: sqlite3.Connection) -> None:
    begin_run(connection, 900)
    runs = begin_run(connection, 5000, Run(5, 300))
    assert [one.after_seq for one in runs] == [900, 5000]


async def test_of_two_words_of_where_to_part_the_lower_counts(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await fill(journal, 3)  # seqs 1 to 9
        epoch = journal.epoch
        assert await journal.part(epoch, Fork(6, 77))
        for again in (Fork(6, 77), Fork(8, 78)):
            assert not await journal.part(epoch, again)
        # within a row, which goes with what follows
        assert await journal.part(epoch, Fork(4, 79))
        assert not await journal.part(epoch, Fork(4, 79))
        assert journal.parting == Parting(3, 79, {Lane.LIVE: 3, Lane.URGENT: 0})
        await journal.trim(Lane.LIVE, 3)
        await journal.maintain()
        assert (journal.epoch, journal.parting) == (79, None)
        assert [c.first_seq for c in await read_all(journal)] == [4, 7]
        for late in (Fork(4, 79), Fork(2, 80)):  # said before it parted, heard since
            assert not await journal.part(epoch, late)
        assert (journal.epoch, journal.parting) == (79, None)
        assert journal.origin == Origin(3, epoch)
