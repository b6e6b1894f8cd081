"""What the uplink does with each answer that is no success, and with what cannot be sent."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bridge.batch import Batch, Encoder, EntryEncoder, decode_entry
from bridge.structured_bodies import BodyChoice
from edge.contract import Lane
from edge.segments import Segment, pack_segment, unpack_body
from mqtt.frames import parse_publishes
from tests.kit.cloud_peer import Answer, CloudPeer
from tests.kit.journals import MemoryJournal
from tests.kit.uplinks import FAST, numbered, once, uplink_to


@pytest.mark.parametrize("code", [0x10, 0x80, 0x83, 0x97])
async def test_not_now_is_tried_again_until_it_is_taken(code: int) -> None:
    journal = MemoryJournal()
    async with (
        CloudPeer(once({0: (code, "later"), 1: (code, "later")})) as cloud,
        uplink_to(journal, cloud.url) as uplink,
    ):
        journal.capture(numbered(0, 100))
        await journal.until_trimmed()
        status = uplink.status()
    assert [payload for _, payload in cloud.rows] == numbered(0, 100)
    assert journal.aside == []
    assert status.refusals == 2
    assert status.dials == 1, "on the same connection"
    assert "later" in status.last_error


async def test_a_batch_refused_by_the_check_is_sent_again_in_a_fresh_context() -> None:
    journal = MemoryJournal()
    async with (
        CloudPeer(once({3: (0x99, "check: no")})) as cloud,
        uplink_to(journal, cloud.url, config=replace(FAST, batch_readings=10)),
    ):
        journal.capture(numbered(0, 200))
        await journal.until_trimmed()
    assert [payload for _, payload in cloud.rows] == numbered(0, 200)
    assert cloud.doubled == 0, "nothing behind the refused batch was taken before it"
    assert journal.aside == []


async def test_the_reading_a_cloud_never_takes_is_set_aside_with_its_cause() -> None:
    def script(batch: Batch, _n: int) -> Answer:
        return (0x99, "bounds: poison") if b"poison" in batch.readings.payloads else (0, "")

    journal = MemoryJournal()
    payloads = numbered(0, 100)
    payloads[37] = b"poison"
    async with CloudPeer(script) as cloud, uplink_to(journal, cloud.url) as uplink:
        journal.capture(payloads)
        await journal.until_trimmed()
        await journal.until("tombstone", lambda: not journal.stones)
        status = uplink.status()
    assert [payload for _, payload in cloud.rows] == payloads[:37] + payloads[38:]
    ((lane, first, last, cause, body),) = journal.aside
    assert (lane, first, last) == (Lane.LIVE, 38, 38)
    assert "bounds: poison" in cause
    assert decode_entry(body).readings.payloads == [b"poison"]
    assert status.dead_letters == 1
    assert [(s.first_seq, s.reason) for s in cloud.tombstones] == [(38, "refused")]


async def test_a_reading_larger_than_the_cloud_takes_is_set_aside_unsent() -> None:
    journal = MemoryJournal()
    big = random.Random(3).randbytes(5000)
    async with (
        CloudPeer(maximum_packet_size=2000) as cloud,
        uplink_to(journal, cloud.url),
    ):
        journal.capture([*numbered(0, 5), big, *numbered(5, 5)])
        await journal.until_trimmed()
    assert [payload for _, payload in cloud.rows] == numbered(0, 10)
    ((_, first, _, cause, body),) = journal.aside
    assert first == 6
    assert "2000" in cause
    assert decode_entry(body).readings.payloads == [big]


@pytest.mark.parametrize("mode", ["columnar", "structured"])
async def test_a_reading_no_encoder_takes_is_set_aside_and_the_lane_moves_on(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(encode: Callable[..., Any]) -> Callable[..., Any]:
        def checked(encoder: object, *values: Any, **named: Any) -> Any:
            if any(b"poison" in one.payloads for one in values if hasattr(one, "payloads")):
                raise ValueError("an encoder's fault")
            return encode(encoder, *values, **named)

        return checked

    for owner in (Encoder, EntryEncoder, BodyChoice):
        monkeypatch.setattr(owner, "encode", poisoned(owner.encode))
    journal = MemoryJournal()
    config = replace(FAST, mode=mode)
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url, config=config):
        journal.capture([*numbered(0, 3), b"poison", *numbered(3, 3)])
        await journal.until_trimmed()
    assert [payload for _, payload in cloud.rows] == numbered(0, 6)
    ((lane, first, last, cause, body),) = journal.aside
    assert (lane, first, last) == (Lane.LIVE, 4, 4)
    assert "an encoder's fault" in cause
    (segment,) = unpack_body(body)
    assert parse_publishes(segment.frames, segment.version)[0][4] == b"poison"


async def test_a_commit_that_holds_no_publishes_is_set_aside_whole() -> None:
    journal = MemoryJournal()
    journal.capture(numbered(0, 5))
    body = pack_segment(Segment(4, "c", 1_700_000_000_000_000, 3, b"\x30\xff\xff\xff\xff\xff"))
    journal.commit(Lane.LIVE, 3, 1_700_000_000_000_000, body)
    journal.capture(numbered(5, 5))
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url):
        await journal.until_trimmed()
    assert cloud.rows == [
        *((n + 1, p) for n, p in enumerate(numbered(0, 5))),
        *((n + 9, p) for n, p in enumerate(numbered(5, 5))),
    ]
    ((lane, first, last, _, kept),) = journal.aside
    assert (lane, first, last, kept) == (Lane.LIVE, 6, 8, body)


async def test_a_refused_connect_is_reported_and_tried_again() -> None:
    journal = MemoryJournal()
    journal.capture(numbered(0, 5))
    async with CloudPeer(connack=0x87) as cloud, uplink_to(journal, cloud.url) as uplink:
        await cloud.until("three dials", lambda: cloud.connections >= 3)
        status = uplink.status()
    assert status.link in ("offline", "connecting")
    assert "Not authorized" in status.last_error
    assert cloud.url in status.last_error
    assert cloud.topics == []


async def test_a_journal_that_fails_for_a_while_only_delays() -> None:
    journal = MemoryJournal()
    journal.failures = [OSError("disk"), OSError("disk"), OSError("disk")]
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url):
        journal.capture(numbered(0, 50))
        await journal.until_trimmed()
    assert [payload for _, payload in cloud.rows] == numbered(0, 50)
