"""Commands in flight while both ends are killed and the link is cut: each has its outcome.

Real processes, SIGKILL, a proxy that cuts in the middle of packets, either way. Every command that
was acknowledged to its sender reaches the device, exactly once with QoS 2 in a session that lasts,
and ends as delivered; the readings that went up meanwhile all balance. `TIDEGATE_COMMANDS_SEED`
draws other moments.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path

from device_sim.config import SimConfig
from device_sim.run import run_sim
from mqtt.client_session import ClientSession
from mqtt.errors import MqttError
from mqtt.properties import USER_PROPERTY
from tests.kit.processes import Process, get_json, wait_for
from tests.kit.proxy import Proxy
from tests.kit.site import Site
from tests.kit.sites import Box, client_at, until

COMMANDS = 60
SEED = os.environ.get("TIDEGATE_COMMANDS_SEED", "")


async def killing(victim: Process, *, kills: int, rng: random.Random) -> None:
    """Kill and restart at seeded moments."""
    for _ in range(kills):
        await asyncio.sleep(rng.uniform(0.1, 0.6))
        await asyncio.to_thread(victim.kill)
        await asyncio.to_thread(victim.start)


async def cutting(proxy: Proxy, *, cuts: int, rng: random.Random) -> None:
    """Cut the link at seeded bytes, up and down."""
    for _ in range(cuts):
        if rng.random() < 0.5:
            proxy.cut_after(up=rng.randrange(1, 5_000))
        else:
            proxy.cut_after(down=rng.randrange(1, 500))
        await proxy.until_cuts(proxy.cuts + 1)
    proxy.heal()


async def device(site: Site, got: list[str], stop: asyncio.Event) -> None:
    """A device that connects again whenever its gateway is gone, and keeps its session."""
    session = ClientSession()
    filters = ("devices/valve-1/cmd/#",)
    while not stop.is_set():
        box = Box()
        try:
            async with client_at(
                site.edge_port, "valve-1", *filters, qos=2, expiry_s=3600, session=session
            ) as (client, box):
                await client.publish("devices/valve-1/value", b"1", 1)
                while not client.closed.done() and not stop.is_set():
                    await asyncio.sleep(0.01)
                    got += ids_of(box)
        except (MqttError, OSError, TimeoutError):
            await asyncio.sleep(0.05)
        finally:
            got += ids_of(box)


def ids_of(box: Box) -> list[str]:
    """Return the ids of the commands a client got since the last call."""
    messages, box.messages[:] = list(box.messages), []
    return [
        text
        for message in messages
        for name, text in message.properties.get(USER_PROPERTY, ())
        if name == "tidegate-command-id"
    ]


async def send(site: Site, rng: random.Random) -> list[str]:
    """Send commands until each was acknowledged once; the same id again after a failure."""
    acked = []
    for number in range(COMMANDS):
        command_id = f"c-{number}"
        properties = {USER_PROPERTY: [("tidegate-command-id", command_id)]}
        while command_id not in acked:
            try:
                async with client_at(site.cloud_port, "operator") as (client, _):
                    topic = f"devices/valve-1/cmd/{number}"
                    async with asyncio.timeout(5):
                        await client.publish(topic, b"x", qos_of(command_id), properties=properties)
                acked.append(command_id)
            except (MqttError, OSError, TimeoutError):
                await asyncio.sleep(0.05)
        await asyncio.sleep(rng.uniform(0, 0.05))
    return acked


def qos_of(command_id: str) -> int:
    """Return the QoS a command is sent with: three of four with 2."""
    return 1 if command_id.endswith(("3", "7")) else 2


def outcomes(site: Site) -> dict[str, str]:
    """Return the state of each command, as the API has it."""
    answer = get_json(f"http://127.0.0.1:{site.cloud_http}/api/v1/commands?limit=1000")
    return {one["id"]: one["state"] for one in answer["commands"]} if answer else {}


async def test_every_command_arrives_though_both_ends_are_killed(tmp_path: Path) -> None:
    rng = random.Random(f"commands{SEED}")
    with Site(tmp_path, cloud="[commands]\nretry_s = 0.5\n") as site:
        async with Proxy("127.0.0.1", site.cloud_port) as proxy:
            await under_attack(site, proxy, rng)


async def under_attack(site: Site, proxy: Proxy, rng: random.Random) -> None:
    site.route_uplink(proxy.port)
    await asyncio.to_thread(site.up)
    got: list[str] = []
    stop, stop_load = asyncio.Event(), asyncio.Event()
    valve = asyncio.create_task(device(site, got, stop))
    url = f"http://127.0.0.1:{site.cloud_http}/api/v1/devices/valve-1/latest"

    def seen() -> bool:
        return "values" in (get_json(url) or {})

    await asyncio.to_thread(wait_for, "the device was seen", seen)
    config = SimConfig(
        broker=f"mqtt://127.0.0.1:{site.edge_port}",
        devices=5,
        rate_per_s=300,
        duration_s=0,
        seed=5,
        drain_timeout_s=60,
        verify=str(site.storage),
        verify_timeout_s=60,
    )
    loading = asyncio.create_task(run_sim(config, stop=stop_load))
    sending = asyncio.create_task(send(site, rng))
    await asyncio.gather(
        killing(site.edge, kills=6, rng=random.Random(f"edge{SEED}")),
        killing(site.cloud, kills=6, rng=random.Random(f"cloud{SEED}")),
        cutting(proxy, cuts=12, rng=random.Random(f"link{SEED}")),
    )
    sent = await sending
    stop_load.set()
    report = await loading
    expected = dict.fromkeys(sent, "delivered")
    await asyncio.to_thread(
        wait_for,
        "delivered",
        lambda: outcomes(site) == expected,
        progress=lambda: outcomes(site),
    )
    await until("the device has them all", lambda: set(got) >= set(sent))
    stop.set()
    await valve
    twice = [one for one, count in Counter(got).items() if count > 1 and qos_of(one) == 2]
    assert not twice, "with QoS 2 each of them once"
    assert report.verdict is not None
    assert report.verdict.ok, report.verdict.summary()
    await asyncio.to_thread(site.wait_drained)
    audit = await asyncio.to_thread(site.audit)
    assert audit.returncode == 0, audit.stdout + audit.stderr
