"""The specification is enough: a decoder written from its text alone reads what is sent."""

from __future__ import annotations

import pytest

from bridge.columnar import Columns
from bridge.structured import StructuredEncoder
from tests.bridge.structured.test_connection import telemetry
from tests.bridge.structured.test_vectors import example
from tests.kit.columns import START, Row, columns_of, in_batches
from tests.kit.odd_payloads import odd_rows
from tests.kit.payload_shapes import messages
from tests.kit.spec_decoder import Reading, SpecDecoder


def readings_of(columns: Columns) -> list[Reading]:
    sources = [columns.sources[place] for place in columns.source_index]
    return [
        (time, flags, *source, payload)
        for time, flags, source, payload in zip(
            columns.times, columns.flags, sources, columns.payloads, strict=True
        )
    ]


def test_the_worked_example_says_what_the_specification_says() -> None:
    assert SpecDecoder().decode(example(), 2) == [
        (1_700_000_000_000, 1, "devices/t1/temp", "t1", b"21.5"),
        (1_700_000_001_000, 1, "devices/t1/temp", "t1", b"21.7"),
    ]


def _bursts() -> list[Row]:
    rows = [
        (START + n * 5000 + part * 3 + n % 4, f"t/{n % 3}/state", b"%d.%d" % (20 + n % 5, part))
        for n in range(120)
        for part in range(1 + n % 3)
    ]
    return sorted(rows, key=lambda row: row[0])


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (telemetry(12, 60), 50),
        (telemetry(12, 60), 7),
        (odd_rows("csv", 60), 50),
        (odd_rows("xml", 60), 30),
        (odd_rows("units", 40), 40),
        (odd_rows("key-value", 60), 50),
        (odd_rows("samples", 10), 20),
        (odd_rows("encrypted", 20), 40),
        (odd_rows("random-text", 20), 40),
        (messages("odd-spellings", 600), 50),
        (messages("random-order", 400), 40),
        (_bursts(), 25),
    ],
)
def test_a_decoder_from_the_text_reads_a_connection(rows: list[Row], size: int) -> None:
    encoder, decoder = StructuredEncoder(), SpecDecoder()
    for batch in in_batches(rows, size):
        body = encoder.encode(batch)
        assert body is not None
        assert decoder.decode(body, len(batch)) == readings_of(batch)


def test_it_reads_two_contexts_and_an_order_that_time_does_not_tell() -> None:
    live = in_batches(telemetry(6, 40), 40)
    late = in_batches([(time - 10**8, *rest) for time, *rest in telemetry(6, 40, seed=8)], 40)
    encoder, decoder = StructuredEncoder(), SpecDecoder()
    for batch in [batch for pair in zip(live, late, strict=True) for batch in pair]:
        body = encoder.encode(batch)
        assert body is not None
        assert decoder.decode(body, len(batch)) == readings_of(batch)
    for times in ([5, 5, 5, 5], [9, 3, 7, 1]):
        batch = columns_of([(START + t, f"t/{n % 2}", b"%d" % n) for n, t in enumerate(times)])
        body = encoder.encode(batch)
        assert body is not None
        assert decoder.decode(body, 4) == readings_of(batch)
