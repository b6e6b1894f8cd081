"""Answers as people and programs want them: a table, JSON, CSV, or a plot in the terminal.

JSON is one array with an object a line. A payload that is JSON is a JSON value there, other text a
string (`payload`), and anything else base64 (`payload_base64`); CSV has the JSON value, the text
or `base64:...`. Identity is `gateway`, `epoch` (16 hex digits) and `seq`.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Iterator
from typing import Any

from cloud.fields import MISSING, number
from cloud.query import QueryError, QueryResult, ReadingRow, Step
from cloud.query_time import iso
from cloud.sinks.schema import epoch_text

__all__ = ["FORMATS", "formatted", "payload_json", "row_json", "step_json"]

FORMATS = ("table", "json", "csv", "plot")
_CELL_CHARS_MAX = 200
_PLOT_MARKERS = ("hd", "o", "x", "+", "*", "#", "@", "a", "b", "c")  # when colour cannot tell


def formatted(
    result: QueryResult, form: str, *, width: int = 100, height: int = 24, color: bool = False
) -> str:
    """Return an answer as text that UTF-8 can hold, without a newline at its end.

    Args:
        result: The answer.
        form: One of FORMATS.
        width: Of a table or plot, characters.
        height: Of a plot, lines.
        color: Tell the lines of a plot apart by colour instead of marks.

    Raises:
        QueryError: a plot of what has no numbers, or a package is missing; one line.
    """
    if form == "json":
        lines = [json.dumps(one, ensure_ascii=False) for one in _objects(result)]
        text = "[" + ",\n ".join(lines) + "]"
    elif form == "csv":
        text = _csv(result)
    elif form == "plot":
        text = _plot(result, width, height, color=color)
    else:
        text = _table(result, width)
    # half of a surrogate pair, as JSON may have it, is written as JSON writes it
    return text.encode("utf-8", "backslashreplace").decode()


def row_json(row: ReadingRow) -> dict[str, Any]:
    """Return a reading as JSON values."""
    shown: dict[str, Any] = {
        "time": iso(row.time_us),
        "time_us": row.time_us,
        "device": row.device,
        "topic": row.topic,
        **payload_json(row.payload),
        "gateway": row.gateway,
        "epoch": epoch_text(row.epoch),
        "seq": row.seq,
        "received_us": row.received_us,
        "qos": row.qos,
    }
    if row.value is not MISSING:
        shown["value"] = _finite(row.value)
    return shown


def step_json(step: Step) -> dict[str, Any]:
    """Return a step as JSON values."""
    return {
        "time": iso(step.time_us),
        "time_us": step.time_us,
        "device": step.device,
        "topic": step.topic,
        "value": step.value,
        "count": step.count,
    }


def payload_json(payload: bytes) -> dict[str, Any]:
    """Return a payload under the key that says how it is written."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload).decode("ascii")}
    try:
        return {"payload": json.loads(text, parse_constant=_refuse, parse_float=_finite_float)}
    except (ValueError, RecursionError):
        return {"payload": text}


def _refuse(constant: str) -> float:
    raise ValueError(constant)  # NaN and Infinity are not JSON


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _finite(value: object) -> object:
    """Return a value that JSON can hold; numbers that it cannot as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value


def _objects(result: QueryResult) -> Iterator[dict[str, Any]]:
    yield from map(row_json, result.rows)
    yield from map(step_json, result.steps)


def _cell(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(_finite(value), ensure_ascii=False)


def _payload_text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(payload).decode("ascii")


def _csv(result: QueryResult) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if result.query.every_us is not None:
        writer.writerow(["time", "time_us", "device", "topic", "value", "count"])
        for step in result.steps:
            shown = step_json(step)
            writer.writerow([_cell(value) for value in shown.values()])
        return text.getvalue().rstrip("\n")
    value_column = ["value"] if result.query.field is not None else []
    names = ["time", "time_us", "device", "topic", *value_column, "payload"]
    writer.writerow([*names, "gateway", "epoch", "seq", "received_us", "qos"])
    for row in result.rows:
        value = [_cell(row.value)] if value_column else []
        writer.writerow(
            [iso(row.time_us), row.time_us, row.device, row.topic, *value,
             _payload_text(row.payload), row.gateway, epoch_text(row.epoch), row.seq,
             row.received_us, row.qos]
        )  # fmt: skip
    return text.getvalue().rstrip("\n")


def _table(result: QueryResult, width: int) -> str:
    try:
        from rich import box  # noqa: PLC0415 - only the cloud's install has it
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        raise QueryError("format: a table needs `pip install 'tidegate[cloud]'`") from None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    steps = result.query.every_us is not None
    table.add_column("time", no_wrap=True)
    table.add_column("device")
    table.add_column("topic")
    shows_value = steps or result.query.field is not None
    table.add_column(result.query.aggregate if steps else "value" if shows_value else "payload")
    table.add_column("count" if steps else "identity", no_wrap=True)
    for step in result.steps:
        cells = (iso(step.time_us), step.device, step.topic, f"{step.value:g}", str(step.count))
        table.add_row(*(Text(_printable(cell)) for cell in cells))
    for row in result.rows:
        shown = _cell(row.value) if shows_value else _payload_text(row.payload)
        identity = f"{row.gateway}/{epoch_text(row.epoch)[:8]}/{row.seq}"
        cells = (iso(row.time_us), row.device, row.topic, shown, identity)
        table.add_row(*(Text(_printable(cell)) for cell in cells))
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, emoji=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split("\n"))


def _printable(text: str) -> str:
    """Return text that cannot move the cursor or colour the terminal, cut to a cell."""
    cut = text if len(text) <= _CELL_CHARS_MAX else text[:_CELL_CHARS_MAX] + "…"
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in cut)


def _plot(result: QueryResult, width: int, height: int, *, color: bool) -> str:
    try:
        import plotext  # noqa: PLC0415 - only the cloud's install has it
    except ImportError:
        raise QueryError("format: a plot needs `pip install 'tidegate[cloud]'`") from None
    series = _series(result)
    if not series:
        raise QueryError("format: nothing here is a number, so nothing to plot; try --field")
    first_us = min(points[0][0] for points in series.values())
    last_us = max(points[-1][0] for points in series.values())
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, height)
    figure.theme("default" if color else "colorless")
    marks = sorted({first_us, (first_us + last_us) // 2, last_us})
    figure.ruler("x").ticks(
        [(mark - first_us) / 1e6 for mark in marks], [iso(mark)[:19] for mark in marks]
    )
    for (name, points), marker in zip(sorted(series.items()), _PLOT_MARKERS, strict=False):
        seconds = [(time_us - first_us) / 1e6 for time_us, _ in points]
        signal = figure.signal(
            seconds, [value for _, value in points], marker="hd" if color else marker
        )
        signal.label(_printable(name))
        signal.lines()
        figure.draw(signal)
    drawn = str(figure.build())
    text: str = drawn if color else plotext.uncolorize(drawn)
    left = len(series) - len(_PLOT_MARKERS)
    more = f"\n{left} more not shown; ask for fewer devices" if left > 0 else ""
    return "\n".join(line.rstrip() for line in text.rstrip().split("\n")) + more


def _series(result: QueryResult) -> dict[str, list[tuple[int, float]]]:
    """Return points by topic, in order of time."""
    series: dict[str, list[tuple[int, float]]] = {}
    for step in result.steps:
        series.setdefault(step.topic, []).append((step.time_us, step.value))
    for row in result.rows:
        value = row.value
        if value is MISSING:  # no field was asked for: the payload may be a number itself
            value = payload_json(row.payload).get("payload")
        if (found := number(value)) is not None:
            series.setdefault(row.topic, []).append((row.time_us, found))
    for points in series.values():
        points.sort()
    return series
