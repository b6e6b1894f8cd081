"""Traces: recorded messages read one at a time from CBOR sequence, JSON lines or CSV.

Formats, told apart by the file's name, each also zstd-compressed with `.zst` at the end:

- `.cborseq`: RFC 8742; a record is `[time_ms, topic, payload bytes, qos, retain, properties]`,
  properties being a map of MQTT 5 property ids or null.
- `.jsonl`: an object a line: `time_ms`, `topic`, `payload` (text) or `payload_base64`, and
  optionally `qos`, `retain`.
- `.csv`: a header with the same names, then a row a message.

Invariants: memory does not grow with the file; a damaged file gives every record before the
damage, then `TraceError`, never a silent end.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cbor2
import zstandard

from mqtt.errors import MqttError
from mqtt.packets import PUBLISH
from mqtt.properties import (
    SUBSCRIPTION_IDENTIFIER,
    TOPIC_ALIAS,
    USER_PROPERTY,
    Properties,
    encode_property_block,
)

__all__ = ["Record", "TraceError", "read_trace"]

_CHUNK_BYTES = 1 << 16
_WINDOW_BYTES_MAX = 1 << 27
_LINE_BYTES_MAX = 1 << 20
_FORMATS = (".cborseq", ".jsonl", ".csv")
_NOT_AN_APPLICATIONS = frozenset((TOPIC_ALIAS, SUBSCRIPTION_IDENTIFIER))  # a connection's own


class TraceError(Exception):
    """A trace that cannot be read; `str()` is one line: file, record or line, what is wrong."""

    def __init__(self, path: Path, where: str, detail: str) -> None:
        super().__init__(f"{path}: {where + ': ' if where else ''}{detail}")
        self.path = path


@dataclass(slots=True, frozen=True)
class Record:
    """One recorded message."""

    time_ms: int  # since 1970 UTC, as recorded
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties | None = None  # MQTT 5 properties by identifier


def read_trace(path: Path) -> Iterator[Record]:
    """Yield the records of a trace in the file's order.

    Raises:
        TraceError: the file cannot be opened, is of no known format, or is damaged.
    """
    name = path.name.removesuffix(".zst")
    format_ = next((suffix for suffix in _FORMATS if name.endswith(suffix)), None)
    if format_ is None:
        raise TraceError(path, "", f"not a known trace; use {', '.join(_FORMATS)}, also with .zst")
    try:
        file = path.open("rb")
    except OSError as error:
        raise TraceError(path, "", f"cannot be read: {error.strerror}") from None
    with file:
        source: BinaryIO = file
        if path.name.endswith(".zst"):
            source = io.BufferedReader(_Unzstd(path, file), _CHUNK_BYTES)
        if format_ == ".cborseq":
            yield from _read_cbor(path, source)
        elif format_ == ".jsonl":
            yield from _read_jsonl(path, source)
        else:
            yield from _read_csv(path, source)


class _Unzstd(io.RawIOBase):
    """Decompresses as it is read; a frame that ends too early is an error, not an end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            if not self._compressed:
                self._compressed = self._file.read(_CHUNK_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise TraceError(self._path, "", "zstd: the file ends inside a frame")
                return 0
            self._decompress()
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def _decompress(self) -> None:
        frame = self._frame or self._decompressor.decompressobj()
        try:
            self._plain = memoryview(frame.decompress(self._compressed))
        except zstandard.ZstdError as error:
            detail = str(error).removeprefix("zstd decompressor error: ")
            raise TraceError(self._path, "", f"zstd: {detail}") from None
        if frame.eof:
            self._compressed, self._frame = frame.unused_data, None
        else:
            self._compressed, self._frame = b"", frame


class _Counted(io.RawIOBase):
    """Passes reads through and counts them: tells an end between records from one inside."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.taken = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self.taken += len(data)
        return data


def _read_cbor(path: Path, source: BinaryIO) -> Iterator[Record]:
    counted = _Counted(source)
    decoder = cbor2.CBORDecoder(counted)  # type: ignore[arg-type]  # reads only through read()
    number = 0
    while True:
        number += 1
        before = counted.taken
        try:
            item = decoder.decode()
        except (cbor2.CBORDecodeEOF, EOFError):
            if counted.taken == before:
                return
            raise TraceError(path, f"record {number}", "the file ends inside it") from None
        except TraceError:
            raise
        except Exception as error:  # noqa: BLE001 - cbor2 lets several types through on damage
            if isinstance(error.__cause__, TraceError):
                raise error.__cause__ from None
            raise TraceError(path, f"record {number}", f"not CBOR: {error}") from None
        yield _from_cbor(path, number, item)


def _from_cbor(path: Path, number: int, item: Any) -> Record:
    where = f"record {number}"
    if not isinstance(item, list) or len(item) != 6:
        raise TraceError(path, where, "expected [time_ms, topic, payload, qos, retain, properties]")
    time_ms, topic, payload, qos, retain, properties = item
    if not isinstance(payload, bytes):
        raise TraceError(path, where, f"payload is {type(payload).__name__}, expected bytes")
    if properties is not None:
        properties = _properties(path, where, properties)
    return _checked(path, where, time_ms, topic, payload, qos, retain, properties)


def _properties(path: Path, where: str, found: Any) -> Properties:
    """Return a record's properties as `mqtt` takes them, or say which cannot be published."""
    try:
        properties = dict(found)
        if USER_PROPERTY in properties:
            properties[USER_PROPERTY] = [(name, text) for name, text in properties[USER_PROPERTY]]
        encode_property_block(properties, PUBLISH)
    except (MqttError, TypeError, ValueError, AttributeError) as error:
        raise TraceError(path, where, f"properties {found!r} cannot be sent: {error}") from None
    if not _NOT_AN_APPLICATIONS.isdisjoint(properties):
        raise TraceError(path, where, "topic alias and subscription identifier are not the trace's")
    return properties


def _lines(path: Path, source: BinaryIO) -> Iterator[str]:
    """Yield a file's lines as text, none longer than a bound."""
    number = 0
    while line := source.readline(_LINE_BYTES_MAX):
        number += 1
        if len(line) == _LINE_BYTES_MAX and not line.endswith(b"\n"):
            raise TraceError(path, f"line {number}", f"longer than {_LINE_BYTES_MAX} bytes")
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise TraceError(path, f"line {number}", f"not UTF-8: {error}") from None


def _read_jsonl(path: Path, source: BinaryIO) -> Iterator[Record]:
    for number, line in enumerate(_lines(path, source), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            item = json.loads(line)
        except ValueError as error:
            raise TraceError(path, where, f"not JSON: {error}") from None
        if not isinstance(item, dict):
            raise TraceError(path, where, "expected an object with time_ms, topic, payload")
        yield _from_fields(path, where, item)


def _read_csv(path: Path, source: BinaryIO) -> Iterator[Record]:
    rows = csv.DictReader(_lines(path, source), strict=True)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise TraceError(path, f"line {rows.line_num}", f"not CSV: {error}") from None
        if row is None:
            return
        where = f"line {rows.line_num}"
        if None in row or None in row.values():
            raise TraceError(path, where, "not as many fields as the header")
        fields: dict[str, Any] = dict(row)
        try:
            fields["time_ms"] = int(fields.get("time_ms", ""))
            fields["qos"] = int(fields.get("qos") or 0)
        except ValueError:
            raise TraceError(path, where, "time_ms and qos have to be whole numbers") from None
        fields["retain"] = (fields.get("retain") or "").lower() in {"1", "true", "yes"}
        yield _from_fields(path, where, fields)


def _from_fields(path: Path, where: str, fields: dict[str, Any]) -> Record:
    text, coded = fields.get("payload"), fields.get("payload_base64")
    if isinstance(coded, str) and coded:
        try:
            payload = base64.b64decode(coded, validate=True)
        except ValueError as error:
            raise TraceError(path, where, f"payload_base64: {error}") from None
    elif isinstance(text, str):
        payload = text.encode()
    else:
        raise TraceError(path, where, "payload has to be a text (or payload_base64 given)")
    return _checked(
        path,
        where,
        fields.get("time_ms"),
        fields.get("topic"),
        payload,
        fields.get("qos", 0),
        fields.get("retain", False),
        None,
    )


def _checked(
    path: Path,
    where: str,
    time_ms: Any,
    topic: Any,
    payload: bytes,
    qos: Any,
    retain: Any,
    properties: Properties | None,
) -> Record:
    if isinstance(time_ms, float):
        time_ms = round(time_ms)
    if not isinstance(time_ms, int) or isinstance(time_ms, bool):
        raise TraceError(path, where, f"time_ms is {time_ms!r}, expected milliseconds since 1970")
    if not isinstance(topic, str) or not topic or any(mark in topic for mark in "+#\0"):
        raise TraceError(path, where, f"{topic!r} is not a topic to publish to")
    if qos not in (0, 1, 2):
        raise TraceError(path, where, f"qos is {qos!r}, expected 0, 1 or 2")
    return Record(time_ms, topic, payload, int(qos), bool(retain), properties)
