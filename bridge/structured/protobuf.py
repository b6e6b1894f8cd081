"""Protobuf on the wire, taken apart without its schema. An encoder's affair.

Tags and lengths become the fragments of a framed template, values its slots. In a part that comes
several times, as a Sparkplug B metric does, the first field says which of them it is (a name or an
alias): it stays constant text and names the fields behind it, so that a payload may leave out any
of them. What is read here is proven by putting it together again (`frames.assemble`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from bridge.kernel import varint
from bridge.structured.frames import CLOSE, OPEN, literal_items
from bridge.structured.kernel import native
from bridge.structured.printers import PrinterKey, PrinterKind
from bridge.structured.shapes import Path, Shape

__all__ = ["Repeated", "protobuf_shape"]

_DEPTH_MAX = 6
_VARINT, _FIXED_64, _PART, _FIXED_32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED_64: 8, _FIXED_32: 4}
_PRINTABLE = bytes(range(32, 127))
_NAME_BYTES_MAX = 64
_REPEATED_MAX = 4096  # paths remembered of a kind of payload

_PRINTERS: dict[object, PrinterKey] = {
    _VARINT: (int(PrinterKind.VARINT), 0, b"", b"", b""),
    _FIXED_32: (int(PrinterKind.FLOAT_LITTLE), 0, b"4", b"", b""),
    _FIXED_64: (int(PrinterKind.FLOAT_LITTLE), 0, b"8", b"", b""),
}

_Found = tuple[tuple[bytes, ...], tuple[bytes, ...], tuple[Path, ...]]
Repeated = set[tuple[object, ...]]  # paths of parts that were seen several times in one payload


# tag bytes, field number, wire type, value, and the fields within if the value is a message
_Field = tuple[bytes, int, int, bytes, "list[_Field] | None"]


@dataclass(slots=True)
class _Writer:
    fragments: list[bytes] = field(default_factory=list)
    tokens: list[bytes] = field(default_factory=list)
    names: list[Path] = field(default_factory=list)
    pending: list[bytes] = field(default_factory=list)

    def token(self, value: bytes, name: Path) -> None:
        self.fragments.append(b"".join(self.pending))
        self.pending = []
        self.tokens.append(value)
        self.names.append(name)


def protobuf_shape(payload: bytes, repeated: Repeated) -> Shape | None:
    """Return the shape of a payload that reads as protobuf, or None.

    Args:
        payload: Any bytes.
        repeated: What was learned from earlier payloads of the kind; added to.
    """
    if len(repeated) > _REPEATED_MAX:  # a device that makes up numbers of fields
        repeated.clear()
    found = split_protobuf(payload, repeated)
    if found is None:
        return None
    fragments, tokens, names = found
    return Shape(fragments, tokens, "protobuf", framed=True, names=names, by_name=_PRINTERS)


def _split_protobuf(payload: bytes, repeated: Repeated) -> _Found | None:
    """Return the fragments, tokens and names of a payload that reads as protobuf."""
    fields = _read(payload, 0)
    if fields is None or len(fields) + sum(len(item[4] or ()) for item in fields) < 2:
        return None
    _note_repeated(fields, (), repeated)
    out = _Writer()
    _write(fields, (), repeated, out)
    if not out.tokens:
        return None
    out.fragments.append(b"".join(out.pending))
    return tuple(out.fragments), tuple(out.tokens), tuple(out.names)


def _read(data: bytes, depth: int) -> list[_Field] | None:
    """Return the fields of a message, None for bytes that are none or are not spelled shortest."""
    fields: list[_Field] = []
    at, end = 0, len(data)
    while at < end:
        start = at
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _read_varint(data, start)
        wire_type = tag & 7
        if at < 0 or tag < 8 or tag >> 32:
            return None
        tag_bytes = data[start:at]
        inner: list[_Field] | None = None
        start = at
        if wire_type == _VARINT:
            _, at = _read_varint(data, at)
            if at < 0:
                return None
        elif wire_type == _PART:
            length, at = _read_varint(data, at)
            if at < 0:
                return None
            start, at = at, at + length
        elif wire_type in _FIXED_BYTES:
            at += _FIXED_BYTES[wire_type]
        else:
            return None
        if at > end:
            return None
        value = data[start:at]
        if wire_type == _PART and depth < _DEPTH_MAX and value.translate(None, _PRINTABLE):
            inner = _read(value, depth + 1)
        fields.append((tag_bytes, tag >> 3, wire_type, value, inner))
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and the place behind it; -1 when it is cut short or not spelled shortest."""
    if at < len(data) and data[at] < 0x80:
        return data[at], at + 1
    value = shift = 0
    for place in range(at, min(at + 10, len(data))):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if (not byte and shift) or value >> 64:
                return 0, -1
            return value, place + 1
        shift += 7
    return 0, -1


def _note_repeated(fields: list[_Field], path: Path, repeated: Repeated) -> None:
    seen: set[int] = set()
    for _, number, _, _, inner in fields:
        if inner is None:
            continue
        where = (*path, number)
        if number in seen:
            repeated.add(where)
        seen.add(number)
        _note_repeated(inner, where, repeated)


def _write(fields: list[_Field], path: Path, repeated: Repeated, out: _Writer) -> None:
    for tag, number, wire_type, value, inner in fields:
        where: Path = (*path, number)
        out.pending.append(_items(tag))
        if inner:
            out.pending.append(OPEN)
            if where in repeated and _is_name(inner[0]):
                name, inner = inner[0], inner[1:]  # noqa: PLW2901 - the rest is what remains
                out.pending.append(_items(name[0] + _with_length(name)))
                where = (*where, name[3])
            _write(inner, where, repeated, out)
            out.pending.append(CLOSE)
        elif wire_type == _PART:
            out.pending.append(OPEN)
            out.token(value, (*where, "part"))
            out.pending.append(CLOSE)
        else:
            out.token(value, (*where, wire_type))


_items = lru_cache(2048)(literal_items)


def _is_name(item: _Field) -> bool:
    """Return True for a field that may say which of several parts this one is."""
    _, _, wire_type, value, inner = item
    return not inner and wire_type in (_VARINT, _PART) and 0 < len(value) <= _NAME_BYTES_MAX


def _with_length(item: _Field) -> bytes:
    _, _, wire_type, value, _ = item
    return varint(len(value)) + value if wire_type == _PART else value


split_protobuf = native.split_protobuf if native else _split_protobuf
