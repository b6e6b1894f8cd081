"""Turns on the link: shares held, unused share lent, nobody starved."""

from __future__ import annotations

import random

import pytest

from bridge.envelope import LinkLane
from bridge.link_shares import Shares

URGENT, LIVE, BACKLOG = LinkLane.URGENT, LinkLane.LIVE, LinkLane.BACKLOG
BOTH = {LIVE, BACKLOG}


def carried(
    shares: Shares, sizes: dict[LinkLane, int], turns: int, *, round_bytes: int = 20_000
) -> dict[LinkLane, int]:
    """Let both lanes always have a batch; return the bytes of each."""
    sent = dict.fromkeys(sizes, 0)
    for _ in range(turns):
        lane = shares.next(BOTH, BOTH, round_bytes)
        assert lane is not None
        shares.sent(lane, sizes[lane], round_bytes)
        sent[lane] += sizes[lane]
    return sent


@pytest.mark.parametrize("backlog_share", [0.05, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("sizes", [(1000, 1000), (200, 15_000), (15_000, 200), (50_000, 50_000)])
def test_both_get_their_share_of_the_bytes_whatever_their_batches(
    backlog_share: float, sizes: tuple[int, int]
) -> None:
    sent = carried(Shares(backlog_share), {LIVE: sizes[0], BACKLOG: sizes[1]}, 20_000)
    assert sent[BACKLOG] / sum(sent.values()) == pytest.approx(backlog_share, rel=0.1)


def test_urgent_goes_before_all_others() -> None:
    shares = Shares(0.3)
    assert shares.next({URGENT, LIVE, BACKLOG}, {URGENT, *BOTH}, 1000) is URGENT


def test_live_has_the_first_turn() -> None:
    assert Shares(0.9).next(BOTH, BOTH, 10_000) is LIVE


def test_a_share_that_is_not_used_is_lent_and_not_owed() -> None:
    shares = Shares(0.3)
    for _ in range(1000):
        assert shares.next({BACKLOG}, {BACKLOG}, 10_000) is BACKLOG
        shares.sent(BACKLOG, 5000, 10_000)
    sent = carried(shares, {LIVE: 500, BACKLOG: 500}, 2000)
    assert sent[BACKLOG] / sum(sent.values()) == pytest.approx(0.3, rel=0.1)


def test_a_lane_that_gathers_keeps_its_debt_and_does_not_starve_the_other() -> None:
    """Live is ready only every other time, as it is with linger on a slow link."""
    shares = Shares(0.3)
    sent = dict.fromkeys(BOTH, 0)
    for n in range(10_000):
        ready = BOTH if n % 2 else {BACKLOG}
        lane = shares.next(ready, BOTH, 4000)
        assert lane is not None
        shares.sent(lane, 1500, 4000)
        sent[lane] += 1500
    assert sent[BACKLOG] >= 0.3 * sum(sent.values())
    assert sent[LIVE] >= 0.4 * sum(sent.values())


def test_nothing_ready_is_nobodys_turn() -> None:
    assert Shares(0.3).next(set(), BOTH, 1000) is None


def test_over_any_stretch_a_lane_lacks_at_most_two_rounds_and_a_batch() -> None:
    rng = random.Random(3)
    shares, round_bytes = Shares(0.3), 10_000
    total, backlog = 0, 0
    for _ in range(5000):
        lane = shares.next(BOTH, BOTH, round_bytes)
        assert lane is not None
        size = rng.randrange(100, 9000)
        shares.sent(lane, size, round_bytes)
        total += size
        backlog += size if lane is BACKLOG else 0
        assert abs(backlog - 0.3 * total) <= 2 * round_bytes + 9000
