"""Binary payloads: which read as protobuf, and which are frames of fields of fixed width.

An encoder's affair. Sources whose topics differ in digits only are taken to speak alike. Of each
such kind the first payloads are looked at: do all read as protobuf, or are they all of one length?
Then a frame is cut into fields where that makes consecutive frames of a source differ least.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from bridge.structured.learner import bits_of
from bridge.structured.limits import VALUE_BITS
from bridge.structured.printers import Printer, PrinterKey, PrinterKind
from bridge.structured.protobuf import Repeated, protobuf_shape
from bridge.structured.shapes import Path, Shape
from bridge.structured.spelling import FLOAT_DIGITS
from bridge.structured.texts import ALPHABETS, shared_ends

__all__ = ["BinaryKinds"]

_DIGITS = re.compile(r"\d+")
_WORD = re.compile(rb"[\w+/=-]{2,512}")
_KINDS_MAX = 1024
_FRAME_BYTES_MAX = 256
_LOOKED_AT = 4  # payloads that must read as protobuf before any is taken for it
_PAIRS = 12  # consecutive frames of a source from which fields are found
_SAMPLES_MAX = 64
_WIDTHS = (1, 2, 4, 8)
_LENGTHS_BITS = 4  # about what the place of a difference takes
_WORTH = 0.85  # fields must take no more than this share of a frame's bits


_Floats = tuple[PrinterKey, float]


@dataclass(slots=True)
class _Field:
    width: int
    printer: PrinterKey | None  # None: constant so far


class _Layout:
    """How frames of one length are cut, and all that their shapes have in common."""

    __slots__ = ("_cut", "_fragments", "_names", "_printers", "_widths")

    def __init__(self, length: int, fields: tuple[_Field, ...]) -> None:
        self._widths = tuple([item.width for item in fields])
        self._cut = struct.Struct("".join(f"{width}s" for width in self._widths)).unpack
        self._fragments = (b"",) * (len(fields) + 1)
        self._names: tuple[Path, ...] = tuple([(length, place) for place in range(len(fields))])
        self._printers = tuple([item.printer for item in fields])

    def shape(self, frame: bytes) -> Shape:
        """Return the shape of a frame of that length."""
        return Shape(
            self._fragments,
            self._cut(frame),
            "frame",
            names=self._names,
            printers=self._printers,
            widths=self._widths,
        )


@dataclass(slots=True)
class _Kind:
    """What is known of the payloads of sources that speak alike."""

    read: int = 0
    unread: int = 0
    repeated: Repeated = field(default_factory=set)
    last: dict[str, bytes] = field(default_factory=dict)  # by topic
    pairs: dict[int, list[tuple[bytes, bytes]]] = field(default_factory=dict)  # by length
    layouts: dict[int, _Layout | None] = field(default_factory=dict)  # by length


class BinaryKinds:
    """Finds the shapes of binary payloads; learns from each it is asked about."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def shape_of(self, topic: str, payload: bytes) -> Shape | None:
        """Return the shape of a payload, or None as long as none is known."""
        name = _DIGITS.sub("#", topic)
        kind = self._kinds.get(name)
        if kind is None:
            if len(self._kinds) >= _KINDS_MAX:
                self._kinds.clear()
            kind = self._kinds[name] = _Kind()
        if not kind.unread:
            shape = protobuf_shape(payload, kind.repeated)
            if shape is None:
                kind.unread += 1
            else:
                kind.read += 1
                return shape if kind.read > _LOOKED_AT else None
        return self._frame(kind, topic, payload)

    def _frame(self, kind: _Kind, topic: str, payload: bytes) -> Shape | None:
        length = len(payload)
        layout = kind.layouts.get(length)
        if length not in kind.layouts:
            if not 1 < length <= _FRAME_BYTES_MAX or len(kind.layouts) >= 8:
                return _word(payload)
            pairs = kind.pairs.setdefault(length, [])
            before = kind.last.get(topic, b"")
            if len(kind.last) >= _SAMPLES_MAX:
                kind.last.clear()
            kind.last[topic] = payload
            if len(before) != length:
                return None
            pairs.append((before, payload))
            if len(pairs) < _PAIRS:
                return None
            fields = _cut(pairs)
            layout = kind.layouts[length] = _Layout(length, fields) if fields else None
            kind.pairs.clear()
            kind.last.clear()
        return _word(payload) if layout is None else layout.shape(payload)


def _word(payload: bytes) -> Shape | None:
    """Return the shape of what is no frame but one text, such as bytes in hexadecimal."""
    return Shape((b"", b""), (payload,), "scalar") if _WORD.fullmatch(payload) else None


def _cut(pairs: list[tuple[bytes, bytes]]) -> tuple[_Field, ...]:
    """Return the fields in which consecutive frames differ by the fewest bits.

    None are returned for frames that differ by nearly as many bits as they have, or as a text
    packed by its alphabet would have.
    """
    length = len(pairs[0][0])
    room = max(_packed_bits(frame) for pair in pairs for frame in pair)
    same = [len({frame[at] for pair in pairs for frame in pair}) == 1 for at in range(length)]
    best: list[tuple[float, tuple[_Field, ...]]] = [(0.0, ())]
    for end in range(1, length + 1):
        options: list[tuple[float, tuple[_Field, ...]]] = []
        for width in _WIDTHS:
            start = end - width
            if start < 0:
                continue
            bits, before = best[start]
            if all(same[start:end]):
                options.append((bits + 0.1, (*before, _Field(width, None))))
                continue
            for kind in _kinds(width):
                cost = _bits(pairs, start, end, kind)
                key: PrinterKey = (int(kind), width, b"", b"", b"")
                options.append((bits + cost + 2, (*before, _Field(width, key))))
            for key, cost in _floats(pairs, start, end):
                options.append((bits + cost + 2, (*before, _Field(width, key))))
        best.append(min(options, key=lambda option: option[0]))
    bits, fields = best[-1]
    return _joined(fields) if bits < _WORTH * room * len(pairs) else ()


def _packed_bits(frame: bytes) -> int:
    """Return how many bits a frame takes as the text it may be, else as bytes."""
    fitting = [
        packing.size(len(frame))
        for packing in ALPHABETS
        if packing is not None and not frame.translate(None, packing.members)
    ]
    return 8 * min(fitting, default=len(frame))


def _kinds(width: int) -> tuple[PrinterKind, ...]:
    if width == 1:
        return PrinterKind.UNSIGNED_BIG, PrinterKind.SIGNED_BIG
    return (
        PrinterKind.UNSIGNED_BIG,
        PrinterKind.UNSIGNED_LITTLE,
        PrinterKind.SIGNED_BIG,
        PrinterKind.SIGNED_LITTLE,
    )


def _bits(pairs: list[tuple[bytes, bytes]], start: int, end: int, kind: PrinterKind) -> float:
    """Return the bits of a field's steps from frame to frame, or as texts if it is no number."""
    little = kind in (PrinterKind.UNSIGNED_LITTLE, PrinterKind.SIGNED_LITTLE)
    signed = kind in (PrinterKind.SIGNED_LITTLE, PrinterKind.SIGNED_BIG)
    order: Literal["little", "big"] = "little" if little else "big"
    values = [
        [int.from_bytes(frame[start:end], order, signed=signed) for frame in pair] for pair in pairs
    ]
    if any(value >> VALUE_BITS not in (0, -1) for pair in values for value in pair):
        return _text_bits([(a[start:end], b[start:end]) for a, b in pairs])
    return bits_of([b - a for a, b in values])


def _floats(pairs: list[tuple[bytes, bytes]], start: int, end: int) -> list[_Floats]:
    """Return how a field reads as floats of few decimals, and the bits of its steps then."""
    if end - start not in (4, 8):
        return []
    found: list[_Floats] = []
    text = b"%d" % (end - start)
    tokens = [frame[start:end] for pair in pairs for frame in pair]
    for kind in (PrinterKind.FLOAT_LITTLE, PrinterKind.FLOAT_BIG):
        if not _reads(kind, FLOAT_DIGITS[-1], text, tokens[:1]):
            continue
        for digits in FLOAT_DIGITS:
            values = _reads(kind, digits, text, tokens)
            if values:
                steps = [b - a for a, b in zip(values[::2], values[1::2], strict=True)]
                found.append(((int(kind), 0, text, b"", b""), bits_of(steps)))
                break
    return found


def _reads(kind: PrinterKind, digits: int, text: bytes, tokens: list[bytes]) -> list[int]:
    """Return the integers of tokens that a printer spells; none unless it spells them all."""
    values = _printer(kind, digits, text).parse_all(tokens)
    return [] if None in values else values  # type: ignore[return-value]  # no None


@lru_cache(64)
def _printer(kind: PrinterKind, digits: int, text: bytes) -> Printer:
    return Printer(kind, digits, text)


def _text_bits(pairs: list[tuple[bytes, bytes]]) -> float:
    """Return the bits of texts that are written as what differs from the one before."""
    bits = 0.0
    for before, text in pairs:
        start, end = shared_ends(text, before)
        bits += 8 * (len(text) - start - end) + _LENGTHS_BITS
    return bits


def _joined(fields: tuple[_Field, ...]) -> tuple[_Field, ...]:
    """Return the fields with neighbouring constant ones made one."""
    out: list[_Field] = []
    for item in fields:
        if out and item.printer is None and out[-1].printer is None:
            out[-1] = _Field(out[-1].width + item.width, None)
        else:
            out.append(item)
    return tuple(out)
