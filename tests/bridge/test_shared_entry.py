"""Entries that several gateways share: each gets its own readings back, or an error."""

from __future__ import annotations

import random
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.batch import Decoder, EntryEncoder, decode_entry
from bridge.columnar import Limits, SourceTable
from bridge.envelope import Key, LinkLane, Mode
from bridge.errors import BatchError
from bridge.intervals import ranges_of
from bridge.kernel import seq_runs
from bridge.readings import Readings
from bridge.select import Block, Section, blocks, growing
from bridge.shared_entry import EntryReader, SharedEncoder
from tests.kit.link_format import example
from tests.kit.readings import many_readings, one_per_row, readings_of, rows, same_readings

EPOCH = 0x0123_4567_89AB_CDEF


def encoded(block: Block, owners: list[tuple[str, int]], **options: Any) -> bytes:
    seqs = block.readings.seqs
    packed = [seq_runs(seqs, one.first_row, one.end_row)[1] for one in block.sections]
    return SharedEncoder().encode(
        block, [owners[one.origin] for one in block.sections], packed, **options
    )


def shared(*several: Readings, **options: Any) -> bytes:
    """Return readings of one partition as a body; their gateways are gw-0, gw-1, ..."""
    (block,) = blocks(several)
    return encoded(block, [(f"gw-{n}", EPOCH + n) for n in range(len(several))], **options)


@given(
    st.lists(many_readings().filter(len), min_size=1, max_size=5),
    st.sampled_from(LinkLane),
    st.booleans(),
)
def test_each_source_gets_its_own_back(
    several: list[Readings], lane: LinkLane, historical: bool
) -> None:
    found: list[list[tuple[object, ...]]] = [[] for _ in several]
    owners = [(f"gw-{n}", EPOCH + n) for n in range(len(several))]
    reader = EntryReader()
    for block in blocks(several):
        body = encoded(block, owners, lane=lane, historical=historical)
        for section in block.sections:
            batch = reader.read(body, *owners[section.origin])
            assert (batch.gateway, batch.epoch) == owners[section.origin]
            assert (batch.lane, batch.historical) == (lane, historical)
            assert batch.seq_ranges == ranges_of(batch.readings.seqs)
            same_readings(batch.readings, block.part(section))
            assert len(batch.readings.sources) == section.end_source - section.first_source
            found[section.origin] += rows(batch.readings)
    assert [sorted(one) for one in found] == [sorted(rows(one)) for one in several]


@given(st.lists(many_readings().filter(len), min_size=2, max_size=5), st.sets(st.integers(0, 4)))
def test_a_table_that_knows_its_sources_makes_the_same_body(
    several: list[Readings], knowing: set[int]
) -> None:
    owners = [(f"gw-{n}", EPOCH + n) for n in range(len(several))]
    before = [list(one.sources) for one in several]
    plain = {block.partition: encoded(block, owners) for block in blocks(several)}
    for n in knowing & set(range(len(several))):
        several[n].sources = SourceTable(several[n].sources)
    for block in blocks(several):
        table = block.readings.sources
        assert isinstance(table, SourceTable)
        anew = SourceTable(list(table))
        assert (table.levels, table.topic_bytes, table.written) == (
            anew.levels, anew.topic_bytes, anew.written,
        )  # fmt: skip
        assert encoded(block, owners) == plain[block.partition]
    assert [list(one.sources) for one in several] == before  # others have these tables too


def test_a_body_shared_is_smaller_than_one_each() -> None:
    several = [one_per_row(10, first_seq=100 * n + 1, devices=1) for n in range(20)]
    alone = sum(
        len(EntryEncoder().encode("gw-1", EPOCH, one, resolution_us=1000)) for one in several
    )
    assert len(shared(*several, resolution_us=1000)) < alone / 2


def test_a_source_that_is_not_in_it_and_a_version_1_of_another_are_refused() -> None:
    body = shared(readings_of([b"a"]), readings_of([b"b"]))
    alone = EntryEncoder().encode("gw-1", EPOCH, readings_of([b"c"]))
    reader = EntryReader()
    assert reader.read(body, "gw-0", EPOCH).readings.payloads == [b"a"]
    assert reader.read(alone, "gw-1", EPOCH).readings.payloads == [b"c"]
    for one, gateway, epoch in ((body, "gw-0", EPOCH + 1), (body, "gw-2", 1), (alone, "gw-1", 1)):
        with pytest.raises(BatchError, match="identity"):
            reader.read(one, gateway, epoch)


def test_who_knows_version_1_alone_refuses_it_and_so_does_the_link() -> None:
    body = shared(readings_of([b"a"]), readings_of([b"b"]))
    without = cbor2.loads(body)
    del without[Key.SECTIONS]
    for refuses in (decode_entry, Decoder("gw-0").decode):
        with pytest.raises(BatchError, match="extension"):
            refuses(body)
        with pytest.raises(BatchError, match="version"):
            refuses(cbor2.dumps(without))


# ---- bad input -----------------------------------------------------------------------------------

SAMPLE = shared(one_per_row(5, devices=1), one_per_row(4, first_seq=50, devices=1))


def changed(**changes: Any) -> bytes:
    fields = cbor2.loads(SAMPLE)
    for name, value in changes.items():
        key = int(name[1:]) if name.startswith("k") else int(Key[name])
        fields.pop(key, None) if value is None else fields.update({key: value})
    return cbor2.dumps(dict(sorted(fields.items())))


def sections(*named: list[Any]) -> bytes:
    return changed(SECTIONS=cbor2.dumps(list(named)))


FIRST = ["gw-0", EPOCH, 5, 1, b"\x81\x00"]
SECOND = ["gw-1", EPOCH + 1, 4, 1, b"\x81\x18\x31"]


def test_the_sample_is_as_these_tests_believe() -> None:
    assert sections(FIRST, SECOND) == SAMPLE


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (SAMPLE[:-1], "malformed"),
        (SAMPLE + b"\0", "malformed"),
        (SAMPLE[:3], "malformed"),
        (changed(COUNT=None), "malformed"),
        (changed(COUNT=0), "bounds"),
        (changed(COUNT=8), "bounds"),
        (changed(COUNT=10), "bounds"),
        (changed(COUNT=131_073), "bounds"),
        (changed(BODY=None), "malformed"),
        (changed(BODY=b""), "compression"),
        (changed(CHECK=None), "malformed"),
        (changed(CHECK=1), "check"),
        (changed(LANE=2), "check"),
        (changed(LANE=3), "bounds"),
        (changed(MARKS=1), "check"),
        (changed(MODE=1), "mode"),
        (changed(MODE=2), "bounds"),
        (changed(RESOLUTION=0), "bounds"),
        (changed(RESOLUTION=7), "check"),
        (changed(k31=1), "extension"),
        (changed(EPOCH=1), "extension"),
        (changed(SECTIONS=None), "malformed"),
        (changed(SECTIONS=[]), "malformed"),
        (changed(SECTIONS=b""), "malformed"),
        (sections(), "malformed"),
        (sections(FIRST), "bounds"),
        (sections(SECOND, FIRST), "check"),
        (sections(FIRST, FIRST), "bounds"),
        (sections(FIRST, ["gw-0", EPOCH, *SECOND[2:]]), "bounds"),
        (sections(FIRST, SECOND, SECOND), "bounds"),
        (sections(FIRST, ["gw-2", *SECOND[1:]]), "check"),
        (sections(FIRST, ["", *SECOND[1:]]), "malformed"),
        (sections(FIRST, [7, *SECOND[1:]]), "malformed"),
        (sections(FIRST, SECOND[:4]), "malformed"),
        (sections(FIRST, [*SECOND[:3], 0, SECOND[4]]), "bounds"),
        (sections(FIRST, [*SECOND[:3], 2, SECOND[4]]), "check"),
        (sections([*FIRST[:3], 2, FIRST[4]], SECOND), "check"),
        (sections(FIRST, [*SECOND[:4], b"\x81\x18\x10"]), "malformed"),
        (sections(FIRST, [*SECOND[:4], b"\x81\x18\x32"]), "check"),
        (sections(FIRST, [*SECOND[:4], b"\x80"]), "malformed"),
        (sections(FIRST, [*SECOND[:4], b"\x81\x60"]), "malformed"),
        (sections(FIRST, [*SECOND[:4], b"\x83\x00\x04\x00"]), "bounds"),
        (sections(FIRST, [*SECOND[:4], b""]), "malformed"),
        (sections(FIRST, [*SECOND[:4], b"\x81\x00\x00"]), "malformed"),
    ],
)
def test_what_is_damaged_is_refused_for_every_source(body: bytes, reason: str) -> None:
    for source in (("gw-0", EPOCH), ("gw-1", EPOCH + 1)):
        with pytest.raises(BatchError, match=reason):
            EntryReader().read(body, *source)


def test_a_damaged_body_is_refused_again_and_a_good_one_read_after_it() -> None:
    reader = EntryReader()
    for _ in range(2):
        with pytest.raises(BatchError):
            reader.read(changed(CHECK=1), "gw-0", EPOCH)
    assert len(reader.read(SAMPLE, "gw-1", EPOCH + 1).readings) == 4
    with pytest.raises(BatchError):
        reader.read(changed(CHECK=1), "gw-1", EPOCH + 1)


@pytest.mark.parametrize("seed", range(300))
def test_a_byte_changed_or_cut_is_an_error_and_never_other_readings(seed: int) -> None:
    rng = random.Random(seed)
    body = bytearray(SAMPLE)
    at = rng.randrange(len(body))
    if seed % 3:
        body[at] ^= rng.randrange(1, 256)
    else:
        del body[at:]
    with pytest.raises(BatchError):
        EntryReader().read(bytes(body), "gw-0", EPOCH)


def test_a_reading_with_a_source_of_another_section_is_refused() -> None:
    (block,) = blocks([readings_of([b"a", b"b"]), readings_of([b"c"])])
    block.readings.source_index[0] = 1
    with pytest.raises(BatchError, match="another section"):
        EntryReader().read(encoded(block, [("gw-0", 1), ("gw-1", 1)]), "gw-1", 1)


def test_limits_are_kept() -> None:
    body = shared(*(readings_of([b"x" * 1000] * 10) for _ in range(3)))
    with pytest.raises(BatchError, match="bounds"):
        EntryReader(Limits(content_bytes=29_000)).read(body, "gw-0", EPOCH)
    with pytest.raises(BatchError, match="bounds"):
        EntryReader(Limits(readings=29)).read(body, "gw-0", EPOCH)
    with pytest.raises(BatchError, match="too-large"):
        EntryReader(Limits(batch_bytes=50)).read(body, "gw-0", EPOCH)


# ---- golden vector -------------------------------------------------------------------------------


def test_the_documents_example_is_what_the_code_writes_and_reads() -> None:
    one = readings_of([b"21.5", b"21.6"], seqs=[1, 3], device="t1")
    one.sources = [("devices/t1/temp", "t1")]
    two = readings_of([b"on"], seqs=[7])
    two.sources = [("plant/pump-7/state", "pump-7/a")]
    block = Block(0, next(growing([one, two])), [Section(0, 0, 2, 0, 1), Section(1, 2, 3, 1, 2)])
    body = encoded(block, [("gw-1", EPOCH), ("gw-2", EPOCH)], resolution_us=1000)
    assert body == example("example-4")
    assert cbor2.loads(body)[Key.MODE] == Mode.STORED
    reader = EntryReader()
    same_readings(reader.read(body, "gw-1", EPOCH).readings, one)
    same_readings(reader.read(body, "gw-2", EPOCH).readings, two)
