"""`tidegate deadletter`: what was refused or could not be stored is shown, tried again, dropped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bridge.batch import EntryEncoder
from bridge.devices import DeviceIds
from cloud.node import Node
from cloud.stream.contract import GivenUp
from edge.config import JournalConfig
from edge.contract import Lane
from edge.journal import Journal
from edge.segments import Segment, pack_segment
from runtime.clock import SystemClock
from tests.kit.cloud import EPOCH, append_readings, parts_of, query
from tests.kit.journals import publish_frame, readings_in
from tests.kit.nodes import run_command, running_node
from tests.kit.readings import one_per_row


async def with_dead_entry(node: Node) -> None:
    """Give the node 30 readings, and 5 more in an entry that no sink can read."""
    await append_readings(node.stream, one_per_row(30))
    (bad,) = parts_of(one_per_row(5, first_seq=31, devices=1))
    await node.stream.append([replace(bad, body=b"\xff")], (), {("gw", EPOCH): 35})
    await node.sinks.drained()


async def test_letters_of_a_running_node(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        await with_dead_entry(node)
        url = f"http://127.0.0.1:{node.http_port}"
        listed = await run_command("deadletter", "list", "--url", url)
        names = [line.split()[0] for line in listed.out.splitlines()]
        assert sorted(name.split(":")[0] for name in names) == [
            *("alerts", "commands", "latest", "live", "storage")
        ]
        (name,) = (one for one in names if one.startswith("storage:"))
        shown = await run_command("deadletter", "show", name, "--url", url)
        assert "its body cannot be read: malformed" in shown.out
        again = await run_command("deadletter", "redrive", name, "--url", url)
        assert (again.code, again.out) == (1, "0 redriven, 1 still dead: see list for the cause\n")
        gone = await run_command("deadletter", "discard", "--all", "--url", url)
        assert (gone.code, gone.out) == (0, "5 discarded\n")
        audit = await run_command("audit", "--url", url)
        assert audit.code == 0
        assert "35 assigned = 30 stored + 5 given up" in audit.out
        assert "given up: 5 of lane storage, seq 31-35: discarded" in audit.out
        assert "sink alerts: 30 taken, 0 waiting" in audit.out
        assert (await run_command("deadletter", "list", "--url", url)).out == "no dead letters\n"


async def test_letters_of_a_node_that_does_not_run(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        await with_dead_entry(node)
        busy = await run_command("deadletter", "discard", "--all", "--data", tmp_path)
        assert (busy.code, busy.err.count("\n")) == (1, 1)
        assert "in use by process" in busy.err
        # what a newer program could read: the very entry, whole again
        letters = [one for one in await node.stream.dead_letters() if one.sink == "storage"]
        (good,) = parts_of(one_per_row(5, first_seq=31, devices=1))
        (letter,) = letters
        await node.stream.forget_dead_letter("storage", *_place(letter))
        await node.stream.set_aside("storage", replace(letter.entry, body=good.body), "x", 2)
    name = f"storage:{letter.entry.partition}:{letter.entry.position}"
    shown = await run_command("deadletter", "show", name, "--data", tmp_path)
    assert "seq 33" in shown.out
    done = await run_command("deadletter", "redrive", name, "--data", tmp_path)
    assert (done.code, done.out) == (0, "1 redriven\n"), done.err
    rows = query(tmp_path / "cloud" / "storage.db", "SELECT count(*) FROM readings")
    assert rows == [(35,)]
    assert (await run_command("audit", "--data", tmp_path)).code == 0


def _place(letter: object) -> tuple[int, int]:
    entry = letter.entry  # type: ignore[attr-defined]
    return entry.partition, entry.position


async def refused_at_edge(data: Path, count: int) -> int:
    """Make a gateway's journal whose `count` readings were all set aside; return its epoch."""
    journal = await Journal.open(
        data / "edge" / "journal.db",
        JournalConfig(disk_reserve_bytes=0),
        SystemClock(),
        gateway="gw-1",
    )
    frames = b"".join(publish_frame("devices/d1/v", b"%d" % n) for n in range(count))
    body = pack_segment(Segment(4, "c1", 1_700_000_000_000_000, count, frames))
    await journal.append([(Lane.LIVE, count, body)])
    commits = await journal.read(Lane.LIVE, 0, bytes_max=1 << 20)
    readings = readings_in(commits, DeviceIds(("devices/{device}/#",)))
    letter = EntryEncoder().encode("gw-1", journal.epoch, readings)
    await journal.set_aside(Lane.LIVE, 1, count, "refused with 0x99", letter)
    await journal.trim(Lane.LIVE, count)
    epoch = journal.epoch
    await journal.close()
    return epoch


async def test_a_gateways_letter_is_sent_again_under_its_identity(tmp_path: Path) -> None:
    gateway = tmp_path / "gateway"
    epoch = await refused_at_edge(gateway, 3)
    async with running_node(tmp_path / "node") as node:
        stone = GivenUp("gw-1", epoch, "live", 1, 3, 3, "refused", 5)  # what the uplink told
        await node.stream.append((), [stone], {("gw-1", epoch): 3})
        config = tmp_path / "edge.toml"
        config.write_text(
            f'data = "{gateway}"\n[uplink]\n'  # named by a flag: the journal knows its name
            f'endpoints = ["mqtt://127.0.0.1:9", "mqtt://127.0.0.1:{node.port}"]\n'
        )
        listed = await run_command("deadletter", "list", "-c", config)
        assert "edge:1" in listed.out
        assert "lane live seq 1-3 (3)  refused with 0x99" in listed.out
        shown = await run_command("deadletter", "show", "edge:1", "-c", config)
        assert "d1  devices/d1/v  2" in shown.out
        before = await run_command("audit", "--data", tmp_path / "node")
        assert "3 assigned = 0 stored + 3 given up" in before.out
        for _ in range(2):  # the second time it is not there any more
            done = await run_command("deadletter", "redrive", "edge:1", "-c", config)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "no dead letter 'edge:1'" in done.err
        await node.sinks.drained()
        after = await run_command("audit", "--data", tmp_path / "node")
        assert after.code == 0
        assert "3 assigned = 3 stored + 0 given up" in after.out
        rows = query(
            tmp_path / "node" / "cloud" / "storage.db", "SELECT seq, payload FROM readings"
        )
        assert rows == [(1, "0"), (2, "1"), (3, "2")]


async def test_without_a_cloud_a_letter_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await refused_at_edge(tmp_path, 3)
    config = tmp_path / "edge.toml"
    config.write_text(f'data = "{tmp_path}"\n[uplink]\nendpoints = ["mqtt://127.0.0.1:9"]\n')
    done = await run_command("deadletter", "redrive", "--all", "-c", config)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "edge:1 is still dead" in done.err
    assert "edge:1" in (await run_command("deadletter", "list", "-c", config)).out
    monkeypatch.setenv("TIDEGATE_DATA", str(tmp_path))
    assert "edge:1" in (await run_command("deadletter", "list")).out
    monkeypatch.setenv("TIDEGATE_UPLINK_ENDPOINTS", "mqtt://127.0.0.1:10")
    assert ":10" in (await run_command("deadletter", "redrive", "--all", "-c", config)).err
    gone = await run_command("deadletter", "discard", "edge:1", "-c", config)
    assert (gone.code, gone.out) == (0, "1 discarded\n")
    assert (await run_command("deadletter", "list", "-c", config)).out == "no dead letters\n"


async def test_wrong_usage_is_one_line(tmp_path: Path) -> None:
    for arguments in (["redrive"], ["show"], ["list", "x"], ["discard", "x", "--all"]):
        wrong = await run_command("deadletter", *arguments, "--data", tmp_path)
        assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    nothing = await run_command("deadletter", "list", "--data", tmp_path / "none")
    assert (nothing.code, nothing.err.count("\n")) == (1, 1)
