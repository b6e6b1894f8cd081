"""Questions about stored readings: what is found, in what order and steps, and how it is told."""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud import query_cli
from cloud.database import DatabaseError
from cloud.query import AGGREGATES, QueryError, QueryResult, ReadingsQuery, ask
from cloud.query_format import formatted
from cloud.query_time import iso, parse_duration, parse_time
from tests.kit.alerts import batch, second, us
from tests.kit.storage import stored

MINUTE_US = 60_000_000


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two boilers with JSON each 10 s, a fan with plain numbers each minute, and odd payloads."""
    path = tmp_path_factory.mktemp("query") / "storage.db"
    boilers = [
        (10 * n, f"devices/boiler-{n % 2}/state", {"t": [n, n / 2], "ok": n % 3 == 0})
        for n in range(60)
    ]
    fans = [(60 * n, "devices/fan/speed", n * 100) for n in range(10)]
    odd = [
        (0, "devices/odd/a", b"\xff\x00"),
        (1, "devices/odd/b", b""),
        (2, "devices/odd/c", b'<b>\x1b[31m"x",y'),
        (3, "devices/odd/d", b'{"t": NaN}'),
        (4, "devices/odd/e", b'{"t": 1e999}'),
    ]
    entries = [
        batch(boilers, received=600, first_seq=1),
        batch(fans, received=601, first_seq=100),
        batch(odd, received=602, first_seq=200, gateway="gw2"),
    ]

    async def write() -> None:
        async with stored(path, *entries):
            pass

    asyncio.run(write())
    return path


def seconds(result: QueryResult) -> list[float]:
    return [second(row.time_us) for row in result.rows]


# ---- rows ----------------------------------------------------------------------------------------


async def test_newest_first_within_the_limit(storage: Path) -> None:
    result = await ask(storage, ReadingsQuery(devices=("boiler-0",), limit=3))
    assert seconds(result) == [580, 560, 540]
    row = result.rows[0]
    assert (row.device, row.topic, row.gateway, row.epoch, row.seq, row.qos) == (
        "boiler-0", "devices/boiler-0/state", "gw", 7, 59, 1,
    )  # fmt: skip
    assert row.payload == b'{"t": [58, 29.0], "ok": false}'


async def test_time_range_is_half_open(storage: Path) -> None:
    query = ReadingsQuery(
        devices=("boiler-*",), start_us=us(100), end_us=us(130), newest_first=False
    )
    assert seconds(await ask(storage, query)) == [100, 110, 120]


@pytest.mark.parametrize(
    ("keys", "devices"),
    [
        ({"devices": ("boiler-[!0]",)}, {"boiler-1"}),
        ({"devices": ("fan", "o*")}, {"fan", "odd"}),
        ({"topic": "devices/+/speed"}, {"fan"}),
        ({"topic": "devices/fan/speed"}, {"fan"}),
        ({"topic": "devices/fan/#"}, {"fan"}),
        ({"devices": ("nobody",)}, set()),
        ({"devices": ("BOILER-0",)}, set()),
    ],
)
async def test_devices_and_topics(storage: Path, keys: dict[str, Any], devices: set[str]) -> None:
    result = await ask(storage, ReadingsQuery(**keys))
    assert {row.device for row in result.rows} == devices


async def test_field_keeps_only_readings_that_have_it(storage: Path) -> None:
    query = ReadingsQuery(field="t[1]", newest_first=False, limit=4)
    result = await ask(storage, query)
    assert [(row.device, row.value) for row in result.rows] == [
        ("boiler-0", 0.0), ("boiler-1", 0.5), ("boiler-0", 1.0), ("boiler-1", 1.5),
    ]  # fmt: skip


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("field", [None, "ok"])
async def test_pages_give_every_row_once(
    storage: Path, newest_first: bool, field: str | None
) -> None:
    whole = await ask(storage, ReadingsQuery(field=field, newest_first=newest_first, limit=999))
    assert whole.next == ""
    rows, after = [], ""
    while True:
        page = await ask(
            storage, ReadingsQuery(field=field, newest_first=newest_first, limit=7, after=after)
        )
        rows += page.rows
        if not page.next:
            break
        assert len(page.rows) == 7
        after = page.next
    assert rows == whole.rows
    assert len(rows) == (60 if field else 75)


# ---- steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", AGGREGATES)
async def test_steps_against_a_naive_count(storage: Path, aggregate: str) -> None:
    result = await ask(
        storage,
        ReadingsQuery(
            devices=("boiler-*",), field="t[0]", every_us=MINUTE_US, aggregate=aggregate,
            newest_first=False, start_us=us(35),
        ),
    )  # fmt: skip
    groups: dict[tuple[int, str], list[float]] = {}
    for n in range(4, 60):
        at_us = us(10 * n) // MINUTE_US * MINUTE_US
        groups.setdefault((at_us, f"boiler-{n % 2}"), []).append(float(n))
    compute = {
        "mean": lambda values: sum(values) / len(values),
        "min": min,
        "max": max,
        "last": lambda values: values[-1],
        "count": len,
    }[aggregate]
    assert [(step.time_us, step.device, step.value, step.count) for step in result.steps] == [
        (at_us, device, pytest.approx(compute(values)), len(values))  # type: ignore[operator]
        for (at_us, device), values in sorted(groups.items())
    ]


async def test_steps_newest_first_are_the_newest(storage: Path) -> None:
    query = ReadingsQuery(devices=("fan",), every_us=2 * MINUTE_US, aggregate="last", limit=2)
    result = await ask(storage, query)
    assert [step.value for step in result.steps] == [900, 800]  # 22:13:20 is within an even minute


async def test_topics_of_a_device_are_not_mixed(tmp_path: Path) -> None:
    rows = [(0, "devices/d/t", 20), (1, "devices/d/h", 60)]
    async with stored(tmp_path / "s.db", batch(rows, received=1)):
        result = await ask(tmp_path / "s.db", ReadingsQuery(every_us=MINUTE_US))
    assert {(step.topic, step.value) for step in result.steps} == {
        ("devices/d/t", 20.0),
        ("devices/d/h", 60.0),
    }


async def test_too_many_steps_are_one_line(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.query.GROUPS_MAX", 5)
    with pytest.raises(QueryError, match=r"every: more than 5 steps; make them longer"):
        await ask(storage, ReadingsQuery(devices=("fan",), every_us=1_000_000))


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"topic": "a/#/b"}, "topic: "),
        ({"aggregate": "median"}, "agg: 'median' is none of mean, min, max, last, count"),
        ({"limit": 0}, "limit: expected 1 or more, got 0"),
        ({"field": "a["}, "field: 'a[' is no path"),
        ({"start_us": 5, "end_us": 5}, "until: is not after since"),
        ({"after": "x"}, "after: 'x' is not the 'next' of a page"),
        ({"after": "1.2", "every_us": 5}, "after: steps have no pages"),
        ({"devices": ("a",) * 101}, "devices: at most 100, got 101"),
    ],
)
def test_question_that_makes_no_sense_is_one_line(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(QueryError) as raised:
        ReadingsQuery(**keys)
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("every_us", [None, 1_000_000])
async def test_question_that_takes_too_long_is_given_up(
    storage: Path, every_us: int | None
) -> None:
    with pytest.raises(QueryError, match=r"took longer than -1 s; ask for fewer devices"):
        await ask(storage, ReadingsQuery(every_us=every_us, field=""), timeout_s=-1)


async def test_files_that_are_not_there_or_not_ours(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="no such file"):
        await ask(tmp_path / "none.db", ReadingsQuery())
    (tmp_path / "text.db").write_text("hello " * 1_000)
    with pytest.raises(DatabaseError, match="not a database"):
        await ask(tmp_path / "text.db", ReadingsQuery())


async def test_extreme_times_are_no_error(storage: Path) -> None:
    query = ReadingsQuery(start_us=-(1 << 80), end_us=1 << 80, limit=1)
    assert len((await ask(storage, query)).rows) == 1


# ---- times ---------------------------------------------------------------------------------------

NOW_US = 1_763_712_000_000_000  # 2025-11-21T08:00Z


@pytest.mark.parametrize(
    ("text", "moment_us"),
    [
        ("now", NOW_US),
        ("-2h", NOW_US - 7_200_000_000),
        ("now-1d12h", NOW_US - 129_600_000_000),
        ("-1.5s", NOW_US - 1_500_000),
        ("1763712000", NOW_US),
        ("1763712000.5", NOW_US + 500_000),
        ("1763712000000", NOW_US),
        ("1763712000000000", NOW_US),
        ("2025-11-21T08:00", NOW_US),
        ("2025-11-21T08:00:00.123456Z", NOW_US + 123_456),
        ("2025-11-21T09:00+01:00", NOW_US),
        ("2025-11-21", NOW_US - 8 * 3_600_000_000),
        (" 2025-11-21 ", NOW_US - 8 * 3_600_000_000),
        ("0", 0),
    ],
)
def test_times(text: str, moment_us: int) -> None:
    assert parse_time(text, NOW_US) == moment_us


@pytest.mark.parametrize("text", ["", "yesterday", "-", "-2", "2h", "now+1h", "--2h", "1e9", "-2x"])
def test_what_is_no_time_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no (time|duration)") as raised:
        parse_time(text, NOW_US)
    assert "\n" not in str(raised.value)


def test_durations() -> None:
    assert parse_duration("1h30m") == 5_400_000_000
    assert parse_duration("500ms") == 500_000
    for text in ("", "5", "m", "1h 5m", "0s", "9" * 40 + "w", "-5m"):
        with pytest.raises(ValueError, match="is no duration"):
            parse_duration(text)


@given(st.integers(-(1 << 62), 1 << 62))
def test_any_moment_can_be_shown(time_us: int) -> None:
    assert iso(time_us)


def test_iso_keeps_milliseconds() -> None:
    assert iso(NOW_US + 1_999) == "2025-11-21T08:00:00.001Z"
    assert iso(-1) == "1969-12-31T23:59:59.999Z"


# ---- formats -------------------------------------------------------------------------------------


async def test_json_is_one_array_that_holds_any_payload(storage: Path) -> None:
    result = await ask(storage, ReadingsQuery(devices=("odd",), newest_first=False))
    shown = json.loads(formatted(result, "json"))
    assert [one.get("payload", one.get("payload_base64")) for one in shown] == [
        "/wA=", "", '<b>\x1b[31m"x",y', '{"t": NaN}', '{"t": 1e999}',
    ]  # fmt: skip
    assert shown[0] == {
        "time": "2023-11-14T22:13:20.000Z",
        "time_us": us(0),
        "device": "odd",
        "topic": "devices/odd/a",
        "payload_base64": "/wA=",
        "gateway": "gw2",
        "epoch": "0000000000000007",
        "seq": 200,
        "received_us": us(602),
        "qos": 1,
    }
    nothing = await ask(storage, ReadingsQuery(devices=("nobody",)))
    assert json.loads(formatted(nothing, "json")) == []


async def test_half_of_a_surrogate_pair_can_be_printed(storage: Path) -> None:
    result = await ask(storage, ReadingsQuery(devices=("fan",), field="", limit=1))
    halves = replace(result, rows=[replace(result.rows[0], payload=b'"\\ud800"', value="\ud800")])
    (shown,) = json.loads(formatted(halves, "json").encode())
    assert (shown["payload"], shown["value"]) == ("\ud800", "\ud800")
    for form in ("csv", "table"):
        assert formatted(halves, form).encode()


async def test_csv_can_be_read_back(storage: Path) -> None:
    result = await ask(storage, ReadingsQuery(devices=("odd",), newest_first=False))
    rows = list(csv.DictReader(io.StringIO(formatted(result, "csv"))))
    assert [row["payload"] for row in rows][:3] == ["base64:/wA=", "", '<b>\x1b[31m"x",y']
    assert rows[0]["epoch"] == "0000000000000007"
    fields = await ask(storage, ReadingsQuery(devices=("boiler-0",), field="t", limit=1))
    (row,) = csv.DictReader(io.StringIO(formatted(fields, "csv")))
    assert row["value"] == "[58, 29.0]"
    steps = await ask(storage, ReadingsQuery(devices=("fan",), every_us=600 * 1_000_000))
    assert formatted(steps, "csv").splitlines()[0] == "time,time_us,device,topic,value,count"


async def test_table_lets_no_payload_move_the_cursor(storage: Path) -> None:
    result = await ask(storage, ReadingsQuery(devices=("odd",), topic="devices/odd/c"))
    text = formatted(result, "table", width=120)
    assert "\x1b" not in text
    assert '<b>\\x1b[31m"x",y' in text
    assert "gw2/00000000/202" in text
    steps = await ask(storage, ReadingsQuery(devices=("fan",), every_us=600 * 1_000_000))
    assert "mean" in formatted(steps, "table", width=120)


async def test_plot_draws_numbers_and_says_when_there_are_none(storage: Path) -> None:
    fan = await ask(storage, ReadingsQuery(devices=("fan",)))
    text = formatted(fan, "plot", width=80, height=20)
    assert "900" in text
    assert "devices/fan/speed" in text
    assert "2023-11-14T22:13:20" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    odd = await ask(storage, ReadingsQuery(devices=("odd",)))
    with pytest.raises(QueryError, match="nothing here is a number"):
        formatted(odd, "plot")


# ---- command -------------------------------------------------------------------------------------


def command(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    query_cli.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def run_command(storage: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = query_cli.run(command("--db", str(storage), *arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_command_prints_what_was_asked(run_command: Any) -> None:
    code, out, err = run_command(
        "boiler-1", "--field", "t[0]", "--since", "2023-11-14T22:22:00", "--until", "now",
        "--format", "json", "--order", "asc",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert [one["value"] for one in json.loads(out)] == [53, 55, 57, 59]


def test_relative_times_need_no_equals_sign(run_command: Any) -> None:
    code, out, _ = run_command("--since", "-2h30m", "--until", "-1h", "--format", "json")
    assert (code, json.loads(out)) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--since", "soon"], 2, "tidegate query: 'soon' is no time; write now, -2h,"),
        (["--every", "5"], 2, "tidegate query: '5' is no duration"),
        (["--limit", "-3"], 2, "tidegate query: limit: expected 1 or more, got -3"),
        (["odd", "--format", "plot"], 1, "tidegate query: format: nothing here is a number"),
        (
            ["--db", "/nonexistent/storage.db"],
            1,
            "tidegate query: /nonexistent/storage.db: no such",
        ),
    ],
)
def test_command_fails_in_one_line(
    run_command: Any, arguments: Sequence[str], code: int, line: str
) -> None:
    got, out, err = run_command(*arguments)
    assert (got, out) == (code, "")
    assert err.startswith(line)
    assert err.count("\n") == 1
