"""QoS 2 under load while the gateway is killed again and again: every reading once, none lost."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge.segments import unpack_body
from mqtt.frames import parse_publishes
from mqtt.packets import V5, V311, Connack, Connect, Pubcomp, Publish, Pubrec, Pubrel
from mqtt.properties import SESSION_EXPIRY_INTERVAL
from tests.kit.brokers import WireClient
from tests.kit.processes import Process, free_ports
from tests.kit.sites import until

KILLS = 12
WINDOW = 20

_EDGE = """\
data = "{data}"
gateway = "gw-1"
host = "127.0.0.1"
port = {port}
[http]
enabled = false
[journal]
disk_reserve_bytes = 0
"""


@dataclass
class Device:
    """A client that sees every QoS 2 exchange through, over as many connections as it takes."""

    port: int
    name: str
    version: int
    number: int = 0
    stopping: bool = False
    asked: int = 0  # CONNECTs sent
    connections: int = 0
    finished: list[bytes] = field(default_factory=list)
    # packet identifier -> payload, None once PUBREC came
    inflight: dict[int, bytes | None] = field(default_factory=dict)
    payloads: dict[int, bytes] = field(default_factory=dict)

    async def run(self) -> None:
        """Publish until told to stop, then finish."""
        while self.inflight or not self.stopping:
            try:
                client = await WireClient.open(self.port, self.version)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            try:
                await self._talk(client)
            finally:
                await client.close()

    async def _talk(self, client: WireClient) -> None:
        properties = {SESSION_EXPIRY_INTERVAL: 3600} if self.version == V5 else {}
        client.send(Connect(self.name, self.version, clean_start=False, properties=properties))
        is_first, self.asked = self.asked == 0, self.asked + 1
        connack = await client.next()
        if not isinstance(connack, Connack):
            return
        if is_first or self.connections:  # else a session may be there whose CONNACK was lost
            assert connack.session_present == (self.connections > 0)
        self.connections += 1
        for packet_id, payload in self.inflight.items():
            if payload is None:
                client.send(Pubrel(packet_id))
            else:
                client.send(self._publish(packet_id, payload, dup=True))
        while self.inflight or not self.stopping:
            while len(self.inflight) < WINDOW and not self.stopping:
                self.number += 1
                packet_id = self.number % 500 + 1
                payload = b"%s %d" % (self.name.encode(), self.number)
                self.inflight[packet_id] = self.payloads[packet_id] = payload
                client.send(self._publish(packet_id, payload, dup=False))
            packet = await client.next()
            if isinstance(packet, Pubrec):
                self.inflight[packet.packet_id] = None
                client.send(Pubrel(packet.packet_id))
            elif isinstance(packet, Pubcomp):
                del self.inflight[packet.packet_id]
                self.finished.append(self.payloads[packet.packet_id])
            else:
                return

    def _publish(self, packet_id: int, payload: bytes, *, dup: bool) -> Publish:
        return Publish(f"devices/{self.name}/n", payload, 2, dup=dup, packet_id=packet_id)


def stored(path: Path) -> Counter[bytes]:
    """Return the payloads in a journal and how often each is there."""
    found: Counter[bytes] = Counter()
    with closing(sqlite3.connect(path)) as connection:
        for (body,) in connection.execute("SELECT body FROM commits"):
            for segment in unpack_body(body):
                found.update(p[4] for p in parse_publishes(segment.frames, segment.version))
    return found


@pytest.mark.conformance("MQTT-4.3.3-10", "MQTT-4.4.0-1")
async def test_qos_2_is_exactly_once_however_often_the_gateway_is_killed(tmp_path: Path) -> None:
    rng = random.Random("exactly once")
    (port,) = free_ports(1)
    (tmp_path / "edge.toml").write_text(_EDGE.format(data=tmp_path, port=port), "utf-8")
    command = ["edge", "-c", str(tmp_path / "edge.toml")]
    with Process(command, tmp_path / "edge.log", port=port) as edge:
        await asyncio.to_thread(edge.start)
        devices = [Device(port, "d4", V311), Device(port, "d5", V5), Device(port, "e5", V5)]
        async with asyncio.TaskGroup() as group:
            for device in devices:
                group.create_task(device.run())
            for _ in range(KILLS):
                await asyncio.sleep(rng.uniform(0.02, 0.4))
                await asyncio.to_thread(edge.kill)
                await asyncio.to_thread(edge.start)
            await until(
                "enough",
                lambda: sum(len(device.finished) for device in devices) > 100 * KILLS,
                timeout_s=300,
            )
            for device in devices:
                device.stopping = True
        assert await asyncio.to_thread(edge.stop) == 0
    finished = [payload for device in devices for payload in device.finished]
    assert len(finished) > 100 * KILLS
    assert stored(tmp_path / "edge" / "journal.db") == Counter(finished)
