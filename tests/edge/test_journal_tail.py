"""The newest commits in memory, against a plain list of all."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from edge.contract import Commit, Lane
from edge.journal_tail import COMMIT_BYTES, Tail


@dataclass
class Model:
    """Every commit there was, and what was forgotten."""

    commits: list[Commit] = field(default_factory=list)
    gone: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))

    def past(self, lane: Lane, after_seq: int) -> list[Commit]:
        return [c for c in self.commits if c.lane is lane and c.first_seq + c.count > after_seq + 1]


commits = st.tuples(st.just("push"), st.sampled_from(Lane), st.integers(1, 5), st.integers(0, 300))
forgets = st.tuples(st.just("forget"), st.sampled_from(Lane), st.integers(0, 60), st.just(0))


@given(st.integers(0, 2000), st.lists(st.one_of(commits, commits, forgets), max_size=40))
def test_the_tail_has_all_that_is_newer_or_says_it_has_not(
    bytes_max: int, steps: list[tuple[str, Lane, int, int]]
) -> None:
    tail, model = Tail(bytes_max, dict.fromkeys(Lane, 0)), Model()
    next_seq = 1
    for word, lane, number, size in steps:
        if word == "push":
            commit = Commit(lane, next_seq, number, 0, bytes(size))
            next_seq += number
            model.commits.append(commit)
            tail.push(commit)
        else:
            before = {id(c) for c in tail if c.lane is lane}
            readings = tail.forget(lane, number)
            dropped = before - {id(c) for c in tail}
            assert readings == sum(c.count for c in model.commits if id(c) in dropped)
            assert all(
                c.first_seq + c.count - 1 <= number for c in model.commits if id(c) in dropped
            )
        assert tail.bytes <= bytes_max
        assert tail.bytes == sum(len(c.body) + COMMIT_BYTES for c in tail)
        for each in Lane:
            for after in range(0, next_seq + 2, 3):
                got = tail.read(each, after, 1 << 30, next_seq)
                if after < tail.after(each):
                    assert got is None
                else:
                    assert got == model.past(each, after)


def test_a_read_stops_at_its_bounds() -> None:
    tail = Tail(1 << 20, dict.fromkeys(Lane, 0))
    for at in range(5):
        tail.push(Commit(Lane.LIVE, 1 + at * 2, 2, 0, bytes(100)))
    firsts = [c.first_seq for c in tail.read(Lane.LIVE, 2, 250, 100) or []]
    assert firsts == [3, 5, 7]
    assert [c.first_seq for c in tail.read(Lane.LIVE, 0, 1 << 20, 4) or []] == [1, 3]


def test_what_was_on_the_disk_before_is_not_in_the_tail() -> None:
    tail = Tail(1 << 20, {Lane.URGENT: 0, Lane.LIVE: 9})
    assert tail.read(Lane.LIVE, 8, 100, 100) is None
    assert tail.read(Lane.LIVE, 9, 100, 100) == []
    assert tail.read(Lane.URGENT, 0, 100, 100) == []
