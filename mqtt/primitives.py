"""The data types of the wire: integers, variable byte integers, UTF-8 strings, binary data.

MQTT 5.0 sections 1.5.1-1.5.7, 3.1.1 sections 1.5.1-1.5.3. Readers take `(data, pos, end)` and
return `(value, next_pos)`; nothing is read at or past `end`. Faults in what is read are
`MalformedPacket`, faults in what is to be written `LocalProtocolError`.
"""

from __future__ import annotations

from typing import Final

from mqtt.errors import LocalProtocolError, MalformedPacket, TruncatedPacket

__all__ = [
    "VARIABLE_INTEGER_MAX",
    "encode_binary",
    "encode_string",
    "encode_variable_integer",
    "read_binary",
    "read_four_bytes",
    "read_string",
    "read_two_bytes",
    "read_variable_integer",
]

VARIABLE_INTEGER_MAX: Final = 268_435_455


def encode_variable_integer(value: int) -> bytes:
    """Return `value` in the fewest bytes, 1 to 4 [MQTT-1.5.5-1]."""
    if 0 <= value < 0x80:
        return bytes((value,))
    if 0x80 <= value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if not 0 <= value <= VARIABLE_INTEGER_MAX:
        raise LocalProtocolError(f"{value} does not fit a variable byte integer", "MQTT-1.5.5-1")
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_variable_integer(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read a variable byte integer of 1 to 4 bytes in its shortest form."""
    value = shift = 0
    start = pos
    while pos < end:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and pos - start > 1:  # [MQTT-1.5.5-1]
                raise MalformedPacket("variable byte integer is over-long", "MQTT-1.5.5-1")
            return value, pos
        shift += 7
        if shift == 28:
            raise MalformedPacket("variable byte integer has more than 4 bytes", "MQTT-1.5.5")
    raise TruncatedPacket("packet ends inside a variable byte integer", "MQTT-1.5.5")


def read_two_bytes(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read a big-endian 16-bit integer."""
    after = pos + 2
    if after > end:
        raise TruncatedPacket("packet ends inside a two byte integer", "MQTT-1.5.2")
    return data[pos] << 8 | data[pos + 1], after


def read_four_bytes(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read a big-endian 32-bit integer."""
    after = pos + 4
    if after > end:
        raise TruncatedPacket("packet ends inside a four byte integer", "MQTT-1.5.3")
    return int.from_bytes(data[pos:after], "big"), after


def read_binary(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    """Read binary data: a 16-bit length and that many bytes."""
    start = pos + 2
    if start > end:
        raise TruncatedPacket("packet ends inside a length", "MQTT-1.5.6")
    after = start + (data[pos] << 8 | data[pos + 1])
    if after > end:
        raise TruncatedPacket("binary data or a string runs past the packet", "MQTT-1.5.6")
    return data[start:after], after


def read_string(data: bytes, pos: int, end: int) -> tuple[str, int]:
    """Read a UTF-8 string; a leading U+FEFF is kept [MQTT-1.5.4-3]."""
    raw, after = read_binary(data, pos, end)
    try:
        text = raw.decode()  # refuses surrogates and over-long forms [MQTT-1.5.4-1]
    except UnicodeDecodeError as error:
        raise MalformedPacket(
            f"string is not well-formed UTF-8 at byte {error.start}", "MQTT-1.5.4-1"
        ) from None
    if "\0" in text:  # [MQTT-1.5.4-2]
        raise MalformedPacket("string contains U+0000", "MQTT-1.5.4-2")
    return text, after


def encode_binary(value: bytes) -> bytes:
    """Return binary data with its 16-bit length before it."""
    size = len(value)
    if size > 0xFFFF:
        raise LocalProtocolError(f"binary data has {size} bytes, the limit is 65535", "MQTT-1.5.6")
    return size.to_bytes(2, "big") + value


def encode_string(text: str) -> bytes:
    """Return a UTF-8 string with its 16-bit length before it."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise LocalProtocolError("string contains a surrogate", "MQTT-1.5.4-1") from None
    if b"\0" in raw:
        raise LocalProtocolError("string contains U+0000", "MQTT-1.5.4-2")
    size = len(raw)
    if size > 0xFFFF:
        raise LocalProtocolError(f"string has {size} bytes, the limit is 65535", "MQTT-4.7.3-3")
    return size.to_bytes(2, "big") + raw
