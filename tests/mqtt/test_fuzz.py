"""Random sessions against the real broker: nothing breaks, nothing grows, others are served.

A few seconds in the normal run; `TIDEGATE_FUZZ_S=600` makes it a nightly one, which draws its seed
anew and says it first, and `TIDEGATE_FUZZ_SEED` repeats one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from pathlib import Path
from typing import Any

from mqtt.broker.config import BrokerConfig
from mqtt.broker.session_store import SqliteSessionStore
from tests.kit.brokers import ManualCapture, serving
from tests.kit.fuzzing import Fuzzer
from tests.kit.raw_mqtt import RawClient, connected, publish

SECONDS = float(os.environ.get("TIDEGATE_FUZZ_S", "5"))
FUZZERS = 6
SESSIONS_MIN = 20  # of each fuzzer, before the memory is measured and after
GROWTH_BYTES_MAX = 64 << 20  # of the whole test process

CONFIG = BrokerConfig(
    sys_interval_s=0.5,
    sessions_max=300,
    subscriptions_max=20,
    queue_messages_max=100,
    queue_bytes_max=1 << 18,
    queues_bytes_max=4 << 20,
    retained_messages_max=100,
    retained_bytes_max=1 << 20,
    receive_maximum=20,
    maximum_packet_size_bytes=1 << 17,
    write_buffer_bytes=1 << 16,
    slow_timeout_s=1.0,
    check_payload_format=True,
)


def resident_bytes() -> int:
    """Return the memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def fuzz(port: int, fuzzer: Fuzzer, until_s: float) -> int:
    """Play sessions until the time is up, and some on any machine; return how many."""
    sessions = 0
    while time.monotonic() < until_s or sessions < SESSIONS_MIN:
        sessions += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        deaf = sessions % 7 == 0
        if deaf:
            writer.transport.pause_reading()  # type: ignore[attr-defined] # StreamWriter's own
        try:
            for piece in fuzzer.session():
                writer.write(piece)
                await asyncio.wait_for(writer.drain(), 1.0)
                if not deaf:
                    await asyncio.sleep(0)
            if not deaf:
                await asyncio.wait_for(reader.read(1 << 16), 0.005)
        except (ConnectionError, TimeoutError):
            pass
        finally:
            writer.transport.abort()
    return sessions


async def behave(client: RawClient, until_s: float) -> list[float]:
    """Publish to itself with QoS 1, one at a time; return how long each took."""
    taken_s: list[float] = []
    number = 0
    while time.monotonic() < until_s or not taken_s:
        number = number % 60_000 + 1
        payload = b"%d" % number
        began_s = time.perf_counter()
        client.send(publish(5, "quiet/place", payload, 1, number))
        firsts = set()
        while firsts != {0x32, 0x40}:
            first, body = await client.packet()
            assert first in (0x32, 0x40), hex(first)
            if body[2:3] == b"\x97" and first == 0x40:
                break  # the queues of those who are away are full, all together
            firsts.add(first)
            if first == 0x32:
                assert body.endswith(payload)
                packet_id = body[2 + len("quiet/place") :][:2]
                client.send(b"\x40\x02" + packet_id)
        taken_s.append(time.perf_counter() - began_s)
        await asyncio.sleep(0.002)
    return taken_s


async def test_random_sessions_break_nothing(tmp_path: Path, record_property: Any) -> None:
    nightly = "TIDEGATE_FUZZ_S" in os.environ
    drawn = random.SystemRandom().randrange(1 << 32) if nightly else 1
    seed = int(os.environ.get("TIDEGATE_FUZZ_SEED", drawn))
    print(f"TIDEGATE_FUZZ_SEED={seed}")
    faults: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: faults.append(repr(context)))
    store = SqliteSessionStore(tmp_path / "sessions.db")
    capture = ManualCapture(automatic=True)
    async with serving(CONFIG, store=store, capture=capture) as broker:
        warm_s = time.monotonic() + SECONDS / 3
        client = await connected(broker, 5, "well-behaved")  # before there are too many
        assert await client.subscribe(("quiet/place", 1)) == [1]
        fuzzers = [Fuzzer(seed + n) for n in range(FUZZERS)]
        await asyncio.gather(*(fuzz(broker.port, fuzzer, warm_s) for fuzzer in fuzzers))
        capture.taken.clear()
        before = resident_bytes()
        until_s = time.monotonic() + SECONDS * 2 / 3
        taken_s, *sessions = await asyncio.gather(
            behave(client, until_s), *(fuzz(broker.port, fuzzer, until_s) for fuzzer in fuzzers)
        )
        capture.taken.clear()
        grown = resident_bytes() - before
        stats = broker.broker.stats()
    taken_s.sort()
    p99_ms = taken_s[int(len(taken_s) * 0.99)] * 1e3
    report = (
        f"{sum(sessions)} sessions, {stats.protocol_faults} faults answered,"
        f" {len(taken_s)} exchanges of the well-behaved client, p99 {p99_ms:.1f} ms,"
        f" memory {grown / 1e6:+.1f} MB"
    )
    print(report)
    record_property("fuzz", report)
    assert not faults, faults[:3]
    assert stats.protocol_faults > 50
    assert stats.sessions <= CONFIG.sessions_max
    assert stats.queued_bytes <= CONFIG.queues_bytes_max
    assert stats.retained_messages <= CONFIG.retained_messages_max + 20  # and $SYS
    assert grown < GROWTH_BYTES_MAX
