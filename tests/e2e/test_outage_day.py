"""A day without a link, in compressed time, and its drain over 64 kbit/s beside live readings.

Gateway and node run in the test's own loop, joined by a throttling proxy; devices and subscribers
are stock clients (paho by aiomqtt). While the link is away the gateway's clock jumps from one
publish to the next. A short day by default; `TIDEGATE_OUTAGE_READINGS=86400` makes it one reading a
second.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiomqtt

from cloud.alerts.config import AlertsConfig, RuleConfig
from cloud.config import FrontBrokerConfig
from cloud.ledger_files import balance_files
from edge.config import ClockConfig
from edge.service import EdgeService
from edge.uplink_config import UplinkConfig
from runtime.clock import SystemClock
from tests.kit.cloud import query
from tests.kit.nodes import node_config, running_node
from tests.kit.proxy import Proxy
from tests.kit.sites import gateway_config, until

READINGS = int(os.environ.get("TIDEGATE_OUTAGE_READINGS", "8640"))
SLOTS = 144  # of ten minutes
DAY_S = 86_400
LATE_S = 120  # from the day's last reading to the link's return: it is history too
LINK_BYTES_S = 8000.0  # 64 kbit/s
DEVICES = 10
DRAIN_S = 60 + READINGS / 100  # the machine may be busy
HOT = 99.5  # of one reading in the outage


class JumpingClock(SystemClock):
    """A wall clock that may be put forward, as if time had passed; timers go by the true time."""

    def __init__(self, behind_s: float) -> None:
        super().__init__()
        self._offset_s = -behind_s

    def jump(self, seconds: float) -> None:
        """Let time pass at once."""
        self._offset_s += seconds

    def wall_us(self) -> int:
        """Return the time, jumps included."""
        return super().wall_us() + round(self._offset_s * 1_000_000)


@asynccontextmanager
async def running(
    folder: Path, clock: JumpingClock, uplink: UplinkConfig
) -> AsyncIterator[EdgeService]:
    """Run a gateway that takes the clock's jumps for time."""
    config = gateway_config(folder, 1883, uplink=uplink)  # its own endpoint counts
    gateway = EdgeService(replace(config, clock=ClockConfig(repair=False)), clock)
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


class Listener:
    """A stock client that notes what it gets."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.late: list[bytes] = []  # of these, marked as historical

    async def run(self, port: int, topic_filter: str, ready: asyncio.Event) -> None:
        """Subscribe and listen until cancelled."""
        v5 = aiomqtt.ProtocolVersion.V5
        async with aiomqtt.Client("127.0.0.1", port, protocol=v5, timeout=60) as c:
            await c.subscribe(topic_filter, qos=1)
            ready.set()
            async for message in c.messages:
                assert isinstance(message.payload, bytes)
                self.payloads.append(message.payload)
                user = getattr(message.properties, "UserProperty", [])
                if ("tidegate-historical", "1") in user:
                    self.late.append(message.payload)


@asynccontextmanager
async def listening(port: int, *filters: str) -> AsyncIterator[list[Listener]]:
    """Run a stock client for each filter."""
    listeners = [Listener() for _ in filters]
    tasks = []
    for listener, topic_filter in zip(listeners, filters, strict=True):
        ready = asyncio.Event()
        tasks.append(asyncio.create_task(listener.run(port, topic_filter, ready)))
        await ready.wait()
    try:
        yield listeners
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def spend_the_day(gateway: EdgeService, clock: JumpingClock, rng: random.Random) -> None:
    """Publish a day of readings while the clock jumps from slot to slot."""
    number, values = 0, [20.0] * DEVICES
    async with aiomqtt.Client("127.0.0.1", gateway.port, timeout=60) as device:
        device.pending_calls_threshold = READINGS
        for _ in range(SLOTS):
            clock.jump(DAY_S / SLOTS)
            batch = []
            for _ in range(READINGS // SLOTS):
                which = number % DEVICES
                values[which] += rng.gauss(0, 0.1)
                hot = number == READINGS // 2 + 3
                payload = json.dumps({"n": number, "t": HOT if hot else round(values[which], 2)})
                batch.append(device.publish(f"devices/d{which}/t", payload, qos=1))
                number += 1
            await asyncio.gather(*batch)


async def live_beside(gateway: EdgeService, sent: list[bytes], done: asyncio.Event) -> None:
    """Publish a live reading every now and then."""
    async with aiomqtt.Client("127.0.0.1", gateway.port, timeout=60) as device:
        while not done.is_set():
            payload = b'{"live": %d}' % len(sent)
            await device.publish("devices/live/t", payload, qos=1)
            sent.append(payload)
            await asyncio.sleep(0.1)


def hot_rule() -> AlertsConfig:
    """Return a rule that the outage's one hot reading breaks."""
    rule = RuleConfig("hot", "threshold", topic="devices/+/t", field="t", op=">", value=90.0)
    return AlertsConfig(rule=(rule,))


async def test_a_day_of_outage_drains_over_64_kbit(tmp_path: Path) -> None:
    clock = JumpingClock(DAY_S + LATE_S)
    live: list[bytes] = []
    done = asyncio.Event()
    # a subscriber in this busy loop may be far behind the drain, and is to miss nothing
    broker = FrontBrokerConfig(queue_messages_max=READINGS * 2, queue_bytes_max=1 << 30)
    config = node_config(tmp_path, alerts=hot_rule(), broker=broker)
    async with (
        running_node(tmp_path, config=config) as node,
        Proxy("127.0.0.1", node.port) as proxy,
    ):
        await proxy.refuse()
        uplink = UplinkConfig(endpoints=(proxy.url,), backoff_max_s=1, historical_s=30)
        async with (
            running(tmp_path, clock, uplink) as gateway,
            listening(node.port, "devices/+/#", "$live/devices/+/#") as (everything, fresh),
        ):
            await spend_the_day(gateway, clock, random.Random(4))
            clock.jump(LATE_S)
            proxy.up.bytes_s = proxy.down.bytes_s = LINK_BYTES_S
            await proxy.listen()
            began_s = time.monotonic()
            beside = asyncio.create_task(live_beside(gateway, live, done))
            taken = READINGS // SLOTS * SLOTS
            await until(
                "drained",
                lambda: len(everything.payloads) - len(fresh.payloads) >= taken,
                timeout_s=DRAIN_S,
            )
            took_s = time.monotonic() - began_s
            done.set()
            await beside
            total = taken + len(live)
            await until("heard", lambda: len(everything.payloads) == total)
            await until("fresh ones too", lambda: len(fresh.payloads) == len(live))
            await until("stored", lambda: node.status().readings_stored == total)
            await until("judged", lambda: len(told(tmp_path)) == 2)
            moved = proxy.up.bytes + proxy.down.bytes
    print(f"{total} readings, {moved} bytes, {took_s:.1f} s, {len(live)} live ones meanwhile")
    check_stored(tmp_path, total)
    check_heard(everything, fresh, live)
    check_alert(tmp_path)
    balance = await balance_files(tmp_path)
    assert balance.balanced, balance.lines()
    assert took_s > 0.8 * moved / (2 * LINK_BYTES_S), "the line was as slow as it should be"


def check_stored(folder: Path, total: int) -> None:
    """Nothing lost, nothing twice, each device in order, and times as they were at the edge."""
    sql = "SELECT seq, device, time_us, json_extract(payload, '$.n') FROM readings ORDER BY seq"
    rows = query(folder / "cloud" / "storage.db", sql)
    assert len(rows) == total == len({row[0] for row in rows})
    numbers = [row[3] for row in rows if row[3] is not None]
    assert numbers == list(range(len(numbers)))
    times = [row[2] for row in rows]
    assert times == sorted(times)
    assert times[-1] - times[0] > DAY_S * 0.99e6


def told(folder: Path) -> list[tuple[object, ...]]:
    """Return the history of alerts."""
    sql = "SELECT state, at_us, historical FROM history ORDER BY at_us"
    return query(folder / "cloud" / "alerts.db", sql)


def check_alert(folder: Path) -> None:
    """The hot reading of noon is in the history as of noon, and was no news in the evening."""
    (firing, fired_us, one), (resolved, _, other) = told(folder)
    assert (firing, resolved, one, other) == ("firing", "resolved", 1, 1)
    sql = "SELECT time_us FROM readings WHERE json_extract(payload, '$.t') > 90"
    assert [(fired_us,)] == query(folder / "cloud" / "storage.db", sql)


def check_heard(everything: Listener, fresh: Listener, live: list[bytes]) -> None:
    """Who wants all gets all, marked; who refuses backlog gets none; live is not held up by it."""
    backlog = {payload for payload in everything.payloads if b'"n"' in payload}
    assert set(everything.late) >= backlog
    assert not set(everything.late) & set(live)
    assert fresh.payloads == live, "in order, and nothing else"
    last = max(at for at, payload in enumerate(everything.payloads) if b'"n"' in payload)
    before = sum(b'"live"' in payload for payload in everything.payloads[:last])
    assert before >= 5, "they came while the backlog drained"
