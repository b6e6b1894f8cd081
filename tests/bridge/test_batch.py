"""Batches: what goes in comes out, what was tampered with never does, contexts stay in step."""

import tracemalloc
from pathlib import Path
from typing import Any

import cbor2
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.batch import Batch, Decoder, Encoder, EntryEncoder, decode_entry, encode_entry
from bridge.columnar import Columns, Limits
from bridge.envelope import Key, LinkLane, Mode, Tombstone, lane_of, seal_envelope
from bridge.errors import BatchError
from bridge.intervals import ranges_of
from bridge.readings import FLAG_PROPERTIES, Readings
from tests.kit.link_format import example
from tests.kit.readings import many_readings, one_per_row, readings_of, same_readings

EPOCH = 0x0123456789ABCDEF
DOC = Path(__file__).parents[2] / "docs" / "link-format.md"
TOMBSTONE = Tombstone(1, 5, 5, 1, "evicted-age", 1_700_000_000_000_000)


def quantized(readings: Readings, resolution_us: int) -> Readings:
    times_us = [t // resolution_us * resolution_us for t in readings.times_us]
    return Readings(
        readings.seqs,
        readings.sources,
        readings.source_index,
        times_us,
        readings.flags,
        readings.payloads,
        readings.properties,
    )


# ---- the envelope --------------------------------------------------------------------------------


@given(st.sets(st.sampled_from([key for key in Key if key != Key.SEQS])), st.lists(st.integers(0)))
def test_seqs_that_are_packed_already_lie_where_they_belong(
    keys: set[Key], runs: list[int]
) -> None:
    fields: dict[int, Any] = dict.fromkeys(keys, b"x" * 300)
    expected = seal_envelope({**fields, Key.SEQS: runs})
    assert seal_envelope(fields, cbor2.dumps(runs)) == expected


# ---- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", LinkLane)
def test_the_lane_is_seen_without_opening_the_batch(lane: LinkLane) -> None:
    encoder = Encoder("a gateway with a long name " * 3, 1 << 63)
    for first in (1, 101):  # with the context's keys before it, and without
        assert lane_of(encoder.encode(one_per_row(20, first_seq=first), lane=lane)) == lane


@pytest.mark.parametrize(
    "data", [b"", b"\xa1", b"\xa1\x03", b"\xff" * 9, b"\xa1\x02\x7b" + b"\xff" * 8]
)
def test_what_is_no_envelope_is_taken_for_live(data: bytes) -> None:
    assert lane_of(data) == LinkLane.LIVE


@given(
    st.lists(many_readings(), min_size=1, max_size=4),
    st.sampled_from(list(LinkLane)),
    st.sampled_from([1, 1000, 10_000, 1_000_000]),
    st.sampled_from([Mode.COLUMNAR, Mode.STORED]),
    st.booleans(),
)
def test_a_connection_gives_back_what_it_was_given(
    several: list[Readings], lane: LinkLane, resolution_us: int, mode: Mode, historical: bool
) -> None:
    encoder = Encoder("gw", EPOCH, resolution_us=resolution_us)
    decoder = Decoder("gw")
    offset = 0
    for readings in several:
        readings.seqs = [seq + offset for seq in readings.seqs]
        offset = readings.seqs[-1]
        payload = encoder.encode(readings, lane=lane, mode=mode, historical=historical)
        batch = decoder.decode(payload)
        same_readings(batch.readings, quantized(readings, resolution_us))
        assert batch.seq_ranges == ranges_of(readings.seqs)
        assert (batch.gateway, batch.epoch, batch.lane) == ("gw", EPOCH, lane)
        assert batch.historical is historical
        assert batch.resolution_us == resolution_us
        assert batch.assigned == readings.seqs[-1]


@given(many_readings(), st.sampled_from(list(LinkLane)), st.booleans())
def test_an_entry_can_be_read_alone(readings: Readings, lane: LinkLane, historical: bool) -> None:
    entry = encode_entry("göteborg", EPOCH, readings, lane=lane, historical=historical)
    batch = decode_entry(entry)
    same_readings(batch.readings, readings)
    assert (batch.gateway, batch.epoch, batch.lane) == ("göteborg", EPOCH, lane)
    assert batch.historical is historical


@pytest.mark.parametrize(
    "payloads",
    [
        [b""],
        [b"", b"", b""],
        [b"\x00" * 262_144],
        [bytes(range(256)) * 1024],
        [b"\xff\xfe not text", b"", b"x" * 262_144, b"{}"],
    ],
    ids=["empty", "empties", "256 KiB of zeros", "256 KiB", "mixed"],
)
def test_payloads_of_any_size_and_kind(payloads: list[bytes]) -> None:
    readings = readings_of(payloads)
    batch = Decoder("gw").decode(Encoder("gw", EPOCH).encode(readings))
    assert batch.readings.payloads == payloads


@pytest.mark.parametrize(
    "times_us",
    [
        [0],
        [-1_000, 0, -5_000_000_000],
        [4_102_444_799_999_000, 0, 4_070_908_800_000_000],
        [1_700_000_000_000_000] * 3,
        [2**61 // 1000 * 1000, -(2**61) // 1000 * 1000],
    ],
    ids=["1970", "before 1970", "2099 and back", "standing still", "far out"],
)
def test_times_anywhere_and_backwards(times_us: list[int]) -> None:
    readings = readings_of([b"x"] * len(times_us), times_us=times_us)
    batch = Decoder("gw").decode(Encoder("gw", EPOCH).encode(readings))
    assert batch.readings.times_us == times_us


def test_a_time_the_link_cannot_carry_is_the_callers_fault_and_changes_nothing() -> None:
    encoder, decoder = Encoder("gw", EPOCH, resolution_us=1), Decoder("gw")
    with pytest.raises(ValueError, match="time"):
        encoder.encode(readings_of([b"x"], times_us=[2**63]))
    assert decoder.decode(encoder.encode(readings_of([b"x"]))).readings.payloads == [b"x"]


def test_seqs_of_two_lanes_interleave() -> None:
    encoder, decoder = Encoder("gw", EPOCH), Decoder("gw")
    live = readings_of([b"a", b"b", b"c"], seqs=[1, 2, 6])
    urgent = readings_of([b"u", b"v"], seqs=[3, 5])
    more = readings_of([b"d"], seqs=[7])
    assert decoder.decode(encoder.encode(live)).seq_ranges == ((1, 2), (6, 6))
    sent = encoder.encode(urgent, lane=LinkLane.URGENT)
    assert decoder.decode(sent).seq_ranges == ((3, 3), (5, 5))
    sent = encoder.encode(more)
    assert decoder.decode(sent).seq_ranges == ((7, 7),)
    assert Key.SEQS not in cbor2.loads(sent), "what goes on where it ended is not repeated"


def test_a_seq_sent_before_is_the_callers_fault() -> None:
    encoder = Encoder("gw", EPOCH)
    encoder.encode(readings_of([b"a"], seqs=[5]))
    with pytest.raises(ValueError, match="before"):
        encoder.encode(readings_of([b"a"], seqs=[5]))
    encoder.reset()
    encoder.encode(readings_of([b"a"], seqs=[5]))


def test_tombstones_and_assigned_travel_without_readings() -> None:
    encoder, decoder = Encoder("gw", EPOCH), Decoder("gw")
    nothing = readings_of([])
    batch = decoder.decode(encoder.encode(nothing, assigned=40, tombstones=[TOMBSTONE]))
    assert (batch.tombstones, batch.assigned, len(batch.readings)) == ((TOMBSTONE,), 40, 0)
    batch = decoder.decode(encoder.encode(nothing))
    assert (batch.tombstones, batch.assigned) == ((), 40)
    batch = decoder.decode(encoder.encode(readings_of([b"x"], seqs=[41])))
    assert batch.assigned == 41


def test_what_the_connection_knows_is_not_repeated() -> None:
    encoder = Encoder("gateway-with-a-long-name", EPOCH)
    first = encoder.encode(one_per_row(50, first_seq=1))
    second = encoder.encode(one_per_row(50, first_seq=51))
    assert set(cbor2.loads(first)) == {Key.VERSION, Key.EPOCH, Key.COUNT, Key.CHECK, Key.BODY}
    assert set(cbor2.loads(second)) == {Key.COUNT, Key.CHECK, Key.BODY}
    body = len(cbor2.loads(second)[Key.BODY])
    assert len(second) - body <= 14


def test_unused_sources_do_not_travel() -> None:
    readings = readings_of([b"x", b"y"])
    readings.sources = [("unused/topic", "u"), *readings.sources, ("another/one", "v")]
    readings.source_index = [row + 1 for row in readings.source_index]
    batch = Decoder("gw").decode(Encoder("gw", EPOCH).encode(readings))
    same_readings(batch.readings, readings)
    assert b"unused" not in Encoder("gw", EPOCH).encode(readings, mode=Mode.STORED)


def test_random_payloads_are_stored_as_they_are() -> None:
    noise = zstandard.ZstdCompressor(level=19).compress(bytes(range(256)) * 40)
    encoder = Encoder("gw", EPOCH)
    payload = encoder.encode(readings_of([noise]))
    assert cbor2.loads(payload)[Key.MODE] == Mode.STORED
    assert len(payload) < len(noise) + 80


# ---- golden vectors ------------------------------------------------------------------------------


T1 = ("devices/t1/temp", "t1")
EXAMPLE_1 = Readings(
    range(1, 4),
    [T1, ("plant/pump-7/state", "pump-7/a")],
    [0, 0, 1],
    [1_700_000_000_000_000, 1_700_000_000_250_000, 1_700_000_000_249_000],
    [0x01, 0x01, 0x0D],
    [b"21.5", b"21.6", b"on"],
    [b"", b"", b"\x01\x01"],
)
EXAMPLE_2 = Readings(
    [4, 6], [T1], [0, 0], [1_700_000_001_000_000] * 2, [1, 1], [b"21.5", b"21.7"], [b"", b""]
)
EXAMPLE_3 = Readings(
    range(10, 50),
    [T1],
    [0] * 40,
    [1_700_000_000_000_000 + n * 1_000_000 for n in range(40)],
    [1] * 40,
    [b'{"t":%d}' % (200 + n % 3) for n in range(40)],
    [b""] * 40,
)


def test_the_documents_examples_are_what_the_code_writes() -> None:
    encoder = Encoder("gw-1", EPOCH)
    assert encoder.encode(EXAMPLE_1, assigned=5) == example("example-1")
    assert encoder.encode(EXAMPLE_2, tombstones=[TOMBSTONE]) == example("example-2")


def test_the_documents_examples_are_what_the_code_reads() -> None:
    decoder = Decoder("gw-1")
    first = decoder.decode(example("example-1"))
    same_readings(first.readings, EXAMPLE_1)
    assert (first.assigned, first.mode) == (5, Mode.STORED)
    second = decoder.decode(example("example-2"))
    same_readings(second.readings, EXAMPLE_2)
    assert (second.assigned, second.tombstones) == (6, (TOMBSTONE,))
    third = decode_entry(example("example-3"))
    same_readings(third.readings, EXAMPLE_3)
    assert (third.gateway, third.epoch, third.mode) == ("gw-1", EPOCH, Mode.COLUMNAR)


# ---- context and refusal -------------------------------------------------------------------------


def test_a_refusal_drops_the_context_until_a_new_one_starts() -> None:
    encoder, decoder = Encoder("gw", EPOCH), Decoder("gw")
    decoder.decode(encoder.encode(readings_of([b"a"], seqs=[1])))
    lost = bytearray(encoder.encode(readings_of([b"b"], seqs=[2])))
    behind = encoder.encode(readings_of([b"c"], seqs=[3]))
    lost[-1] ^= 1
    with pytest.raises(BatchError, match="check"):
        decoder.decode(bytes(lost))
    with pytest.raises(BatchError, match="context"):
        decoder.decode(behind)
    encoder.reset()
    batch = decoder.decode(encoder.encode(readings_of([b"b", b"c"], seqs=[2, 3])))
    assert batch.readings.payloads == [b"b", b"c"]


def test_drop_context_refuses_what_continues() -> None:
    encoder, decoder = Encoder("gw", EPOCH), Decoder("gw")
    decoder.decode(encoder.encode(readings_of([b"a"], seqs=[1])))
    decoder.drop_context()
    with pytest.raises(BatchError, match="context"):
        decoder.decode(encoder.encode(readings_of([b"b"], seqs=[2])))


def test_a_batch_lost_in_between_is_found_by_the_check() -> None:
    encoder, decoder = Encoder("gw", EPOCH), Decoder("gw")
    decoder.decode(encoder.encode(readings_of([b"a"], seqs=[1])))
    encoder.encode(readings_of([b"b"], seqs=[2]))
    with pytest.raises(BatchError):
        decoder.decode(encoder.encode(readings_of([b"c"], seqs=[3])))


def test_another_gateways_batch_is_refused() -> None:
    payload = Encoder("gw-a", EPOCH).encode(readings_of([b"a"]))
    with pytest.raises(BatchError, match="check"):
        Decoder("gw-b").decode(payload)
    entry = EntryEncoder().encode("gw-a", EPOCH, readings_of([b"a"]))
    with pytest.raises(BatchError, match="another gateway"):
        Decoder("gw-b").decode(entry)


def changed(payload: bytes, **changes: Any) -> bytes:
    fields = cbor2.loads(payload)
    for name, value in changes.items():
        key = int(name[1:]) if name.startswith("k") else Key[name]
        if value is None:
            fields.pop(key)
        else:
            fields[key] = value
    return cbor2.dumps(dict(sorted(fields.items())))


SAMPLE = Encoder("gw", EPOCH).encode(one_per_row(20), tombstones=[TOMBSTONE])


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "malformed"),
        (b"not a batch", "malformed"),
        (SAMPLE[:-1], "malformed"),
        (SAMPLE + b"\0", "malformed"),
        (changed(SAMPLE, VERSION=2), "version"),
        (changed(SAMPLE, VERSION=0), "version"),
        (changed(SAMPLE, VERSION=None), "context"),
        (changed(SAMPLE, VERSION=b"1"), "malformed"),
        (changed(SAMPLE, EPOCH=None), "malformed"),
        (changed(SAMPLE, EPOCH=EPOCH + 1), "check"),
        (changed(SAMPLE, CHECK=None), "malformed"),
        (changed(SAMPLE, BODY=None), "malformed"),
        (changed(SAMPLE, BODY="text"), "malformed"),
        (changed(SAMPLE, BODY=b""), "compression"),
        (changed(SAMPLE, BODY=b"\x28\xb5\x2f\xfd"), "compression"),
        (changed(SAMPLE, COUNT=None), "malformed"),
        (changed(SAMPLE, COUNT=19), "malformed"),
        (changed(SAMPLE, COUNT=131_073), "bounds"),
        (changed(SAMPLE, LANE=3), "bounds"),
        (changed(SAMPLE, LANE=0), "check"),
        (changed(SAMPLE, MARKS=1), "check"),
        (changed(SAMPLE, MARKS=2), "bounds"),
        (changed(SAMPLE, MODE=1), "mode"),
        (changed(SAMPLE, MODE=9), "mode"),
        (changed(SAMPLE, SEQS=[1]), "check"),
        (changed(SAMPLE, SEQS=[]), "malformed"),
        (changed(SAMPLE, SEQS=[0, 5]), "malformed"),
        (changed(SAMPLE, SEQS=[0, 5, 0]), "bounds"),
        (changed(SAMPLE, SEQS=[0, 0, 1]), "bounds"),
        (changed(SAMPLE, SEQS=[0, 20, 1]), "bounds"),
        (changed(SAMPLE, SEQS=[2**63]), "bounds"),
        (changed(SAMPLE, SEQS=["0"]), "malformed"),
        (changed(SAMPLE, SEQS=[0] + [1] * 100), "malformed"),
        (changed(SAMPLE, ASSIGNED=1), "check"),
        (changed(SAMPLE, ASSIGNED=2**64 - 1), "bounds"),
        (changed(SAMPLE, TOMBSTONES=None), "check"),
        (changed(SAMPLE, TOMBSTONES=7), "malformed"),
        (changed(SAMPLE, TOMBSTONES=[[1, 2, 3]]), "malformed"),
        (changed(SAMPLE, TOMBSTONES=[[1, 9, 5, 1, "x", 0]]), "bounds"),
        (changed(SAMPLE, TOMBSTONES=[[1, 5, 9, 6, "x", 0]]), "bounds"),
        (changed(SAMPLE, TOMBSTONES=[[7, 5, 9, 1, "x", 0]]), "bounds"),
        (changed(SAMPLE, TOMBSTONES=[[1, 5, 9, 1, "", 0]]), "bounds"),
        (changed(SAMPLE, TOMBSTONES=[[1, 5, 5, 1, "x", 0]] * 4097), "bounds"),
        (changed(SAMPLE, RESOLUTION=0), "bounds"),
        (changed(SAMPLE, RESOLUTION=60_000_001), "bounds"),
        (changed(SAMPLE, RESOLUTION=10), "check"),
        (changed(SAMPLE, GATEWAY=""), "malformed"),
        (changed(SAMPLE, GATEWAY="other"), "malformed"),
        (changed(SAMPLE, k13=0), "extension"),
        (changed(SAMPLE, k33=0), "extension"),
    ],
)
def test_refused_with_its_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(BatchError) as caught:
        Decoder("gw").decode(payload)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_what_is_settled_travels_now_and_then() -> None:
    encoder, decoder = Encoder("gw", 5), Decoder("gw")
    said = [
        decoder.decode(encoder.encode(one_per_row(5, first_seq=first), settled=settled)).settled
        for first, settled in ((1, 0), (6, None), (11, 9), (16, 20))
    ]
    assert said == [0, None, 9, 20]


@pytest.mark.parametrize(
    ("value", "word"), [(41, "bounds"), (b"x", "malformed"), (-1, "malformed")]
)
def test_what_cannot_be_settled_is_refused(value: object, word: str) -> None:
    payload = changed(Encoder("gw", 5).encode(one_per_row(40), settled=40), k34=value)
    with pytest.raises(BatchError, match=word):
        Decoder("gw").decode(payload)


def test_even_extensions_are_ignored() -> None:
    payload = changed(SAMPLE, k32=b"anything", k1000=[1, [2, "x"]])
    same_readings(Decoder("gw").decode(payload).readings, one_per_row(20))


def test_a_batch_past_the_receivers_size_is_refused_before_it_is_read() -> None:
    with pytest.raises(BatchError, match="too-large"):
        Decoder("gw", limits=Limits(batch_bytes=len(SAMPLE) - 1)).decode(SAMPLE)


# ---- hostile bodies ------------------------------------------------------------------------------


def frame(content: bytes, *, content_size: bool = True, window_log: int = 0) -> bytes:
    options = {"window_log": window_log} if window_log else {}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=content_size, **options
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(content)


def streamed(content: bytes, window_log: int) -> bytes:
    """Return a frame that states no size and asks for a window."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, window_log=window_log
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(content) + compressor.flush()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (frame(bytes(40 << 20)), "bounds"),  # 40 MiB of zeros in a few KiB
        (streamed(bytes(1000), 27), "bounds"),  # size not stated
        (b"\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00", "bounds"),  # claims 1 TiB
        (frame(b"abc" * 50) + b"x", "compression"),
        (frame(b"abc" * 50)[:-3], "compression"),
        (frame(b""), "bounds"),
    ],
    ids=["bomb", "no size", "1 TiB", "trailing", "cut", "empty"],
)
def test_a_hostile_frame_is_refused_in_little_memory(body: bytes, reason: str) -> None:
    payload = changed(SAMPLE, BODY=body)
    tracemalloc.start()
    try:
        with pytest.raises(BatchError) as caught:
            Decoder("gw").decode(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.reason == reason
    assert peak < 1 << 20


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def content_of(topic: bytes, *, block: bytes = b"", payload_bytes: int = 0) -> bytes:
    """Return a content of any number of readings alike, as constant columns write them."""
    flags = 0x09 if block else 0x01
    return b"".join((
        b"\x01\x00\x01", varint(len(topic)), topic, b"\x00\x00", b"\x00", b"\x00\x00",
        bytes((0, flags)),
        b"\x01\x00" + varint(len(block)) + block + b"\x00\x00" if block else b"",
        b"\x00" + varint(payload_bytes),
    ))  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        content_of(b"t" * 65_535),
        content_of(b"t", block=b"p" * 100_000),
        content_of(b"t", payload_bytes=1000),
        b"\x80\x80\x04" + b"\x00\x00" + varint(30 << 20) + bytes(30 << 20),
    ],
    ids=["topics", "property blocks", "payloads", "empty texts"],
)
def test_a_small_body_that_names_gigabytes_is_refused_in_little_memory(content: bytes) -> None:
    payload = changed(SAMPLE, BODY=frame(content), COUNT=131_072)
    del content
    decoder = Decoder("gw")
    tracemalloc.start()
    try:
        with pytest.raises(BatchError) as caught:
            decoder.decode(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(payload) < 120_000
    assert caught.value.reason == "bounds"
    assert peak < 96 << 20


def test_constant_columns_of_many_readings_are_no_bomb_as_such() -> None:
    content = content_of(b"t")
    with pytest.raises(BatchError, match="check"):
        Decoder("gw").decode(changed(SAMPLE, BODY=frame(content), COUNT=131_072))


CONTENT = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS).decompress(
    cbor2.loads(SAMPLE)[Key.BODY]
)


@settings(max_examples=400)
@given(st.data())
def test_mutated_contents_are_refused(data: st.DataObject) -> None:
    """The columns themselves damaged under a valid frame: what zstd alone would not notice."""
    content = bytearray(CONTENT)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if content == CONTENT:
        return
    with pytest.raises(BatchError):
        Decoder("gw").decode(changed(SAMPLE, BODY=bytes(content), MODE=int(Mode.STORED)))


@settings(max_examples=600)
@given(st.data())
def test_mutated_batches_are_refused(data: st.DataObject) -> None:
    payload = bytearray(SAMPLE)
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "delete", "swap"]))
    place = data.draw(st.integers(0, len(payload) - 1))
    other = data.draw(st.integers(0, len(payload) - 1))
    if kind == "flip":
        payload[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del payload[place:]
    elif kind == "insert":
        payload[place:place] = data.draw(st.binary(min_size=1, max_size=8))
    elif kind == "delete":
        del payload[place : place + 1 + other % 16]
    else:
        payload[place], payload[other] = payload[other], payload[place]
    if payload == SAMPLE:
        return
    try:
        batch = Decoder("gw").decode(bytes(payload))
    except BatchError:
        return
    # zstd frames have don't-care bits: a change may be without effect, never with a wrong one
    same_readings(batch.readings, one_per_row(20))
    assert batch == Decoder("gw").decode(SAMPLE)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_content_gives_readings_or_the_typed_error(content: bytes) -> None:
    payload = changed(SAMPLE, BODY=content, MODE=int(Mode.STORED))
    with pytest.raises(BatchError):
        Decoder("gw").decode(payload)


# ---- further modes -------------------------------------------------------------------------------


class _ReversedBytes:
    """A mode with a context of its own: counts batches, keeps columns in a list, both ends."""

    def __init__(self) -> None:
        self.batches = -1
        self.kept: list[Columns] = []

    def reset(self) -> None:
        self.batches = 0

    def encode(self, columns: Columns, reference: int) -> bytes | None:
        if len(columns) == 1:
            return None
        self.batches += 1
        self.kept.append(columns)
        return b"%d" % self.batches

    def decode(self, body: bytes, count: int, reference: int, limits: Limits) -> Columns:
        self.batches += 1
        if body != b"%d" % self.batches:
            raise BatchError("malformed", "contexts differ")
        if not self.kept:
            raise KeyError("anything a decoder trips over")
        return self.kept.pop(0)


def test_a_further_mode_plugs_in_with_its_own_context() -> None:
    encoding, decoding = _ReversedBytes(), _ReversedBytes()
    encoder = Encoder("gw", EPOCH, bodies={Mode.STRUCTURED: encoding})
    decoder = Decoder("gw", bodies={Mode.STRUCTURED: decoding})
    decoding.kept = encoding.kept
    batches: list[Batch] = []
    for first, count in [(1, 2), (3, 3), (6, 1), (7, 2)]:
        readings = one_per_row(count, first_seq=first)
        batch = decoder.decode(encoder.encode(readings, mode=Mode.STRUCTURED))
        same_readings(batch.readings, readings)
        batches.append(batch)
    assert [batch.mode for batch in batches] == [1, 1, Mode.STORED, 1]
    encoder.reset()
    again = decoder.decode(encoder.encode(one_per_row(2), mode=Mode.STRUCTURED))
    assert again.mode == Mode.STRUCTURED
    assert encoding.batches == decoding.batches == 1


def test_whatever_a_mode_trips_over_is_a_refusal() -> None:
    encoder = Encoder("gw", EPOCH, bodies={Mode.STRUCTURED: _ReversedBytes()})
    decoder = Decoder("gw", bodies={Mode.STRUCTURED: _ReversedBytes()})
    with pytest.raises(BatchError, match="KeyError"):
        decoder.decode(encoder.encode(one_per_row(2), mode=Mode.STRUCTURED))


def test_properties_are_shared_and_only_for_flagged_rows() -> None:
    readings = one_per_row(6)
    blocks = [b"\x03\x00\x04json", b"\x01\x01"]
    for row in (1, 2, 5):
        readings.flags[row] |= FLAG_PROPERTIES
        readings.properties[row] = blocks[row % 2]
    payload = Encoder("gw", EPOCH).encode(readings, mode=Mode.STORED)
    same_readings(Decoder("gw").decode(payload).readings, readings)
    assert payload.count(b"\x03\x00\x04json") == 1
