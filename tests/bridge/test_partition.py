"""Partitions agree with published FNV-1a vectors and spread devices evenly."""

import pytest

from bridge.partition import PARTITIONS, fnv1a_32, partition_of, partitions_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"", 0x811C9DC5),
        (b"a", 0xE40C292C),
        (b"b", 0xE70C2DE5),
        (b"foobar", 0xBF9CF968),
        (b"fooba", 0x39AAA18A),
    ],
)
def test_known_vectors(text: bytes, value: int) -> None:
    assert fnv1a_32(text) == value


def test_partition_is_the_hash_of_the_utf8_id() -> None:
    assert partition_of("foobar") == 0xBF9CF968 % 64
    assert partition_of("Gerät-1") == fnv1a_32("Gerät-1".encode()) % 64


def test_a_table_keeps_its_order() -> None:
    sources = [("t/b", "b"), ("t/a", "a"), ("u/b", "b")]
    assert partitions_of(sources) == [partition_of("b"), partition_of("a"), partition_of("b")]


def test_devices_spread_over_all_partitions() -> None:
    counts = [0] * PARTITIONS
    for number in range(6400):
        counts[partition_of(f"sensor-{number}")] += 1
    assert min(counts) > 60
    assert max(counts) < 150
