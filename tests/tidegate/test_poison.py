"""A poison reading in each hop: its lane and its sink move on, the cause is kept, all balances."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.batch import Encoder
from bridge.errors import BatchError
from cloud.alerts.sink import AlertSink
from cloud.commands.carriers import CarriersSink
from cloud.ingest_batches import BatchIngest
from cloud.latest_sink import LatestSink
from cloud.node import Node
from cloud.sinks.live import LiveSink
from cloud.sinks.storage import StorageSink
from edge.contract import Lane
from edge.segments import Segment, pack_segment
from edge.service import EdgeService
from tests.kit.cloud import query
from tests.kit.nodes import Outcome, node_config, run_command, running_node
from tests.kit.sites import client_at, running_gateway, until

SINKS = {
    "storage": StorageSink,
    "alerts": AlertSink,
    "live": LiveSink,
    "latest": LatestSink,
    "commands": CarriersSink,
}


async def publish(gateway: EdgeService, payload: bytes) -> None:
    """Publish as a device of its own: so nothing else is in the entry."""
    device = f"of-{payload.decode()}"
    async with client_at(gateway.port, device) as (client, _):
        await client.publish(f"devices/{device}/value", payload, 1)


def stored(node: Node) -> set[str]:
    path = node.config.data / "cloud" / "storage.db"
    return {str(row[0]) for row in query(path, "SELECT payload FROM readings")}


async def letters(node: Node, gateway: EdgeService) -> dict[str, str]:
    """Return the causes of all dead letters by name."""
    url = f"http://127.0.0.1:{node.http_port}"
    of_node = await run_command("deadletter", "list", "--url", url)
    of_gateway = await run_command("deadletter", "list", "--data", gateway._config.data)
    lines = [*of_node.out.splitlines(), *of_gateway.out.splitlines()]
    return {line.split()[0]: line for line in lines if ":" in line.split()[0]}


async def audit(node: Node) -> Outcome:
    """Balance once nothing is on its way: what a gateway gave up it tells with what it sends."""
    url = f"http://127.0.0.1:{node.http_port}"
    return await run_command("audit", "--url", url, "--settled", 60)


async def test_a_poison_that_the_journal_cannot_give_back(tmp_path: Path) -> None:
    async with (
        running_node(tmp_path, config=node_config(tmp_path / "node")) as node,
        running_gateway(tmp_path / "gw", node) as gateway,
    ):
        assert gateway._parts is not None
        body = pack_segment(Segment(4, "c", 1, 1, b"\x30\xff\xff\xff\xff\xff"))
        await gateway._parts.journal.append([(Lane.LIVE, 1, body)])
        await publish(gateway, b"after")
        await until("the next is stored", lambda: stored(node) == {"after"})
        (line,) = (await letters(node, gateway)).values()
        assert line.startswith("edge:1 ")
        said = await audit(node)
        assert (said.code, "2 assigned = 1 stored + 1 given up" in said.out) == (0, True)


@pytest.mark.parametrize("hop", ["edge encode", "cloud ingest"])
async def test_a_poison_that_is_never_sent_or_never_taken(
    tmp_path: Path, hop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hop == "edge encode":
        encode: Callable[..., bytes] = Encoder.encode

        def poisoned(self: Encoder, readings: Any, **named: Any) -> bytes:
            if b"poison" in readings.payloads:
                raise ValueError(hop)
            return encode(self, readings, **named)

        monkeypatch.setattr(Encoder, "encode", poisoned)
    else:
        decode: Callable[..., Any] = BatchIngest._decode

        async def refusing(self: BatchIngest, *values: Any) -> Any:
            batch = await decode(self, *values)
            if b"poison" in batch.readings.payloads:
                raise BatchError("bounds", hop)
            return batch

        monkeypatch.setattr(BatchIngest, "_decode", refusing)
    async with (
        running_node(tmp_path, config=node_config(tmp_path / "node")) as node,
        running_gateway(tmp_path / "gw", node) as gateway,
    ):
        for payload in (b"before", b"poison", b"after"):
            await publish(gateway, payload)
        await until("the others are stored", lambda: stored(node) == {"before", "after"})
        (line,) = (await letters(node, gateway)).values()
        assert line.startswith("edge:1 ")
        assert hop in line
        said = await audit(node)
        assert (said.code, "3 assigned = 2 stored + 1 given up" in said.out) == (0, True)


@pytest.mark.parametrize("name", sorted(SINKS))
async def test_a_poison_that_one_sink_cannot_take(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner: Any = SINKS[name]
    write = owner.write

    async def poisoned(self: Any, entries: Any, cursors: Any, **named: Any) -> Any:
        if any(b"poison" in one.readings.payloads for one in entries):
            raise ValueError(f"no {name} for this")
        return await write(self, entries, cursors, **named)

    monkeypatch.setattr(owner, "write", poisoned)
    async with (
        running_node(tmp_path, config=node_config(tmp_path / "node")) as node,
        running_gateway(tmp_path / "gw", node) as gateway,
    ):
        for payload in (b"before", b"poison", b"after"):
            await publish(gateway, payload)
        good = {"before", "after"} if name == "storage" else {"before", "poison", "after"}
        await until("stored", lambda: stored(node) == good)
        await node.sinks.drained()
        ((letter, line),) = (await letters(node, gateway)).items()
        assert letter.split(":")[0] == name
        assert f"no {name} for this" in line
        said = await audit(node)
        assert said.code == 0, said.out
        assert ("1 dead letters" in said.out) or name != "storage"
        monkeypatch.undo()
        url = f"http://127.0.0.1:{node.http_port}"
        again = await run_command("deadletter", "redrive", letter, "--url", url)
        assert (again.code, again.out) == (0, "1 redriven\n")
        await until("all stored", lambda: len(stored(node)) == 3)
        entry = json.dumps((await audit(node)).out)
        assert "3 assigned = 3 stored" in entry
