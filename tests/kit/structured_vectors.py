"""Golden bodies of the structured mode: tests/bridge/vectors/NAME.txt.

    python -m tests.kit.structured_vectors        makes them anew: only with a new format

A line a body: count, the body in hexadecimal, and the first 16 digits of the SHA-256 of what it
says and of its contexts' names. All bodies of a file are
of one connection; `cut` begins another one. The readings are the project's own, made from seeds.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from bridge.columnar import Columns
from bridge.structured import StructuredEncoder
from bridge.structured.context import Context
from bridge.structured.snapshot import digest
from tests.kit.columns import in_batches
from tests.kit.odd_payloads import odd_rows
from tests.kit.payload_shapes import messages

__all__ = ["FOLDER", "content_mark", "contexts_mark", "main", "vectors"]

FOLDER = Path(__file__).parent.parent / "bridge" / "vectors"
_SHAPES = ("smart-plug", "random-order", "odd-spellings", "full-floats", "modbus", "sparkplug")
_ODD = ("csv", "nmea", "hexadecimal", "cbor", "log-line", "encrypted")
_READINGS, _BATCH = 240, 40


def content_mark(columns: Columns) -> str:
    """Return what tells one batch's readings from another's."""
    sources = [columns.sources[place] for place in columns.source_index]
    readings = zip(sources, columns.times, columns.flags, columns.payloads, strict=True)
    return hashlib.sha256(repr(list(readings)).encode()).hexdigest()[:16]


def contexts_mark(contexts: list[Context]) -> str:
    """Return what tells the contexts behind a body."""
    return hashlib.sha256(b"".join(map(digest, contexts))).hexdigest()[:16]


def vectors() -> dict[str, list[str]]:
    """Return the lines of each file."""
    made = {}
    for shape in _SHAPES:
        made[shape] = _connection(in_batches(messages(shape, _READINGS), _BATCH))
    for kind in _ODD:
        made[kind] = _connection(in_batches(odd_rows(kind, 20), _BATCH))
    made["warm-start"] = _warm_start()
    made["backlog"] = _backlog()
    return made


def _line(encoder: StructuredEncoder, batch: Columns, *, keep: bool = False) -> str:
    body = encoder.encode(batch, keep=keep)
    assert body is not None
    marks = content_mark(batch), contexts_mark(encoder.contexts)
    return f"{len(batch)} {body.hex()} {' '.join(marks)}"


def _connection(batches: list[Columns]) -> list[str]:
    encoder = StructuredEncoder()
    return [_line(encoder, batch) for batch in batches]


def _warm_start() -> list[str]:
    batches = in_batches(messages("smart-plug", _READINGS), _BATCH)
    encoder, lines = StructuredEncoder(), []
    lines += [_line(encoder, batch, keep=at == 2) for at, batch in enumerate(batches[:3])]
    snapshot = encoder.snapshot()
    encoder.reset()
    encoder.restore(*snapshot)
    return [*lines, "cut", *(_line(encoder, batch) for batch in batches[3:])]


def _backlog() -> list[str]:
    live = in_batches(messages("line-protocol", _READINGS), _BATCH)
    late = [(time - 10**8, *rest) for time, *rest in messages("line-protocol", _READINGS, seed=2)]
    pairs = zip(live, in_batches([(t, topic, p) for t, topic, p in late], _BATCH), strict=True)
    encoder = StructuredEncoder()
    return [_line(encoder, batch) for pair in pairs for batch in pair]


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    for name, lines in vectors().items():
        (FOLDER / f"{name}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
