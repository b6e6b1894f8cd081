"""The live sink: messages as they were published, marked when late, never in the cloud's name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from bridge.readings import FLAG_PROPERTIES, FLAG_RETAIN, Readings
from cloud.config import LiveConfig
from cloud.sinks.contract import DecodedEntry
from cloud.sinks.live import LiveSink
from cloud.stream.contract import Entry
from mqtt.broker.broker import Outgoing
from mqtt.properties import (
    CONTENT_TYPE,
    MESSAGE_EXPIRY_INTERVAL,
    USER_PROPERTY,
    encode_property_block,
)
from runtime.clock import ManualClock

PUBLISH = 3
LATE = encode_property_block({USER_PROPERTY: [("tidegate-historical", "1")]}, PUBLISH)


class FakeBroker:
    """Remembers messages; everybody listens to everything but `deaf` topics and `$` ones."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []
        self.deaf: set[str] = set()
        self.asked: set[str] = set()  # topics that begin with `$` and have a subscriber

    async def publish_many(self, messages: Iterable[Outgoing]) -> int:
        before = len(self.messages)
        self.messages += messages
        return len(self.messages) - before

    def has_subscribers(self, topic_name: str) -> bool:
        if topic_name.startswith("$"):
            return topic_name in self.asked
        return topic_name not in self.deaf


def entry_of(
    *rows: tuple[str, bytes, int, int, bytes], appended_us: int, historical: bool = False
) -> DecodedEntry:
    """Return an entry of (topic, payload, flags, time_us, properties)."""
    sources = [(topic, topic.split("/")[-1]) for topic, *_ in rows]
    readings = Readings(
        range(1, len(rows) + 1),
        sources,
        list(range(len(rows))),
        [row[3] for row in rows],
        [row[2] for row in rows],
        [row[1] for row in rows],
        [row[4] for row in rows],
    )
    entry = Entry(1, 1, "gw", 5, ((1, len(rows)),), len(rows), appended_us, b"")
    return DecodedEntry(entry, readings, historical)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


async def opened(
    broker: FakeBroker, clock: ManualClock, config: LiveConfig | None = None
) -> LiveSink:
    sink = LiveSink(broker, config or LiveConfig(), clock)
    await sink.open(1)
    return sink


async def test_messages_are_as_they_were_published(broker: FakeBroker, clock: ManualClock) -> None:
    now = clock.wall_us()
    sink = await opened(broker, clock)
    block = encode_property_block({CONTENT_TYPE: "text/plain"}, PUBLISH)
    one = entry_of(
        ("devices/a", b"0", 0, now, b""),
        ("devices/b", b"1", 1, now, b""),
        ("devices/c", b"2", 2 | FLAG_RETAIN | FLAG_PROPERTIES, now, block),
        appended_us=now,
    )
    await sink.write([one], {1: 1})
    assert broker.messages == [
        Outgoing("devices/a", b"0", 0),
        Outgoing("devices/b", b"1", 1),
        Outgoing("devices/c", b"2", 2, True, block),
    ]
    assert sink.stats.published == 3
    assert await sink.cursors() is None


async def test_late_readings_are_marked_and_not_retained(
    broker: FakeBroker, clock: ManualClock
) -> None:
    now = clock.wall_us()
    sink = await opened(broker, clock, LiveConfig(historical_s=10))
    old = entry_of(
        ("devices/a", b"old", 1 | FLAG_RETAIN, now - 11_000_000, b""),
        ("devices/b", b"new", 1 | FLAG_RETAIN, now - 9_000_000, b""),
        appended_us=now,
    )
    waited = entry_of(("devices/c", b"w", 1, now, b""), appended_us=now, historical=True)
    await sink.write([old, waited], {1: 1})
    assert broker.messages == [
        Outgoing("devices/a", b"old", 1, False, LATE),
        Outgoing("devices/b", b"new", 1, True),
        Outgoing("devices/c", b"w", 1, False, LATE),
    ]
    assert sink.stats.historical == 2


async def test_at_start_what_came_in_long_ago_is_passed_over(
    broker: FakeBroker, clock: ManualClock
) -> None:
    sink = await opened(broker, clock, LiveConfig(skip_older_s=300))
    now = clock.wall_us()
    entries = [
        entry_of(("devices/a", b"x", 1, now, b""), appended_us=now - age_s * 1_000_000)
        for age_s in (301, 299, 0)
    ]
    await sink.write(entries, {1: 3})
    assert len(broker.messages) == 2
    assert sink.stats.skipped == 1
    clock.advance(1000)  # later on nothing is passed over however long it lies
    await sink.write([entries[2]], {1: 3})
    assert len(broker.messages) == 3


async def test_message_expiry_goes_on_counting(broker: FakeBroker, clock: ManualClock) -> None:
    now = clock.wall_us()
    block = encode_property_block({MESSAGE_EXPIRY_INTERVAL: 30}, PUBLISH)
    rows = [
        ("devices/a", b"x", 1 | FLAG_PROPERTIES, now - age_s * 1_000_000, block)
        for age_s in (0, 10, 30, -5)
    ]
    sink = await opened(broker, clock)
    await sink.write([entry_of(*rows, appended_us=now)], {1: 1})
    assert [message.expiry_s for message in broker.messages] == [30, 20, 30]
    assert all(message.properties == b"" for message in broker.messages)
    assert sink.stats.expired == 1


async def test_nothing_is_published_in_the_clouds_name(
    broker: FakeBroker, clock: ManualClock
) -> None:
    now = clock.wall_us()
    rows = [
        (topic, b"x", 1 | FLAG_RETAIN, now, b"")
        for topic in ("tidegate/v1/down/gw", "$SYS/broker", "tidegatex/ok")
    ]
    sink = await opened(broker, clock)
    await sink.write([entry_of(*rows, appended_us=now)], {1: 1})
    assert [message.topic_name for message in broker.messages] == ["tidegatex/ok"]
    assert sink.stats.reserved == 2


async def test_what_nobody_hears_costs_no_message_unless_retained(
    broker: FakeBroker, clock: ManualClock
) -> None:
    now = clock.wall_us()
    broker.deaf = {"devices/a", "devices/b"}
    one = entry_of(
        ("devices/a", b"x", 1, now, b""),
        ("devices/b", b"x", 1 | FLAG_RETAIN, now, b""),
        appended_us=now,
    )
    sink = await opened(broker, clock)
    await sink.write([one, replace(one, historical=True)], {1: 1})
    assert broker.messages == [
        Outgoing("devices/b", b"x", 1, True),
        Outgoing("devices/b", b"x", 1, False, LATE),
    ]


async def test_who_listens_below_live_gets_what_is_not_late_and_only_that(
    broker: FakeBroker, clock: ManualClock
) -> None:
    now = clock.wall_us()
    broker.asked = {"$live/devices/a", "$live/devices/b", "$live/$SYS/broker"}
    broker.deaf = {"devices/b"}
    rows = [
        (topic, b"x", 1 | FLAG_RETAIN if topic == "devices/a" else 1, now, b"")
        for topic in ("devices/a", "devices/b", "devices/c", "$SYS/broker")
    ]
    sink = await opened(broker, clock)
    one = entry_of(*rows, appended_us=now)
    await sink.write([one], {1: 1})
    assert broker.messages == [
        Outgoing("devices/a", b"x", 1, True),
        Outgoing("$live/devices/a", b"x", 1, False),
        Outgoing("$live/devices/b", b"x", 1, False),
        Outgoing("devices/c", b"x", 1, False),
    ]
    broker.messages.clear()
    await sink.write([replace(one, historical=True)], {1: 1})
    assert [m.topic_name for m in broker.messages] == ["devices/a", "devices/c"]
