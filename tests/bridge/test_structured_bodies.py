"""Structured bodies only where they pay; both ends stay in step whatever is chosen."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from bridge.batch import Decoder, Encoder, link_columns
from bridge.envelope import Mode
from bridge.readings import Readings
from bridge.structured import StructuredDecoder
from bridge.structured_bodies import LINK_LIMITS, BodyChoice
from tests.kit.payload_shapes import SHAPES, messages

DEAR_BATCH = 50  # readings, which take what `Link` is told they cost
START_US = 1_700_000_000_000_000


def batch(first: int, payloads: list[bytes]) -> Readings:
    n = len(payloads)
    return Readings(
        range(first, first + n),
        [(f"devices/d{i}/state", f"d{i}") for i in range(7)],
        [i % 7 for i in range(first, first + n)],
        [START_US + i * 250_000 for i in range(first, first + n)],
        [1] * n,
        payloads,
        [b""] * n,
    )


def telemetry(rng: random.Random, n: int) -> list[bytes]:
    return [
        json.dumps({"t": round(20 + rng.random(), 2), "h": rng.randrange(40, 60)}).encode()
        for _ in range(n)
    ]


def noise(rng: random.Random, n: int) -> list[bytes]:
    return [rng.randbytes(rng.randrange(20, 180)) for _ in range(n)]


def shaped(shape: str, count: int, size: int) -> list[Readings]:
    """Return batches of `size` readings of a shape."""
    found = []
    rows = messages(shape, count)
    for first in range(0, count, size):
        part = rows[first : first + size]
        table = list(dict.fromkeys((topic, topic.split("/")[1]) for _, topic, _ in part))
        found.append(
            Readings(
                range(first + 1, first + 1 + len(part)),
                table,
                [table.index((topic, topic.split("/")[1])) for _, topic, _ in part],
                [time_ms * 1000 for time_ms, _, _ in part],
                [1] * len(part),
                [payload for *_, payload in part],
                [b""] * len(part),
            )
        )
    return found


class Link:
    """Both ends of a connection, and what mode 0 alone would have taken."""

    def __init__(self, *, cost_us: float = 0.0) -> None:
        self.encoder, self.plain = Encoder("gw", 1), Encoder("gw", 1)
        self.spare = False
        spent_s = itertools.count(0.0, cost_us * DEAR_BATCH / 1e6)
        self.choice = BodyChoice(1000, cpu_s=lambda: next(spent_s))
        self.decoder = Decoder("gw", bodies={Mode.STRUCTURED: StructuredDecoder(LINK_LIMITS)})
        self.bytes = self.plain_bytes = self.plain_most = 0
        self.modes: list[int] = []
        self.seq = 1

    def carry(self, payloads: list[bytes]) -> None:
        self.carry_readings(batch(self.seq, payloads))
        self.seq += len(payloads)

    def carry_readings(self, readings: Readings) -> None:
        columns = link_columns(readings, 1000)
        mode, body = self.choice.encode(columns, self.encoder.last_time, spare=self.spare)
        sent = self.encoder.encode(readings, mode=mode, body=body)
        got = self.decoder.decode(sent)
        assert got.mode == mode
        assert got.readings.payloads == readings.payloads
        assert got.readings.times_us == readings.times_us
        plain = len(self.plain.encode(readings))
        self.bytes += len(sent)
        self.plain_bytes += plain
        self.plain_most = max(self.plain_most, plain)
        self.modes.append(mode)


def test_telemetry_goes_structured() -> None:
    link, rng = Link(), random.Random(1)
    for _ in range(60):
        link.carry(telemetry(rng, 50))
    assert set(link.modes) == {Mode.STRUCTURED}
    assert link.bytes * 2 < link.plain_bytes


def test_noise_goes_in_mode_0_at_one_per_cent_more_at_most() -> None:
    link, rng = Link(), random.Random(2)
    for _ in range(300):
        link.carry(noise(rng, 50))
    assert link.bytes <= link.plain_bytes * 1.01
    assert link.modes.count(Mode.STRUCTURED) < 60


@pytest.mark.parametrize("size", [3, 25])
@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_the_software_it_comes_back_at_one_per_cent_over_mode_0_at_most(
    shape: str, size: int
) -> None:
    link = Link()
    for readings in shaped(shape, 60 * size if size < 10 else 20 * size, size):
        link.carry_readings(readings)
    assert link.bytes <= link.plain_bytes * 1.01 + link.plain_most * 0.5, "half a batch to learn"


def test_structured_again_when_noise_becomes_telemetry() -> None:
    link, rng = Link(), random.Random(3)
    for _ in range(60):
        link.carry(noise(rng, 20))
    assert link.modes[-1] != Mode.STRUCTURED
    for _ in range(400):
        link.carry(telemetry(rng, 20))
    assert set(link.modes[-50:]) == {Mode.STRUCTURED}


def test_both_ends_stay_in_step_when_the_two_alternate() -> None:
    link, rng = Link(), random.Random(4)
    for turn in range(200):
        link.carry((telemetry if turn // 10 % 2 else noise)(rng, rng.randrange(1, 30)))
    assert len(set(link.modes)) > 1


def test_a_reset_starts_a_context_the_other_end_can_read() -> None:
    link, rng = Link(), random.Random(5)
    for turn in range(40):
        if turn % 7 == 3:  # the last batch was never delivered
            link.choice.encode(link_columns(batch(9999, telemetry(rng, 5)), 1000), 0)
            link.encoder.reset()
            link.choice.reset()
            link.plain.reset()
        link.carry(telemetry(rng, 10))


def test_a_source_may_stand_in_the_table_twice() -> None:
    rng = random.Random(6)
    readings = batch(1, telemetry(rng, 28))
    readings.sources = [("devices/d0/state", "d0")] * 3 + [("devices/d1/state", "d1")] * 4
    columns = link_columns(readings, 1000)
    mode, body = BodyChoice(1000).encode(columns, 0)
    assert mode == Mode.STRUCTURED
    sent = Encoder("gw", 1).encode(readings, mode=mode, body=body)
    decoder = Decoder("gw", bodies={Mode.STRUCTURED: StructuredDecoder(LINK_LIMITS)})
    got = decoder.decode(sent).readings
    assert [got.sources[i] for i in got.source_index] == [
        readings.sources[i] for i in readings.source_index
    ]
    assert got.payloads == readings.payloads


def hexadecimal(rng: random.Random, n: int) -> list[bytes]:
    return [
        json.dumps({"t": round(20 + rng.random(), 2), "d": rng.randbytes(48).hex()}).encode()
        for _ in range(n)
    ]


@pytest.mark.parametrize(
    ("cost_us", "spare", "structured"),
    [(100.0, True, False), (100.0, False, True), (30.0, True, True)],
    ids=["dear, and bytes to spare", "dear, and none to spare", "cheap"],
)
def test_what_is_dear_and_gains_little_goes_columnar_while_the_link_has_bytes_to_spare(
    cost_us: float, spare: bool, structured: bool
) -> None:
    link, rng = Link(cost_us=cost_us), random.Random(3)
    link.spare = spare
    for _ in range(60):
        link.carry(hexadecimal(rng, DEAR_BATCH))
    assert (set(link.modes[30:]) == {Mode.STRUCTURED}) is structured
    assert (Mode.STRUCTURED in link.modes[30:]) is structured


def test_what_gains_much_stays_structured_however_dear_it_is() -> None:
    link, rng = Link(cost_us=1000.0), random.Random(4)
    link.spare = True
    for _ in range(60):
        link.carry(telemetry(rng, DEAR_BATCH))
    assert set(link.modes) == {Mode.STRUCTURED}


def test_what_was_dear_is_structured_at_once_when_bytes_are_wanted() -> None:
    link, rng = Link(cost_us=100.0), random.Random(5)
    link.spare = True
    while link.modes[-1:] != [Mode.COLUMNAR]:
        link.carry(hexadecimal(rng, DEAR_BATCH))
    link.carry(hexadecimal(rng, DEAR_BATCH))
    assert link.modes[-1] == Mode.COLUMNAR
    link.spare = False
    link.carry(hexadecimal(rng, DEAR_BATCH))
    assert link.modes[-1] == Mode.STRUCTURED
