"""The envelope's reader agrees with a general CBOR library, and refuses what lies outside."""

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cbor import read_map
from bridge.errors import BatchError

UINTS = st.integers(0, 2**64 - 1)
LEAVES = UINTS | st.binary(max_size=300) | st.text(max_size=50)
ROWS = st.lists(st.lists(LEAVES, max_size=6), max_size=4)
MAPS = st.dictionaries(UINTS, LEAVES | ROWS, max_size=8)


@given(MAPS)
def test_reads_what_cbor2_writes(fields: dict[int, Any]) -> None:
    assert read_map(cbor2.dumps(dict(sorted(fields.items())))) == fields


@given(MAPS, st.data())
def test_a_strict_prefix_is_refused(fields: dict[int, Any], data: st.DataObject) -> None:
    whole = cbor2.dumps(dict(sorted(fields.items())))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(BatchError):
        read_map(whole[:cut])


@given(st.binary(max_size=200))
def test_any_bytes_give_a_map_or_the_typed_error(data: bytes) -> None:
    try:
        fields = read_map(data)
    except BatchError:
        return
    assert cbor2.dumps(fields) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x80",
        b"\xa1\x00\x01x",  # trailing byte
        b"\xa2\x01\x00\x00\x00",  # keys fall
        b"\xa2\x01\x00\x01\x00",  # key twice
        b"\xa1\x18\x05\x00",  # key not in shortest form
        b"\xa1\x00\x19\x00\x05",
        b"\xbf\x00\x00\xff",  # indefinite map
        b"\xa1\x00\x5f\x41a\xff",  # indefinite string
        b"\xa1\x00\x20",  # negative
        b"\xa1\x00\xc0\x60",  # tag: a date
        b"\xa1\x00\xd8\x23\x61(",  # tag: a regular expression
        b"\xa1\x00\xf9\x00\x00",  # float
        b"\xa1\x00\xf6",  # null
        b"\xa1\x00\x61\xff",  # not UTF-8
        b"\xa1\x60\x00",  # key is text
        b"\xa1\x00\x5b\xff\xff\xff\xff\xff\xff\xff\xff",  # a string of 2^64 bytes
        b"\xa1\x00\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa1\x00" + b"\x81" * 5 + b"\x00",  # five deep
        b"\xa1\x00" + b"\x81" * 100_000,
        b"\xa1\x00\x9a\x00\x10\x00\x00" + bytes(1 << 20),  # a million numbers
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(BatchError, match="malformed"):
        read_map(data)
