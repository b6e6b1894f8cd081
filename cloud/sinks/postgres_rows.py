"""Readings as rows of PostgreSQL's table (cloud/sinks/postgres_schema.py), for COPY."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, repeat
from typing import Any

from bridge.intervals import IntervalSet
from bridge.readings import FLAG_QOS_MASK, FLAG_RETAIN
from cloud.sinks.contract import DecodedEntry
from cloud.sinks.schema import epoch_to_sql

__all__ = ["Row", "payload_columns", "rows_of_entry"]

Row = tuple[Any, ...]


def rows_of_entry(
    one: DecodedEntry, times_us: Sequence[int], present: IntervalSet | None
) -> list[Row]:
    """Return an entry's readings as records, in the order of `postgres_schema.COLUMNS`.

    Columns are made one by one and zipped: a third of the time of making rows one by one.

    Args:
        one: The entry.
        times_us: Of each reading, corrected.
        present: Seqs to leave out; None = none.
    """
    entry, readings = one.entry, one.readings
    sources = readings.sources
    texts, others = payload_columns(readings.payloads)
    rows = zip(
        repeat(entry.gateway),
        repeat(epoch_to_sql(entry.epoch)),
        readings.seqs,
        [sources[index][1] for index in readings.source_index],
        [sources[index][0] for index in readings.source_index],
        times_us,
        repeat(entry.appended_us),
        [flags & FLAG_QOS_MASK for flags in readings.flags],
        texts,
        others,
        [True if flags & FLAG_RETAIN else None for flags in readings.flags],
        [block or None for block in readings.properties] or repeat(None),
        strict=False,  # of those that repeat there is no end
    )
    if present:
        return list(compress(rows, [seq not in present for seq in readings.seqs]))
    return list(rows)


def payload_columns(payloads: Sequence[bytes]) -> tuple[list[str | None], list[bytes | None]]:
    """Return the payloads that are UTF-8 without NUL, and those that are not; None elsewhere."""
    try:
        texts: list[str | None] = [payload.decode() for payload in payloads]
    except UnicodeDecodeError:
        texts = [_text(payload) for payload in payloads]
    if "\0" in "".join(filter(None, texts)):
        texts = [None if text is not None and "\0" in text else text for text in texts]
    return texts, [
        payload if text is None else None for payload, text in zip(payloads, texts, strict=True)
    ]


def _text(payload: bytes) -> str | None:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None
