"""A body's bytes: a head, up to three pools of bytes, the symbols.

docs/link-format-structured.md section 2.

    head    1 byte: bit 0 the context starts anew; bit 1 + i pool i is present; bit 4 the context;
            bit 5 context 0 is a snapshot; bit 6 context 0 is to be kept as one
    name    16 bytes, only with bit 5: the snapshot's
    pools   each a varint (stored length << 2 | method) and the stored bytes
    symbols the coder's state (32 bits) and 16-bit words, little-endian, up to the end

Method 0 stores a pool as it is; 1 is a zstd frame without magic number; 2 is one whose dictionary
is the history: the last 32 KiB of text and raw pools of the context.
"""

from __future__ import annotations

from dataclasses import dataclass

import zstandard

from bridge.kernel import varint
from bridge.structured.coder import POOLS, Reader, Writer, refuse
from bridge.structured.context import Context
from bridge.structured.limits import HISTORY_BYTES
from bridge.structured.texts import RAW_POOL, TEXT_POOL

__all__ = ["BodyHead", "Compressor", "body_head", "pack_body", "unpack_body"]

_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS
_STORED, _PLAIN, _WITH_HISTORY = range(3)
_WORTH_BYTES = 40  # a smaller pool is stored
_STARTS_ANEW = 1
_NUMBER_SHIFT = POOLS + 1
_WARM = 32
_KEEP = 64
_NAME_BYTES = 16
_WINDOW_BYTES_MAX = 32 << 20


@dataclass(slots=True, frozen=True)
class BodyHead:
    """What a body says before anything else.

    Attributes:
        number: The context it is of, 0 or 1.
        anew: That context is to be emptied first.
        warm: The name of the snapshot that context 0 is to be first; empty for none.
        keep: Context 0 is to be kept as a snapshot afterwards.
    """

    number: int = 0
    anew: bool = False
    warm: bytes = b""
    keep: bool = False


class Compressor:
    """Compresses pools at one zstd level."""

    __slots__ = ("_parameters", "_plain")

    def __init__(self, level: int) -> None:
        self._parameters = zstandard.ZstdCompressionParameters.from_level(
            level,
            format=_FORMAT,
            write_content_size=True,
            write_checksum=False,
            write_dict_id=False,
        )
        self._plain = zstandard.ZstdCompressor(compression_params=self._parameters)

    def compress(self, data: bytes, history: bytes) -> tuple[int, bytes]:
        """Return the method that takes least, and what it makes of `data`."""
        if len(data) < _WORTH_BYTES:
            return _STORED, data
        if len(history) < _WORTH_BYTES:
            method, packed = _PLAIN, self._plain.compress(data)
        else:
            dictionary = _dictionary(history)
            packer = zstandard.ZstdCompressor(
                dict_data=dictionary, compression_params=self._parameters
            )
            method, packed = _WITH_HISTORY, packer.compress(data)
        return (method, packed) if len(packed) < len(data) else (_STORED, data)


def pack_body(io: Writer, context: Context, compressor: Compressor, says: BodyHead) -> bytes:
    """Return the body that says what `io` was told, and add its texts to the history.

    Args:
        io: The writer.
        context: The context that `says` names.
        compressor: For the pools.
        says: The head.
    """
    head = says.anew * _STARTS_ANEW | says.number << _NUMBER_SHIFT
    head |= (_WARM if says.warm else 0) | says.keep * _KEEP
    parts = [b""]
    for pool in range(POOLS):
        data = bytes(io.pools[pool])
        if not data:
            continue
        head |= 2 << pool
        method, stored = compressor.compress(data, context.history)
        parts += (varint(len(stored) << 2 | method), stored)
    parts[0] = bytes((head,)) + says.warm
    parts.append(io.section())
    _remember(context, bytes(io.pools[TEXT_POOL]), bytes(io.pools[RAW_POOL]))
    return b"".join(parts)


def body_head(body: bytes) -> BodyHead:
    """Return what a body says before anything else."""
    if not body or body[0] >= 2 * _KEEP:
        refuse("a structured body without a head", "malformed")
    number, anew = body[0] >> _NUMBER_SHIFT & 1, body[0] & _STARTS_ANEW != 0
    warm = body[1 : 1 + _NAME_BYTES] if body[0] & _WARM else b""
    if body[0] & _WARM and (len(warm) < _NAME_BYTES or (anew and not number)):
        refuse("a snapshot without a name, or emptied at once", "malformed")
    return BodyHead(number, anew, warm, body[0] & _KEEP != 0)


def unpack_body(body: bytes, context: Context, content_max: int) -> Reader:
    """Return a reader of the body's symbols and pools, and add its texts to the history.

    Its texts are bounded by `content_max`, which bounds the readings written out and so all texts
    that are in them, and by the fragments a context may hold.

    Raises:
        BatchError: the body is cut short, or a pool would unpack to more than `content_max` bytes.
    """
    at = 1 + _NAME_BYTES if body[0] & _WARM else 1
    pools = [b""] * POOLS
    left = content_max
    for pool in range(POOLS):
        if not body[0] & 2 << pool:
            continue
        length, at = _read_varint(body, at)
        length, method = length >> 2, length & 3
        stored = body[at : at + length]
        if len(stored) != length:
            refuse("a pool past the end of the body")
        at += length
        pools[pool] = _unpack_pool(stored, method, context.history, left)
        left -= len(pools[pool])
        if not pools[pool] or left < 0:
            refuse("a pool that is empty or too large")
    reader = Reader(body[at:], pools, content_max + context.limits.literal_bytes)
    _remember(context, pools[TEXT_POOL], pools[RAW_POOL])
    return reader


def _unpack_pool(stored: bytes, method: int, history: bytes, most: int) -> bytes:
    """Return the content of a pool, whose stated size was within limits beforehand."""
    if method == _STORED:
        return stored
    if method == _PLAIN:
        unpacker = zstandard.ZstdDecompressor(format=_FORMAT)
    elif method == _WITH_HISTORY and history:
        unpacker = zstandard.ZstdDecompressor(format=_FORMAT, dict_data=_dictionary(history))
    else:
        refuse("a way of storing that does not exist")
    try:
        frame = zstandard.get_frame_parameters(stored, format=_FORMAT)
        if frame.content_size > most or frame.window_size > _WINDOW_BYTES_MAX:
            refuse(f"a pool unpacks to more than {most} bytes")
        data = unpacker.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        refuse(str(error), "compression")
    if len(data) != frame.content_size:
        refuse("a pool is not of the size it states", "compression")
    return data


def _dictionary(history: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(history, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _remember(context: Context, *texts: bytes) -> None:
    added = b"".join(texts)
    if added:
        context.history = (context.history + added[-HISTORY_BYTES:])[-HISTORY_BYTES:]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 35:
            refuse("a length cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
