"""The encoder's process: a connection goes on from the snapshot the cloud acknowledged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.envelope import Mode
from bridge.structured import StructuredDecoder
from bridge.structured_bodies import LINK_LIMITS
from edge.encoder_process import REQUEST, SPARE, SnapshotFile
from edge.uplink_bodies import UplinkBodies
from tests.kit.columns import columns_of
from tests.kit.small_disk import small_disk

WARM = 0x20  # of a body's first byte


class Kept(dict[bytes, bytes]):
    """What a cloud kept."""

    def put(self, name: bytes, data: bytes) -> None:
        self[name] = data


class Link:
    """A gateway's bodies and a cloud's decoder."""

    def __init__(self, path: Path, *, metered: bool = False, size: int = 20) -> None:
        self.bodies = UplinkBodies("structured", 1000, 3, path, metered=metered)
        self.size = size
        self.bodies._worker._retry_s = 0
        self.kept = Kept()
        self.decoder = StructuredDecoder(LINK_LIMITS, self.kept)
        self.turn = 0

    async def send(self, *, acknowledged: bool = True) -> int:
        """Send a batch of `size` readings; returns the first byte of its body."""
        start = 1_700_000_000_000 + 1000 * self.turn
        self.turn += 1
        batch = columns_of(
            [
                (start + n, f"plant/d{n}/state", b'{"temp":%d.5,"on":true}' % (n + self.turn))
                for n in range(self.size)
            ]
        )
        made = await self.bodies.encode(batch, 0)
        assert made is not None
        mode, body = made
        assert mode == Mode.STRUCTURED
        assert list(self.decoder.decode(body, self.size).payloads) == list(batch.payloads)
        if acknowledged:
            self.bodies.acknowledged(mode, self.size, 0.0)
        return body[0]

    def cut(self) -> None:
        self.bodies.reset()
        self.decoder = StructuredDecoder(LINK_LIMITS, self.kept)


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[Link]:
    one = Link(tmp_path / "context.snapshot")
    yield one
    await one.bodies.close()


async def test_a_connection_goes_on_from_the_snapshot_the_cloud_acknowledged(link: Link) -> None:
    heads = [await link.send() for _ in range(5)]
    assert not any(head & WARM for head in heads)
    link.cut()
    assert await link.send() & WARM
    assert not await link.send() & WARM, "named once"


async def test_what_one_node_keeps_is_not_offered_to_another(link: Link) -> None:
    link.bodies.linked("mqtt://one:2883")
    for _ in range(5):
        await link.send()
    link.cut()
    link.bodies.linked("mqtt://two:2883")
    assert not await link.send(acknowledged=False) & WARM
    link.cut()
    link.bodies.linked("mqtt://one:2883")
    assert await link.send() & WARM, "it is still there"
    for _ in range(5):
        await link.send()
    link.cut()
    link.bodies.linked("mqtt://two:2883")
    for _ in range(5):
        await link.send()
    link.cut()
    assert await link.send() & WARM, "the second has one of its own by now"


async def test_a_process_that_was_started_again_goes_on_from_the_file(link: Link) -> None:
    for _ in range(5):
        await link.send()
    await link.bodies.close()
    link.cut()
    assert await link.send() & WARM


async def test_a_process_that_dies_amid_a_connection_starts_from_nothing(link: Link) -> None:
    for _ in range(5):
        await link.send()
    await link.bodies.close()
    assert not await link.send() & WARM, "only the first body of a connection may name one"
    link.cut()
    assert await link.send() & WARM


async def test_what_was_not_acknowledged_is_not_offered(link: Link) -> None:
    for _ in range(5):
        await link.send(acknowledged=False)
    link.cut()
    assert not await link.send() & WARM


async def test_at_most_one_snapshot_waits_to_be_acknowledged(link: Link) -> None:
    for _ in range(20):
        await link.send(acknowledged=False)
    assert len(link.kept) == 1


async def test_after_a_refusal_a_connection_starts_from_nothing(link: Link) -> None:
    for _ in range(5):
        await link.send()
    link.cut()
    link.bodies.refused()
    assert not await link.send() & WARM
    link.cut()
    assert not await link.send() & WARM, "what was refused is not offered again"


async def test_a_damaged_file_costs_a_cold_start(link: Link, tmp_path: Path) -> None:
    for _ in range(5):
        await link.send()
    file = tmp_path / "context.snapshot"
    file.write_bytes(file.read_bytes()[:-3])
    link.cut()
    assert not await link.send() & WARM


def test_a_snapshot_is_written_only_once_it_is_acknowledged(tmp_path: Path) -> None:
    file = SnapshotFile(tmp_path / "s")
    file.hold(b"n" * 16, b"data")
    assert file.read() is None
    file.acknowledged()
    assert file.read() is None, "reading drops what was held: it starts a new context"
    file.hold(b"n" * 16, b"data")
    file.acknowledged()
    assert file.read() == (b"n" * 16, b"data")
    file.forget()
    assert file.read() is None


def test_on_a_full_disk_the_snapshot_before_stays_and_nothing_else(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        file = SnapshotFile(disk / "s")
        file.hold(b"n" * 16, b"data")
        file.acknowledged()
        file.hold(b"m" * 16, bytes(100_000))
        file.acknowledged()
        assert file.read() == (b"n" * 16, b"data")
        assert list(disk.iterdir()) == [disk / "s"]


def test_a_file_that_cannot_be_written_is_none_at_all(tmp_path: Path) -> None:
    file = SnapshotFile(tmp_path / "missing" / "s")
    file.hold(b"n" * 16, b"data")
    file.acknowledged()
    assert file.read() is None


@pytest.mark.parametrize(("metered", "least"), [(False, Mode.COLUMNAR), (True, Mode.STRUCTURED)])
async def test_bytes_that_are_paid_for_are_not_given_for_speed(metered: bool, least: int) -> None:
    bodies = UplinkBodies("auto", 1000, 3, metered=metered)
    batch = columns_of([(1000 + n, "plant/d/state", b'{"n":%d}' % n) for n in range(20)])
    assert await bodies.encode(batch, 0) is None, "its process is only being started"
    warming = bodies._warming
    assert warming is not None
    await warming
    wanted = set()
    for tenth in range(100):
        wanted.add(bodies.wanted(tenth / 10, 1_000_000, 0))
        bodies.acknowledged(Mode.COLUMNAR, 20, tenth / 10)
    await bodies.close()
    assert min(wanted) == least


@pytest.mark.parametrize(
    ("mode", "metered", "waiting", "spare"),
    [
        ("auto", False, 100, True),
        ("auto", False, 1_000_000, False),
        ("auto", True, 100, False),
        ("structured", False, 100, False),
    ],
)
async def test_bytes_are_to_spare_only_where_they_are_not_paid_for_and_little_waits(
    mode: str, metered: bool, waiting: int, spare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = UplinkBodies(mode, 1000, 3, metered=metered)
    asked: list[bytes] = []

    async def call(request: bytes) -> bytes:
        asked.append(request)
        return bytes((Mode.COLUMNAR,))

    monkeypatch.setattr(bodies._worker, "call", call)
    monkeypatch.setattr(type(bodies._worker), "running", property(lambda _: True))
    batch = columns_of([(1000 + n, "plant/d/state", b'{"n":%d}' % n) for n in range(20)])
    bodies.wanted(0.0, waiting, 0)
    await bodies.encode(batch, 0)
    (request,) = asked
    assert bool(REQUEST.unpack_from(request)[0] & SPARE) is spare


@pytest.mark.parametrize("metered", [False, True])
async def test_small_batches_begin_warm_where_bytes_are_paid_for(
    metered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.inline_bodies._HOLD_S", 60.0)  # whatever machine this is
    link = Link(tmp_path / "context.snapshot", metered=metered, size=3)
    try:
        for _ in range(5):
            await link.send()
        link.cut()
        assert bool(await link.send() & WARM) is metered
        assert (link.bodies.pid is not None) is metered
    finally:
        await link.bodies.close()
