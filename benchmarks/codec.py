"""Codec: bytes and microseconds a reading of the link's modes, by corpus and batch size.

The whole of a corpus goes over one connection, cold start included: every batch through the
envelope's encoder and decoder, and what arrives is compared with what was sent. Body bytes are the
mode's own; batch bytes include the envelope. Times are of one core, of this process alone; behind
each stands its target, 15 us of one software and 40 of several. `mixed` is all traces of a folder
at once. The structured mode's inner loops are in C where they were built; `python -X
no-structured-kernel -m benchmarks.codec` measures those in Python.

    python -m benchmarks.codec ../shared/data               every trace in a folder
    python -m benchmarks.codec ../shared/data/z2m.cborseq.zst --batch 50
    python -m benchmarks.codec --shapes                     seeded payloads of other software
    python -m benchmarks.codec DATA --mode columnar --limit 5000 --columns
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bridge.batch import Decoder, Encoder
from bridge.columnar import Columns, Limits
from bridge.envelope import Mode
from bridge.readings import FLAG_PROPERTIES, FLAG_RETAIN, Readings
from bridge.structured import StructuredDecoder, StructuredEncoder
from bridge.structured.kernel import native
from device_sim.traces import Record, TraceError, read_trace
from mqtt.packets import PUBLISH
from mqtt.properties import encode_property_block
from tests.kit.payload_shapes import SHAPES, messages

__all__ = ["Result", "batches_of", "main", "measure"]

_SHAPE_MESSAGES = 10_000
_TARGET_US = 15.0
_MIXED_TARGET_US = 40.0
_MIXED = "mixed"
_BEGIN_MS = 1_760_000_000_000


@dataclass(frozen=True, slots=True)
class Result:
    """What a corpus cost."""

    readings: int
    payload_bytes: int
    body_bytes: int
    batch_bytes: int
    encode_s: float
    decode_s: float
    worst_s: float  # of encoding one batch


class _Counting:
    """A body encoder that counts the bytes it returns."""

    def __init__(self, inner: StructuredEncoder) -> None:
        self.inner = inner
        self.bytes = 0

    def reset(self) -> None:
        self.inner.reset()

    def encode(self, columns: Columns, reference: int) -> bytes | None:
        body = self.inner.encode(columns, reference)
        self.bytes += len(body or b"")
        return body


class _Decoding:
    """A body decoder for the envelope."""

    def __init__(self, inner: StructuredDecoder) -> None:
        self.inner = inner

    def reset(self) -> None:
        self.inner.reset()

    def decode(self, body: bytes, count: int, reference: int, limits: Limits) -> Columns:
        return self.inner.decode(body, count, reference, limits)


def batches_of(records: Sequence[Record], size: int) -> Iterable[Readings]:
    """Yield records as readings, `size` at a time; the device is the topic's second level."""
    for first in range(0, len(records), size):
        some = records[first : first + size]
        sources: dict[tuple[str, str], int] = {}
        index = []
        for record in some:
            levels = record.topic.split("/")
            device = levels[1] if len(levels) > 1 and levels[1] else record.topic
            index.append(sources.setdefault((record.topic, device), len(sources)))
        blocks = [
            encode_property_block(record.properties, PUBLISH) if record.properties else b""
            for record in some
        ]
        yield Readings(
            range(first + 1, first + 1 + len(some)),
            list(sources),
            index,
            [record.time_ms * 1000 for record in some],
            [
                record.qos | FLAG_RETAIN * record.retain | FLAG_PROPERTIES * bool(block)
                for record, block in zip(some, blocks, strict=True)
            ],
            [record.payload for record in some],
            blocks,
        )


def measure(records: Sequence[Record], size: int, mode: Mode) -> Result:
    """Return what the records cost at a batch size; fails loudly if one comes back changed."""
    batches = list(batches_of(records, size))
    counting = _Counting(StructuredEncoder())
    encoder = Encoder("bench", 1, bodies={Mode.STRUCTURED: counting})
    decoder = Decoder("bench", bodies={Mode.STRUCTURED: _Decoding(StructuredDecoder())})
    gc.collect()
    gc.freeze()
    total = encode_s = decode_s = worst_s = 0.0
    for batch in batches:
        started = time.process_time()
        data = encoder.encode(batch, mode=mode)
        took = time.process_time() - started
        encode_s += took
        worst_s = max(worst_s, took)
        total += len(data)
        started = time.process_time()
        found = decoder.decode(data).readings
        decode_s += time.process_time() - started
        if (list(found.payloads), list(found.times_us)) != (batch.payloads, batch.times_us):
            raise AssertionError("a batch came back changed")
    gc.unfreeze()
    return Result(
        len(records),
        sum(len(record.payload) for record in records),
        counting.bytes,
        int(total),
        encode_s,
        decode_s,
        worst_s,
    )


def _print_row(name: str, size: int, result: Result) -> None:
    n = result.readings
    target_us = _MIXED_TARGET_US if name == _MIXED else _TARGET_US
    times_us = (result.encode_s / n * 1e6, result.decode_s / n * 1e6)
    over = "" if max(times_us) <= target_us else " over"
    print(
        f"{name:14} {size:5} {result.payload_bytes / n:8.1f} {result.body_bytes / n:8.2f}"
        f" {result.batch_bytes / n:8.2f} {times_us[0]:8.1f} {times_us[1]:8.1f}"
        f" {result.worst_s * 1e3:8.1f} {target_us:7.0f}{over}",
        flush=True,
    )


def _corpora(options: argparse.Namespace) -> Iterable[tuple[str, list[Record]]]:
    for given in options.data:
        together: list[Record] = []
        paths = sorted(given.glob("*.cborseq*")) if given.is_dir() else [given]
        for path in paths:
            records = list(read_trace(path))[: options.limit]
            together += _from_zero(records)
            yield path.name.split(".")[0], records
        if len(paths) > 1:
            together.sort(key=lambda record: record.time_ms)
            yield _MIXED, together[: options.limit or 2 * len(together) // len(paths)]
    if options.shapes:
        count = min(options.limit or _SHAPE_MESSAGES, _SHAPE_MESSAGES)
        for shape in SHAPES:
            yield shape, [Record(*message, qos=1) for message in messages(shape, count)]


def _from_zero(records: Sequence[Record]) -> list[Record]:
    """Return the records as if they had begun when all other traces did."""
    began_ms = records[0].time_ms if records else 0
    return [replace(record, time_ms=_BEGIN_MS + record.time_ms - began_ms) for record in records]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="*", type=Path, help="a folder of traces, or a trace")
    parser.add_argument("--shapes", action="store_true", help="seeded payloads as well")
    parser.add_argument("--batch", type=int, nargs="+", default=[50, 500], help="readings a batch")
    parser.add_argument("--limit", type=int, help="readings of each corpus")
    parser.add_argument("--mode", choices=["structured", "columnar"], default="structured")
    options = parser.parse_args(arguments)
    if not options.data and not options.shapes:
        options.shapes = True
    mode = Mode.STRUCTURED if options.mode == "structured" else Mode.COLUMNAR
    print("inner loops in " + ("C" if native else "Python"))
    print(f"{'':14} batch  payload     body    batch   encode   decode    worst  target")
    print(f"{'':14}       bytes a reading                 us a reading      ms      us")
    try:
        for name, records in _corpora(options):
            for size in options.batch:
                _print_row(name, size, measure(records, size, mode))
    except (TraceError, OSError) as error:
        sys.stderr.write(f"codec: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
