"""Traces: each hop shows the reading itself, or says that it cannot."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.runs import Origin
from cloud.sinks.schema import epoch_text
from cloud.stream.contract import GivenUp, origin_stone, settled_stone
from cloud.trace import Trace, TraceError, trace
from cloud.trace_files import find_reading, traced_files
from runtime.clock import ManualClock
from tests.kit.cloud import EPOCH, Uplink, append_readings, parts_of
from tests.kit.nodes import Outcome, run_command, running_node
from tests.kit.readings import START_US, one_per_row

CLOCK_US = START_US + 3_600_000_000


async def traced(data: Path, seq: int, *, gateway: str = "gw", epoch: int | None = None) -> Trace:
    async with traced_files(data) as places:
        (found,) = await trace(places, gateway, seq, epoch)
    return found


def hops(found: Trace) -> dict[str, str]:
    return {hop.place: hop.text for hop in found.hops}


async def test_a_stored_reading_shows_every_hop(tmp_path: Path) -> None:
    async with running_node(tmp_path, clock=ManualClock(CLOCK_US)) as node:
        await append_readings(node.stream, one_per_row(30))
        await node.sinks.drained()
        found = await traced(tmp_path, 12)
        assert found.verdict == "stored"
        assert [hop.place for hop in found.hops[:3]] == ["captured", "batch", "stream"]
        assert found.hops[0].time_us == START_US + 12_000_000
        assert found.hops[1].time_us == CLOCK_US
        said = hops(found)
        assert said["batch"] == "with 30 readings new: seq 1-30"
        assert said["stream"].startswith("partition ")
        assert said["storage"].startswith("row of device d4, topic devices/d4/state, QoS 1")
        assert found.lines()[0] == f"gw {epoch_text(EPOCH)} seq 12: stored"


async def test_the_batch_is_told_after_the_entry_is_trimmed(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        await append_readings(node.stream, one_per_row(30))
        await node.sinks.drained()
        await node.stream.trim((await node.stream.stats()).last_positions)
        said = hops(await traced(tmp_path, 12))
        assert said["batch"] == "with 30 readings new: seq 1-30"
        assert said["stream"].startswith("entry trimmed; it lay in partition:position ")


async def test_a_row_that_is_gone_is_lost(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        await append_readings(node.stream, one_per_row(30))
        await node.sinks.drained()
        with closing(sqlite3.connect(tmp_path / "cloud" / "storage.db")) as connection:
            connection.execute("DELETE FROM readings WHERE seq = 7")
            connection.commit()
        found = await traced(tmp_path, 7)
        assert (found.verdict, hops(found)["storage"]) == ("lost", "no row")


async def test_what_was_given_up_and_what_died_is_told_with_its_reason(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        stone = GivenUp("gw", EPOCH, "live", 31, 40, 10, "evicted-age", 5)
        await append_readings(node.stream, one_per_row(30))
        await node.stream.append((), [stone], {("gw", EPOCH): 45})
        (bad,) = parts_of(one_per_row(5, first_seq=41, devices=1))
        await node.stream.append([replace(bad, body=b"\xff")])
        await node.sinks.drained()
        given_up = await traced(tmp_path, 35)
        assert given_up.verdict == "given-up"
        assert hops(given_up)["gateway"] == ("evicted-age: 10 of lane live in seq 31-40 given up")
        dead = await traced(tmp_path, 43)
        assert dead.verdict == "dead-letter"
        (hop,) = [hop for hop in dead.hops if hop.place == "storage" and hop.time_us]
        assert hop.text.startswith("dead letter after 2 tries: malformed")


async def test_of_a_thinned_range_only_what_is_known_is_told(tmp_path: Path) -> None:
    """One of ten is kept, and may still wait at a gateway whose journal is not here."""
    async with running_node(tmp_path) as node:
        stone = GivenUp("gw", EPOCH, "live", 32, 40, 8, "thinned", 5)
        await append_readings(node.stream, one_per_row(30))
        await node.stream.append((), [stone], {("gw", EPOCH): 40})
        found = await traced(tmp_path, 35)
        assert found.verdict == "given-up or waiting"
        assert [hop.text for hop in found.hops if hop.place == "gateway"] == [
            "thinned: 8 of lane live in seq 32-40 given up",
            "others of that range may still wait in its journal",
        ]
        await append_readings(node.stream, one_per_row(1, first_seq=37))
        assert (await traced(tmp_path, 35)).verdict == "given-up"
        assert (await traced(tmp_path, 37)).verdict in ("waiting", "stored")


async def test_what_is_not_known_is_one_line(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        async with traced_files(tmp_path) as places:
            with pytest.raises(TraceError, match="'gw' is not in the ledger; it is empty"):
                await trace(places, "gw", 1)
        await append_readings(node.stream, one_per_row(3))
        async with traced_files(tmp_path) as places:
            with pytest.raises(TraceError, match="'x' is not in the ledger; there is gw"):
                await trace(places, "x", 1)
            with pytest.raises(TraceError, match="gw never assigned seq 4; it has come to 3 in"):
                await trace(places, "gw", 4)
            with pytest.raises(TraceError, match="gw has no epoch 0000000000000007; it has fedc"):
                await trace(places, "gw", 1, 7)
        await node.sinks.drained()
        with pytest.raises(TraceError, match="device 'd9' has no reading stored"):
            await find_reading(tmp_path, "d9", START_US * 2)
        with pytest.raises(TraceError, match=r"stored at 1970-01-01T00:00:00\.001Z or before it"):
            await find_reading(tmp_path, "d1", 1_000)


async def test_what_another_epoch_gave_out_before_an_epoch_parted_is_traced_there_alone(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        await append_readings(node.stream, one_per_row(3, first_seq=3))
        stone = origin_stone(("gw", EPOCH), Origin(2, 7), CLOCK_US)
        await node.stream.append((), [stone])
        assert (await traced(tmp_path, 3)).seq == 3
        async with traced_files(tmp_path) as places:
            with pytest.raises(TraceError, match="gw never assigned seq 2"):
                await trace(places, "gw", 2)


async def test_of_epochs_that_parted_both_may_still_send(tmp_path: Path) -> None:
    """Its clone has said something since: what the gateway has not sent is no loss for that."""
    async with running_node(tmp_path) as node:
        old, new = ("gw", EPOCH), ("gw", 7)
        await append_readings(node.stream, one_per_row(3))
        stones = [settled_stone(old, 3, CLOCK_US), origin_stone(new, Origin(3, EPOCH), CLOCK_US)]
        stones.append(settled_stone(new, 4, CLOCK_US + 1))
        await node.stream.append((), stones, {old: 5, new: 4})
        assert (await traced(tmp_path, 5)).verdict == "waiting"


def same(one: Outcome, other: Outcome) -> None:
    assert (one.code, one.out.splitlines()[0]) == (other.code, other.out.splitlines()[0])


async def test_the_command_asks_files_or_a_node(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        uplink = Uplink(node.capture)
        uplink.send(uplink.batch(one_per_row(30)))
        await uplink.answered()
        await node.sinks.drained()
        url = f"http://127.0.0.1:{node.http_port}"
        read = await run_command("trace", "gw", 12, "--data", tmp_path)
        asked = await run_command("trace", "gw", 12, "--url", url)
        assert read.code == 0, read.err
        same(read, asked)
        by_device = await run_command("trace", "--device", "d4", "--data", tmp_path)
        assert "gw fedcba9876543210 seq 26: stored" in by_device.out
        same(by_device, await run_command("trace", "--device", "d4", "--url", url))
        for arguments in (["gw", 99], ["nobody", 1], ["--device", "nobody"]):
            for where in (["--data", tmp_path], ["--url", url]):
                wrong = await run_command("trace", *arguments, *where)
                assert (wrong.code, wrong.err.count("\n")) == (1, 1), wrong.err
        wrong = await run_command("trace", "gw")
        assert (wrong.code, wrong.err.count("\n")) == (2, 1)
