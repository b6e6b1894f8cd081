"""The picture of the ledger: one line of cells, the worst shown, and when what is there came."""

from __future__ import annotations

from cloud.ledger import Balance
from cloud.ledger_account import SourceBalance
from cloud.ledger_picture import marks, picture

KEY = ("gw", 7)
AT_US = 1_700_000_000_000_000  # 2023-11-14T22:13:20Z


def balance_of(assigned: int, **where: tuple[tuple[int, int], ...]) -> Balance:
    counts = {place: sum(b - a + 1 for a, b in ranges) for place, ranges in where.items()}
    return Balance(
        (
            SourceBalance(
                "gw", 7, assigned, counts.get("stored", 0), counts.get("stored", 0), 0, 0,
                counts.get("edge", 0), 0, (), where.get("missing", ()), (), (), (), (),
                where=tuple(where.items()),
            ),
        )
    )  # fmt: skip


def test_one_missing_reading_among_a_million_is_seen() -> None:
    report = balance_of(
        1_000_000,
        stored=((1, 499_999), (500_001, 1_000_000)),
        missing=((500_000, 500_000),),
    )
    lines = picture(report, {KEY: 1}, AT_US, cells=32)
    assert lines[1] == f"  |{'#' * 15}!{'#' * 16}|"
    assert lines[2] == "  # stored 999,999   ! missing 1"
    assert lines[3] == "  a cell is 31,250 readings, and shows the worst of them"


def test_what_came_has_a_time_and_what_waits_has_none() -> None:
    report = balance_of(640, stored=((1, 320),), edge=((321, 640),))
    since = {KEY: 1}
    asked = marks(report, since, 64)
    assert asked == {KEY: [1, 161, 321, 481]}
    came = {(KEY, seq): AT_US + seq * 1_000_000 for seq in (1, 161, 321)}
    lines = picture(report, since, AT_US, came=came)
    assert lines[1] == f"  |{'#' * 32}{'.' * 32}|"
    # the third is known only by the batch before it
    assert lines[2] == "   22:13:21        22:16:01        not here        not here"


def test_what_is_old_and_settled_is_left_out() -> None:
    report = balance_of(10, stored=((1, 10),))
    assert picture(report, {}, AT_US)[0].startswith("nothing has come since 2023-11-14T22:13:20")
    assert marks(report, {}, 64) == {}
