"""Pacing a node's gateways: who is told what, and when nothing is said."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from bridge.batch import Batch
from bridge.envelope import LinkLane
from bridge.link_pacing import Credit, decode_credit
from bridge.readings import Readings
from cloud.config import PacingConfig
from cloud.gateways import GatewaysSeen
from cloud.ingest_batches import BatchStats, BatchTaken, Waits
from cloud.pacing import Pacing
from cloud.sinks.runner import SinkStats
from cloud.stream.contract import Backlog, StreamError
from mqtt.broker.broker import Outgoing
from mqtt.broker.seams import ClientInfo
from runtime.clock import ManualClock


@dataclass
class Node:
    """What pacing looks at."""

    clock: ManualClock = field(default_factory=ManualClock)
    waiting_bytes: int = 0
    written: int = 0
    behind: int = 0
    full: bool = False
    waits: Waits = field(default_factory=Waits)
    messages: list[Outgoing] = field(default_factory=list)
    clients: dict[str, ClientInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seen = GatewaysSeen(self.clock)
        self.batches = SimpleNamespace(stats=BatchStats(), waits=self.take_waits)
        self.pacing = Pacing(PacingConfig(), self.clock, self.seen, self, self.sinks, self)

    def take_waits(self) -> Waits:
        waits, self.waits = self.waits, Waits()
        return waits

    async def sinks(self) -> Sequence[SinkStats]:
        lag = {3: Backlog(1, self.behind, 1)} if self.behind else {}
        return [SinkStats("storage", self.written, 0, 0, 0, 0, "", {}, lag, {})]

    async def publish_many(self, messages: Iterable[Outgoing]) -> int:
        self.messages += messages
        return 0

    def saturated(self) -> bool:
        return self.full

    def has_subscribers(self, topic_name: str) -> bool:
        return True

    def takes(self, gateway: str, count: int, lane: LinkLane = LinkLane.BACKLOG) -> None:
        """Take a batch of a gateway."""
        readings = Readings(
            range(1, count + 1), [("t", "d")], [0] * count, [1] * count, [1] * count, [b""] * count
        )
        batch = Batch(gateway, 1, lane, True, readings, ((1, count),), (), count, 0, 1000)
        client = self.clients.setdefault(gateway, ClientInfo(gateway, 5))
        if not client.state:
            self.seen.client_connected(client)
        self.seen.batch_taken(BatchTaken(client, batch, self.clock.wall_us()))

    async def second(self, *gateways: str, written: int = 1000, behind: int = 0) -> None:
        """Let a second pass in which each gateway sent 1000 readings of backlog."""
        for gateway in gateways:
            self.takes(gateway, 1000)
        self.clock.advance(1)
        self.written += written
        self.behind = behind
        self.messages.clear()
        await self.pacing.look()

    def told(self) -> dict[str, Credit | None]:
        return {
            m.topic_name: decode_credit(m.payload) if m.payload else None for m in self.messages
        }


async def test_who_begins_to_drain_is_told_once_that_there_is_no_limit() -> None:
    node = Node()
    await node.second("a", "b")
    free = Credit()
    assert node.told() == {"tidegate/v1/down/a": free, "tidegate/v1/down/b": free}
    for _ in range(3):
        await node.second("a", "b")
        assert node.messages == []


async def test_who_only_sends_live_is_told_nothing() -> None:
    node = Node()
    node.takes("live-only", 10, LinkLane.LIVE)
    await node.second(behind=20_000)
    assert node.messages == []


async def test_when_the_sinks_fall_behind_every_gateway_that_drains_is_told() -> None:
    node = Node()
    await node.second("a", "b", behind=1000)
    await node.second("a", "b", behind=20_000)
    told = node.told()
    assert set(told) == {"tidegate/v1/down/a", "tidegate/v1/down/b"}
    assert all(credit is not None and credit.readings_s for credit in told.values())


async def test_once_they_have_caught_up_the_limits_are_taken_back_and_then_silence() -> None:
    node = Node()
    await node.second("a", behind=1000)
    await node.second("a", behind=20_000)
    await node.second("a")
    assert node.told() == {"tidegate/v1/down/a": Credit()}
    await node.second("a")
    assert node.messages == []


async def test_a_gateway_that_has_drained_is_left_alone() -> None:
    node = Node()
    await node.second("a", "b", behind=1000)
    told: list[bool] = []
    for _ in range(10):
        await node.second("a", written=4000, behind=80_000)
        told.append("b" in node.pacing._told)
    # its next batch was due in the fourth second, and may be five late
    assert told == [True] * 8 + [False] * 2


async def test_who_connects_finds_a_limit_that_follows_the_number_of_connections() -> None:
    node = Node()
    await node.pacing.greet()
    assert [(m.topic_name, m.retain) for m in node.messages] == [("tidegate/v1/down", True)]
    node.messages.clear()
    await node.pacing.greet()
    assert node.messages == [], "nothing has changed"
    for n in range(100):
        node.seen.client_connected(ClientInfo(f"c{n}", 5))
    await node.pacing.greet()
    told = node.told()["tidegate/v1/down"]
    assert told is not None
    assert told.readings_s == 39


async def test_batches_that_pile_up_before_ingest_are_pressure() -> None:
    node = Node()
    node.waiting_bytes = 200_000
    node.batches.stats.batch_bytes = 100_000
    await node.second("a", "b")
    told = node.told()["tidegate/v1/down/a"]
    assert told is not None
    assert told.readings_s


async def test_a_crowd_is_told_only_what_has_changed_or_runs_out() -> None:
    node = Node()
    crowd = [f"gw-{n}" for n in range(20)]
    words = []
    for _ in range(40):
        await node.second(*crowd)
        words.append(len(node.messages))
    assert words[0] == 20
    assert set(words) == {0, 20}
    quiet = max(len(run) for run in "".join("x" if n else "." for n in words).split("x"))
    assert 5 <= quiet < 15, "a credit holds for 30 s, and is told again in time"


async def test_live_readings_of_a_crowd_that_wait_are_pressure_and_what_the_disk_takes_is_not() -> (
    None
):
    crowd = [f"gw-{n}" for n in range(20)]
    totals = {}
    for name, waits in (("quick", Waits(0.01, 0.05)), ("slow disk", Waits(0.5, 1.0)),
                        ("late", Waits(0.01, 1.1))):  # fmt: skip
        node = Node()
        for _ in range(10):
            node.waits = waits
            await node.second(*crowd)
        totals[name] = node.pacing._pacer.total_readings_s or 0.0
    assert totals["quick"] == totals["slow disk"] > 2 * totals["late"]


async def test_few_govern_themselves_by_their_windows() -> None:
    node = Node()
    for _ in range(3):
        node.waits = Waits(0.01, 1.1)
        await node.second("a", "b")
    assert node.pacing._pacer.total_readings_s is None


@pytest.mark.parametrize(("gateways", "is_pressure"), [(15, False), (16, True)])
async def test_a_crowd_whose_entries_would_be_decoded_again_is_pressure(
    gateways: int, *, is_pressure: bool
) -> None:
    node = Node()
    node.pacing = Pacing(
        PacingConfig(lag_target_s=1000), node.clock, node.seen, node, node.sinks, node,
        decoded_readings_max=50_000,
    )  # fmt: skip
    names = [f"gw-{n}" for n in range(gateways)]
    for behind in (20_000, 20_000):
        await node.second(*names, behind=behind)
        assert node.pacing._pacer.pressure < 1
    await node.second(*names, behind=26_000)
    assert (node.pacing._pacer.pressure > 1) is is_pressure


# ---- at the door ---------------------------------------------------------------------------------


def waits(node: Node, client_id: str, version: int = 5) -> float:
    return node.pacing.connect_wait_s(ClientInfo(client_id, version))


async def test_gateways_are_let_in_one_after_the_other_and_other_clients_as_they_come() -> None:
    node = Node()
    told = [waits(node, f"tidegate-gw-{n}") for n in range(300)]
    assert told[:200] == [0.0] * 200
    assert 0 < told[-1] <= 0.5
    assert waits(node, "dashboard") == 0
    assert waits(node, "tidegate-old", 4) == 0, "3.1.1 has no word for it"


async def test_those_who_are_expected_count_for_what_newcomers_may_send() -> None:
    node = Node()
    for n in range(200 + 99):
        waits(node, f"tidegate-gw-{n}")
    await node.pacing.greet()
    told = node.told()["tidegate/v1/down"]
    assert told is not None
    assert told.readings_s == pytest.approx(40, rel=0.03)


async def test_nobody_is_let_in_while_ingest_can_take_no_more() -> None:
    node = Node(full=True)
    assert waits(node, "tidegate-gw") == 5.0
    assert waits(node, "dashboard") == 0
    node.full = False
    assert waits(node, "tidegate-gw") == 0


async def test_a_stream_that_cannot_be_read_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.pacing._GREET_S", 0.001)
    node = Node()
    looks = 0
    again = asyncio.Event()

    async def broken() -> Sequence[SinkStats]:
        nonlocal looks
        looks += 1
        node.clock.advance(10)
        if looks > 3:
            again.set()
            return []
        raise StreamError("nobody serves it now")

    monkeypatch.setattr(node.pacing, "_sinks", broken)
    with capture_logs() as logs:
        await node.pacing.start()
        async with asyncio.timeout(60):
            await again.wait()
        await node.pacing.stop()
    assert {(one["event"], one["log_level"]) for one in logs} == {("pacing_waits", "warning")}
