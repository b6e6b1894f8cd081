"""Turns at the loop: live work before backlog's, and backlog's all the same."""

from __future__ import annotations

import asyncio

import pytest

from cloud.turns import PIECE_COST, ROUND_COST, URGENT_COST, Turns

PIECES = ROUND_COST // PIECE_COST  # without bytes, that a round begins


class Lab:
    """Works on pieces, and notes in which round of the loop each was begun."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.round = 0
        self.begun: list[tuple[int, str]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def work(self, name: str, *, later: bool = False, size: int = 0) -> None:
        self.tasks.append(asyncio.create_task(self._work(name, later=later, size=size)))

    async def _work(self, name: str, *, later: bool, size: int) -> None:
        turn = self.turns.ask(size, later=later)
        if turn is not None:
            await self.turns.wait(turn)
        self.begun.append((self.round, name))

    async def rounds(self, count: int = 100) -> None:
        for _ in range(count):
            await asyncio.sleep(0)
            self.round += 1

    def in_rounds(self) -> list[int]:
        """Return how many pieces each round began."""
        counts = [0] * (self.round + 1)
        for number, _ in self.begun:
            counts[number] += 1
        return [count for count in counts if count]


async def test_a_lone_piece_waits_for_nothing() -> None:
    turns = Turns()
    assert turns.ask(10**6, later=True) is None


@pytest.mark.parametrize(("later", "cost"), [(True, ROUND_COST), (False, URGENT_COST)])
async def test_a_round_begins_so_much_and_no_more(later: bool, cost: int) -> None:
    lab = Lab()
    for n in range(20 * PIECES):
        lab.work(str(n), later=later)
    await lab.rounds()
    assert max(lab.in_rounds()) == cost // PIECE_COST
    assert [int(name) for _, name in lab.begun] == list(range(20 * PIECES)), "in their order"
    assert lab.turns.waiting == 0


async def test_large_pieces_are_begun_one_a_round() -> None:
    lab = Lab()
    for n in range(5):
        lab.work(str(n), later=True, size=ROUND_COST)
    await lab.rounds()
    assert lab.in_rounds() == [1] * 5


async def test_what_is_live_goes_first_and_the_rest_is_not_forgotten() -> None:
    lab = Lab()
    for n in range(20 * PIECES):
        lab.work(f"later {n}", later=True)
    for n in range(20 * PIECES):
        lab.work(f"live {n}")
    await lab.rounds()
    last_live = max(number for number, name in lab.begun if name.startswith("live"))
    meanwhile = [name for number, name in lab.begun if number < last_live and "later" in name]
    # the first round is begun before anything live is known of
    assert 1 <= len(meanwhile) - PIECES <= 4, "one a round"
    assert len(lab.begun) == 40 * PIECES


async def test_large_pieces_of_backlog_do_not_keep_live_ones_out() -> None:
    lab = Lab()
    for n in range(20):
        lab.work(f"later {n}", later=True, size=ROUND_COST)
    for n in range(20):
        lab.work(f"live {n}", size=URGENT_COST)
    await lab.rounds()
    assert max(number for number, name in lab.begun if "live" in name) <= 21
    assert max(lab.in_rounds()) == 2


async def test_what_something_live_waits_for_is_hurried() -> None:
    turns = Turns()
    assert turns.ask(URGENT_COST, later=False) is None  # the round is full
    first, second, third = (turns.ask(ROUND_COST, later=True) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    third.hurry()
    third.hurry()
    order: list[int] = []
    for number, turn in enumerate((first, second, third)):
        turn.future.add_done_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]
    for _ in range(10):
        await asyncio.sleep(0)
    assert order == [2, 0, 1]
    third.hurry()  # too late, and harmless
    assert turns.waiting == 0


async def test_who_gives_up_holds_up_nobody() -> None:
    lab = Lab()
    for n in range(3 * PIECES):
        lab.work(str(n), later=True)
    await asyncio.sleep(0)
    for task in lab.tasks[PIECES:]:
        task.cancel()
    await asyncio.gather(*lab.tasks, return_exceptions=True)
    assert lab.turns.waiting == 0
    lab.work("after")
    await lab.rounds(5)
    assert lab.begun[-1][1] == "after"


@pytest.mark.parametrize("later", [False, True])
async def test_it_rests_when_there_is_nothing_to_do(later: bool) -> None:
    turns = Turns()
    assert turns.ask(1, later=later) is None
    for _ in range(5):
        await asyncio.sleep(0)
    assert not turns._running
