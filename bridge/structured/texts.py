"""Texts, written as what differs from another text, their middles packed by alphabet.

docs/link-format-structured.md section 5.4. A text is its common prefix and suffix with a reference
and a middle. The three lengths are coded as differences to those of the text before, so that
texts of one form (a UUID, a serial number) cost little but their middle. A middle whose characters
are all of the column's alphabet is packed as one integer; signs that are not of the alphabet may
stand where the reference has the same ones. Any other middle goes to the text pool.
"""

from __future__ import annotations

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable

from bridge.structured.coder import Coder, Writer, refuse
from bridge.structured.context import TextModel
from bridge.structured.kernel import native

__all__ = [
    "ALPHABETS",
    "PACKED_POOL",
    "RAW_POOL",
    "TEXT_POOL",
    "Alphabet",
    "code_text",
    "shared_ends",
    "shared_prefix",
]

TEXT_POOL, PACKED_POOL, RAW_POOL = range(3)

_CROCKFORD = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_BASE_32 = b"0123456789ABCDEFGHIJKLMNOPQRSTUV"  # what int(text, 32) reads
_TO_32 = bytes.maketrans(_CROCKFORD, _BASE_32)
_FROM_32 = bytes.maketrans(_BASE_32, _CROCKFORD)
_DIGITS = "0123456789abcdefghijklmnopqrstuv"


class Alphabet:
    """Characters that pack into fewer bits.

    Attributes:
        members: Its characters; a middle with another one is not packed.
        pack: Middle to bytes.
        unpack: Bytes and the middle's length to the middle.
        size: Bytes a middle of some length packs into.
        mask: Takes each member to the same one, so that texts show where they have signs.
        runs: Finds members that stand together.
    """

    __slots__ = ("mask", "members", "pack", "runs", "size", "unpack")

    def __init__(
        self,
        members: bytes,
        pack: Callable[[bytes], bytes],
        unpack: Callable[[bytes, int], bytes],
        size: Callable[[int], int],
    ) -> None:
        self.members = members
        self.pack = pack
        self.unpack = unpack
        self.size = size
        self.mask = bytes.maketrans(members, members[:1] * len(members))
        self.runs = re.compile(b"[" + re.escape(members) + b"]+")


def _spelled(value: int, base: int, length: int) -> bytes:
    """Return `value` in `base`, its low `length` digits, leading zeros kept."""
    out = bytearray(length)
    for place in range(length - 1, -1, -1):
        value, digit = divmod(value, base)
        out[place] = ord(_DIGITS[digit])
    return bytes(out)


def _decimal_size(length: int) -> int:
    greatest: int = 10**length - 1
    return (greatest.bit_length() + 7) // 8


def _decimal() -> Alphabet:
    def pack(middle: bytes) -> bytes:
        return int(middle).to_bytes(_decimal_size(len(middle)), "big")

    def unpack(data: bytes, length: int) -> bytes:
        return _spelled(int.from_bytes(data, "big"), 10, length)

    return Alphabet(b"0123456789", pack, unpack, _decimal_size)


def _hexadecimal(members: bytes, *, upper: bool) -> Alphabet:
    def size(length: int) -> int:
        return (length + 1) // 2

    def pack(middle: bytes) -> bytes:
        return int(middle, 16).to_bytes(size(len(middle)), "big")

    def unpack(data: bytes, length: int) -> bytes:
        text = data.hex().encode()[-length:]
        return text.upper() if upper else text

    return Alphabet(members, pack, unpack, size)


def _crockford() -> Alphabet:
    def size(length: int) -> int:
        return (5 * length + 7) // 8

    def pack(middle: bytes) -> bytes:
        return int(middle.translate(_TO_32), 32).to_bytes(size(len(middle)), "big")

    def unpack(data: bytes, length: int) -> bytes:
        return _spelled(int.from_bytes(data, "big"), 32, length).upper().translate(_FROM_32)

    return Alphabet(_CROCKFORD, pack, unpack, size)


def _base64(altchars: bytes) -> Alphabet:
    def size(length: int) -> int:
        return (6 * length + 7) // 8

    standard = altchars == b"+/"
    to_standard, from_standard = bytes.maketrans(altchars, b"+/"), bytes.maketrans(b"+/", altchars)

    def pack(middle: bytes) -> bytes:
        padded = middle + b"A" * (-len(middle) % 4)
        packed = a2b_base64(padded if standard else padded.translate(to_standard))
        return packed[: size(len(middle))]

    def unpack(data: bytes, length: int) -> bytes:
        text = b2a_base64(data + bytes(-len(data) % 3), newline=False)[:length]
        return text if standard else text.translate(from_standard)

    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return Alphabet(letters + altchars, pack, unpack, size)


# By the numbers of the format; 0 is any bytes at all.
ALPHABETS: tuple[Alphabet | None, ...] = (
    None,
    _decimal(),
    _hexadecimal(b"0123456789abcdef", upper=False),
    _hexadecimal(b"0123456789ABCDEF", upper=True),
    _crockford(),
    _base64(b"+/"),
    _base64(b"-_"),
)


def shared_prefix(a: bytes, b: bytes) -> int:
    """Return how many bytes `a` and `b` begin with in common."""
    most = min(len(a), len(b))
    if a[:most] == b[:most]:
        return most
    low = 0
    while most - low > 1:
        middle = (low + most) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            most = middle
    return low


def _shared_ends(a: bytes, b: bytes) -> tuple[int, int]:
    """Return how many bytes `a` and `b` begin with in common, and how many end what is left."""
    start = shared_prefix(a, b)
    return start, shared_prefix(a[start:][::-1], b[start:][::-1])


shared_ends = native.shared_ends if native else _shared_ends


def code_text(
    io: Coder, model: TextModel, reference: bytes, most: int, value: bytes = b"", alphabet: int = 0
) -> bytes:
    """Code a text of at most `most` bytes.

    Args:
        io: A `Writer` or `Reader`.
        model: The statistics to use.
        reference: The text it is likely to resemble.
        most: The length beyond which a reader refuses.
        value: The text, for a writer.
        alphabet: A number of `ALPHABETS`.
    """
    packing = ALPHABETS[alphabet]
    if native is None:
        return _code_text(io, model, reference, most, value, packing)
    try:
        given = value if isinstance(io, Writer) else None
        return native.code_text(io, model, reference, most, given, packing)
    except EOFError as error:
        refuse(str(error))


def _code_text(
    io: Coder, model: TextModel, reference: bytes, most: int, value: bytes, packing: Alphabet | None
) -> bytes:
    prefix = suffix = 0
    if value and reference:
        prefix, suffix = shared_ends(value, reference)
    middle = value[prefix : len(value) - suffix]
    prefix = model.last_prefix + io.number(model.prefix, prefix - model.last_prefix)
    suffix = model.last_suffix + io.number(model.suffix, suffix - model.last_suffix)
    if prefix < 0 or suffix < 0 or prefix + suffix > len(reference):
        refuse("a text that shares more than its reference has")
    replaced = reference[prefix : len(reference) - suffix]
    step: int | None = len(middle) - model.last_length
    packable: bytes | None = middle
    if packing and value:
        if len(middle) == len(replaced) and replaced.translate(None, packing.members):
            packable = _without_signs(middle, replaced, packing)
        if packable is None or packable.translate(None, packing.members):
            step = None
    step = io.escapable(model.length, step)
    if step is None:
        packing = None
        length = io.number(model.length, len(middle))
    else:
        length = model.last_length + step
    if not 0 <= length <= most - prefix - suffix:
        refuse("a text longer than allowed")
    io.take_text(prefix + length + suffix)
    if packing and length:
        signs = b""
        if length == len(replaced):
            signs = replaced.translate(None, packing.members)
        packed_length = length - len(signs)
        if packed_length:
            packed = packing.pack(packable) if packable else b""
            packed = io.piece(PACKED_POOL, packing.size(packed_length), packed)
            middle = packing.unpack(packed, packed_length)
        if signs:
            middle = _with_signs(middle if packed_length else b"", replaced, packing)
    else:
        middle = io.piece(TEXT_POOL, length, middle)
    model.last_prefix, model.last_suffix, model.last_length = prefix, suffix, length
    return reference[:prefix] + middle + reference[len(reference) - suffix :]


def _without_signs(text: bytes, like: bytes, packing: Alphabet) -> bytes | None:
    """Return `text` without what is no member in `like`; None where both do not agree in that."""
    if text.translate(packing.mask) != like.translate(packing.mask):
        return None
    return text.translate(None, like.translate(None, packing.members))


def _with_signs(kept: bytes, like: bytes, packing: Alphabet) -> bytes:
    """Return the text of which `_without_signs` returned `kept`."""
    at = 0

    def next_ones(run: re.Match[bytes]) -> bytes:
        nonlocal at
        begin, at = at, at + len(run.group())
        return kept[begin:at]

    return packing.runs.sub(next_ones, like)
