"""Traces: every format gives the same records, and damage is told with its place."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import cbor2
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from device_sim.traces import Record, TraceError, read_trace
from tests.kit.traces import TRACES, read_records

RECORDS = [
    Record(1000, "tele/a/STATE", b'{"x": 1,\n "y": "\xc3\xa4"}', 1, True),
    Record(1500, "esp/sensor/t/state", b"21.5", 0, False),
    Record(1400, "bin", b'a,b\n"c"', 2, False),
]


def cbor_of(records: list[Record]) -> bytes:
    return b"".join(
        cbor2.dumps([r.time_ms, r.topic, r.payload, r.qos, r.retain, r.properties]) for r in records
    )


def jsonl_of(records: list[Record]) -> bytes:
    lines = []
    for r in records:
        item: dict[str, Any] = {"time_ms": r.time_ms, "topic": r.topic, "qos": r.qos}
        item |= {"retain": r.retain, "payload": r.payload.decode()}
        lines.append(json.dumps(item))
    return "\n".join(lines).encode()


def csv_of(records: list[Record]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["time_ms", "topic", "payload", "qos", "retain"])
    for r in records:
        writer.writerow([r.time_ms, r.topic, r.payload.decode(), r.qos, int(r.retain)])
    return text.getvalue().encode()


@pytest.mark.parametrize("zst", [False, True])
@pytest.mark.parametrize(
    ("suffix", "write"), [(".cborseq", cbor_of), (".jsonl", jsonl_of), (".csv", csv_of)]
)
def test_each_format_gives_the_records(tmp_path: Path, suffix: str, write: Any, zst: bool) -> None:
    data = write(RECORDS)
    path = tmp_path / f"trace{suffix}{'.zst' if zst else ''}"
    path.write_bytes(zstandard.compress(data) if zst else data)
    assert list(read_trace(path)) == RECORDS


def test_binary_payloads_travel_as_base64(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    coded = base64.b64encode(b"\x00\xff").decode()
    path.write_text(json.dumps({"time_ms": 1, "topic": "a", "payload_base64": coded}))
    assert list(read_trace(path)) == [Record(1, "a", b"\x00\xff")]


def test_mqtt_5_properties_come_as_mqtt_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "t.cborseq"
    properties = {3: "application/json", 38: [["fw", "2"], ["fw", "3"]]}
    path.write_bytes(cbor2.dumps([1, "a", b"x", 1, False, properties]))
    (record,) = read_trace(path)
    assert record.properties == {3: "application/json", 38: [("fw", "2"), ("fw", "3")]}


def test_several_zstd_frames_are_one_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.cborseq.zst"
    path.write_bytes(b"".join(zstandard.compress(cbor_of([r])) for r in RECORDS))
    assert list(read_trace(path)) == RECORDS


@given(cut=st.integers(0, 10_000))
def test_a_cut_compressed_trace_never_ends_silently(tmp_path_factory: Any, cut: int) -> None:
    data = zstandard.compress(cbor_of(RECORDS * 40))
    path = tmp_path_factory.mktemp("cut") / "t.cborseq.zst"
    path.write_bytes(data[: 1 + cut % (len(data) - 1)])
    with pytest.raises(TraceError, match=r"the file ends inside"):
        list(read_trace(path))


@given(cut=st.integers(1, 10_000))
def test_a_cut_trace_gives_what_is_whole_and_names_the_record(
    tmp_path_factory: Any, cut: int
) -> None:
    whole = [len(cbor_of(RECORDS[:n])) for n in range(4)]
    cut %= whole[-1]
    path = tmp_path_factory.mktemp("cut") / "t.cborseq"
    path.write_bytes(cbor_of(RECORDS)[:cut])
    got = []
    if cut in whole:
        assert list(read_trace(path)) == RECORDS[: whole.index(cut)]
        return
    complete = sum(size <= cut for size in whole) - 1
    with pytest.raises(TraceError, match=f"record {complete + 1}: the file ends inside it"):
        got.extend(read_trace(path))
    assert got == RECORDS[:complete]


@given(st.binary(max_size=200))
def test_any_bytes_give_records_or_a_typed_error(tmp_path_factory: Any, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    for suffix in (".cborseq", ".jsonl", ".csv", ".cborseq.zst"):
        path = folder / f"t{suffix}"
        path.write_bytes(data)
        try:
            told = [str(record.payload) for record in read_trace(path)]
        except TraceError as error:
            told = [str(error)]
        assert "\n" not in "".join(told)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("t.txt", b"", "not a known trace"),
        ("t.cborseq.zst", b"plain", "zstd: "),
        ("t.cborseq", cbor2.dumps([1, "a"]), "record 1: expected"),
        ("t.cborseq", cbor2.dumps([1, "a", "text", 0, False, None]), "payload is str"),
        ("t.cborseq", cbor2.dumps([1, "a/+", b"", 0, False, None]), "not a topic"),
        ("t.cborseq", cbor2.dumps([1, "a", b"", 3, False, None]), "qos is 3"),
        ("t.cborseq", cbor2.dumps([1, "a", b"", [], False, None]), "qos is"),
        ("t.cborseq", cbor2.dumps(["1", "a", b"", 0, False, None]), "time_ms"),
        ("t.cborseq", cbor2.dumps([1, "a", b"", 0, False, {99: 1}]), "properties"),
        ("t.cborseq", cbor2.dumps([1, "a", b"", 0, False, {35: 1}]), "topic alias"),
        ("t.cborseq", cbor2.dumps([1, "a", b"", 0, False, {38: "x"}]), "properties"),
        ("t.jsonl", b'{"time_ms":1,"topic":"a","payload":"x"}\n[]\n', "line 2: expected an object"),
        ("t.jsonl", b"\n{", "line 2: not JSON"),
        ("t.jsonl", b'{"time_ms":1,"topic":"a","payload":{"x":1}}', "payload has to be a text"),
        ("t.jsonl", b'{"time_ms":1,"topic":"a","payload_base64":"*"}', "payload_base64"),
        ("t.csv", b"time_ms,topic,payload\n1,a\n", "line 2: not as many fields"),
        ("t.csv", b"time_ms,topic,payload\nx,a,b\n", "line 2: time_ms and qos"),
        ("t.csv", b"time_ms,topic,payload\n1,a,\xff\n", "line 2: not UTF-8"),
        ("t.csv", b'time_ms,topic,payload\n1,a,"x\n', "not CSV"),
    ],
)
def test_damage_is_told_in_one_line_with_its_place(
    tmp_path: Path, name: str, data: bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(TraceError) as caught:
        list(read_trace(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_trace_is_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"no\.cborseq: cannot be read: No such file"):
        list(read_trace(tmp_path / "no.cborseq"))


def test_a_damaged_checksum_is_found(tmp_path: Path) -> None:
    data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(cbor_of(RECORDS)))
    data[-1] ^= 1
    path = tmp_path / "t.cborseq.zst"
    path.write_bytes(data)
    with pytest.raises(TraceError, match="zstd"):
        list(read_trace(path))


@pytest.mark.parametrize("name", TRACES)
def test_shared_traces_are_whole_and_in_order(name: str) -> None:
    records = read_records(name)
    assert len(records) > 18_000
    times = [record.time_ms for record in records]
    assert times == sorted(times)
