"""Alerts of a cluster: states in the bucket, and nodes that hand partitions over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud.alerts.config import AlertsConfig, LimitsConfig
from cloud.alerts.engine import StoredSeries
from cloud.alerts.handover import PartitionState
from cloud.alerts.series import Transition
from cloud.alerts.store import Message
from cloud.cluster.alert_history import ClusterAlertHistory
from cloud.cluster.alerts import ClusterAlertStates
from cloud.cluster.bucket import Bucket
from cloud.cluster.connection import Unanswered
from cloud.cluster.control import Control
from cloud.node import Node
from cloud.sinks.contract import SinkFenced, SinkUnavailable
from tests.kit.alert_nodes import EPOCH, AlertNodes
from tests.kit.alerts import hot
from tests.kit.cluster_nodes import cluster_nodes, shares
from tests.kit.nats import NatsServers, connected, make_layout, nats_single
from tests.kit.sites import client_at, until

NUMBERS = count()
HOT = AlertsConfig(rule=(hot(field="t"),), limits=LimitsConfig(grace_s=0.0))
DEVICES = [f"d{number}" for number in range(6)]  # of both of two nodes' partitions


async def publish(node: Node, value: int) -> None:
    """Have each device say a temperature."""
    for device in DEVICES:
        async with client_at(node.port, device) as (client, _):
            await client.publish(f"devices/{device}/state", b'{"t": %d}' % value, 1)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("single"), disk_bytes_max=8 << 30) as running:
        yield running


async def until_shown(
    what: str, asked: Callable[[], Awaitable[dict[str, Any]]], events: int
) -> None:
    async with asyncio.timeout(60):
        while len((await asked())["events"]) < events:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def histories_of(
    servers: NatsServers, number: int, **options: int
) -> AsyncIterator[list[ClusterAlertHistory]]:
    """Run the histories of some nodes; each follows the bucket."""
    layout = await make_layout(servers, f"a{next(NUMBERS)}")
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(number):
            control = Control(await stack.enter_async_context(connected(servers)), layout)
            found.append(ClusterAlertHistory(control, **options))
            await control.start()
            stack.push_async_callback(control.stop)
        yield found


def firing(number: int) -> Transition:
    return Transition("firing", f"a{number}", "hot", "critical", "d", "", number, number, 9.5)


class Heard:
    """What one node hears."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, Transition]] = []

    def __call__(self, first_id: int, transitions: Sequence[Transition]) -> None:
        self.rows += ((first_id + n, one) for n, one in enumerate(transitions))


async def test_all_hear_one_history_and_the_oldest_of_it_go(servers: NatsServers) -> None:
    async with histories_of(servers, 2) as histories:
        heard = [Heard(), Heard()]
        histories[0].follow(heard[0])
        for number in range(1, 30):
            await histories[number % 2].add([firing(number), firing(100 + number)], 20)
            await histories[0].add([firing(number), firing(100 + number)], 20)  # once more
            await until("heard", lambda n=number: len(heard[0].rows) == 2 * n)
        histories[1].follow(heard[1])
        await until("the other, too", lambda: len(heard[1].rows) >= 58)
        assert heard[0].rows == heard[1].rows
        ids = [event_id for event_id, _ in heard[0].rows]
        assert ids == sorted(set(ids))
        kept = await histories[0]._bucket.tokens_below("h")
        live = [one for one in kept if await histories[0]._bucket.get(f"h.{one}") is not None]
        assert len(live) in (10, 11)


async def test_the_history_leaves_the_others_room_in_their_bucket(servers: NatsServers) -> None:
    """However long what it holds is: a bucket that is full takes no command and no alert."""
    async with histories_of(servers, 1, bytes_max=20_000) as (history,):
        heard = Heard()
        history.follow(heard)
        for number in range(1, 31):
            await history.add([replace(firing(number), reason="x" * 1_000)], 100_000)
            await until("heard", lambda n=number: len(heard.rows) == n)
        await until("the oldest have gone", lambda: history._bytes < 24_000)
        assert len(history._keys) >= 8


@asynccontextmanager
async def states_of(servers: NatsServers, number: int) -> AsyncIterator[list[ClusterAlertStates]]:
    layout = await make_layout(servers, f"a{next(NUMBERS)}")
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(number):
            connection = await stack.enter_async_context(connected(servers))
            found.append(ClusterAlertStates(Bucket(connection, layout.bucket("alerts"))))
        yield found


def state_of(position: int, payload: str = "x") -> PartitionState:
    series = StoredSeries(("hot", "d", ""), "critical", "f", {"value": payload, "fires": [1, 2]})
    message = Message("mqtt", "id", "hot\0d\0", "alerts/critical/hot/d", b"\x00body", 7)
    return PartitionState(EPOCH, position, 11, 12, (series,), (message,))


async def test_a_state_is_there_whole_for_the_next_holder(servers: NatsServers) -> None:
    async with states_of(servers, 2) as (one, two):
        assert await one.claim({3: 10, 4: 11}) == {3: None, 4: None}
        noise = random.Random(1).randbytes(900_000).hex()  # more than a message takes
        for state in (state_of(5), state_of(6, noise), state_of(7, noise + "!"), state_of(8)):
            assert await one.keep({3: state}) == frozenset()
            token = 20 + 2 * state.position
            assert await two.claim({3: token}) == {3: state}
            assert await one.claim({3: token + 1}) == {3: state}


async def test_whoever_claimed_last_is_the_only_one_that_keeps(servers: NatsServers) -> None:
    async with states_of(servers, 2) as (one, two):
        await one.claim({3: 10, 4: 10})
        await one.keep({3: state_of(5), 4: state_of(1)})
        assert await two.claim({3: 12}) == {3: state_of(5)}
        assert await one.keep({3: state_of(6), 4: state_of(2)}) == {3}
        assert await two.keep({3: state_of(7)}) == frozenset()
        with pytest.raises(SinkFenced) as fenced:
            await one.claim({3: 11, 4: 13})
        assert fenced.value.partitions == {3}
        assert await two.claim({3: 14, 4: 14}) == {3: state_of(7), 4: state_of(2)}


class Stalls(Bucket):
    """A bucket whose `put` waits to be let on, while it is told to."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket._connection, bucket.name)
        self.go_on = asyncio.Event()
        self.stalled = asyncio.Event()

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        self.stalled.set()
        await self.go_on.wait()
        return await super().put(key, value, ttl_s=ttl_s)


async def test_a_former_holder_that_wakes_tears_nothing(servers: NatsServers) -> None:
    """It stalled before it wrote the pieces of a state that did not fit into a message."""
    noise = random.Random(2).randbytes(900_000).hex()
    async with states_of(servers, 2) as (one, two):
        await one.claim({3: 10})
        stalls = one._bucket = Stalls(one._bucket)
        keeping = asyncio.create_task(one.keep({3: state_of(5, noise)}))
        await stalls.stalled.wait()
        await two.claim({3: 12})
        newer = state_of(6, noise[::-1])
        assert await two.keep({3: newer}) == frozenset()
        stalls.go_on.set()
        assert await keeping == {3}
        assert await two.claim({3: 14}) == {3: newer}
        assert await two.keep({3: newer}) == frozenset()
        assert len(await two._bucket.tokens_below("3.14")) == 1
        assert await two.claim({3: 16}) == {3: newer}
        assert await two.keep({3: state_of(7)}) == frozenset()
        assert await two._bucket.tokens_below("3") == set()  # of nobody anything is left


class Unheard(Bucket):
    """A bucket whose next update is stored, and its answer lost."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket._connection, bucket.name)
        self.lose = True

    async def update(
        self, key: str, value: bytes, revision: int, *, ttl_s: float | None = None
    ) -> int:
        found = await super().update(key, value, revision, ttl_s=ttl_s)
        if self.lose:
            self.lose = False
            raise Unanswered("lost")
        return found


async def test_an_unheard_answer_is_no_loss_of_the_partition(servers: NatsServers) -> None:
    async with states_of(servers, 2) as (one, two):
        await one.claim({3: 10})
        one._bucket = Unheard(one._bucket)
        with pytest.raises(SinkUnavailable):
            await one.keep({3: state_of(5)})
        assert await one.keep({3: state_of(6)}) == frozenset()
        assert await two.claim({3: 12}) == {3: state_of(6)}
        assert await one.keep({3: state_of(7)}) == {3}


async def test_an_alert_goes_on_over_nodes_that_crash(servers: NatsServers, tmp_path: Path) -> None:
    async with states_of(servers, 3) as states:
        lab = AlertNodes(tmp_path, hot(for_s=5.0), states=list(states))
        for at, value in ((0, 99), (3, 99), (6, 99), (8, 20)):
            sink = lab.add() if len(lab.nodes) < 3 else lab.nodes[0]
            if sink._store is None:
                await sink.open(EPOCH)
            await lab.hand_to(sink, crash=lab.holder is not None)
            await lab.reads(at, value)
            await lab.quiet()
        assert [state for _, state in lab.told] == ["firing", "resolved"]
        await lab.close()


async def test_nodes_tell_an_alert_once_whoever_has_its_partition(
    servers: NatsServers, tmp_path: Path
) -> None:
    async with (
        cluster_nodes(servers, tmp_path, 2, "alerts", keys=lambda _: {"alerts": HOT}) as nodes,
        AsyncExitStack() as stack,
    ):
        _, box = await stack.enter_async_context(client_at(nodes[0].port, "w", "alerts/#"))
        await publish(nodes[0], 99)
        await until("all fire", lambda: len(box.messages) >= len(DEVICES))
        await nodes[1].stop()
        await until("one has all", lambda: shares(nodes[0], "alerts") == 64)
        sink = nodes[0]._alerts.sink
        assert sink is not None
        await until("it knows of all", lambda: len(sink.active()) == len(DEVICES))
        await publish(nodes[0], 20)
        await until("all are well", lambda: len(box.messages) >= 2 * len(DEVICES))

        async def happened() -> dict[str, Any]:
            found = await sink.history(rule=None, device=None, before=None, limit=100)
            return {"events": found}

        # also what the node did that has ended
        await until_shown("all of both", happened, 2 * len(DEVICES))
        assert len((await happened())["events"]) == 2 * len(DEVICES)
        told = [one["state"] for one in box.json()]
        assert sorted(told) == ["firing"] * len(DEVICES) + ["resolved"] * len(DEVICES)


async def test_every_node_shows_the_alerts_of_all_and_takes_them_on(
    servers: NatsServers, tmp_path: Path
) -> None:
    async with (
        cluster_nodes(servers, tmp_path, 2, "alerts", keys=lambda _: {"alerts": HOT}) as nodes,
        httpx.AsyncClient(timeout=20) as web,
    ):
        await publish(nodes[0], 99)
        sinks = [node._alerts.sink for node in nodes]
        await until(
            "all fire",
            lambda: sum(len(sink.active()) for sink in sinks if sink) == len(DEVICES),
            timeout_s=60,
        )
        assert all(sink is not None and sink.active() for sink in sinks)
        urls = [f"http://127.0.0.1:{node.http_port}/api/v1/alerts" for node in nodes]
        shown = [(await web.get(url)).json() for url in urls]
        assert shown[0] == shown[1]
        assert sorted(one["device"] for one in shown[0]["alerts"]) == DEVICES
        assert shown[0]["silent"] == []
        some = (await web.get(urls[0], params={"limit": "2"})).json()["alerts"]
        assert some == shown[0]["alerts"][:2]
        (one,) = (await web.get(urls[1], params={"device": "d3"})).json()["alerts"]
        for url in urls:  # one of the two has it
            said = {"by": url, "note": "on it"}
            answer = await web.post(f"{url}/{one['alert_id']}/ack", json=said)
            assert (answer.status_code, answer.json()["acked_by"]) == (200, url)
        answer = await web.post(f"{urls[0]}/nothing/ack", json={"by": "ann"})
        assert answer.status_code == 404

        async def happened(url: str, **which: str) -> dict[str, Any]:
            page = await web.get(url, params={"view": "history", **which})
            return dict(page.json())

        for url in urls:
            await until_shown("all of it", lambda url=url: happened(url), len(DEVICES) + 2)
        events = (await happened(urls[0]))["events"]
        assert events == (await happened(urls[1]))["events"]
        states = [(event["device"], event["state"]) for event in events]
        assert sorted(states) == sorted(
            [(device, "firing") for device in DEVICES] + 2 * [("d3", "acknowledged")]
        )
        first = await happened(urls[0], limit="3")
        rest = await happened(urls[1], before=str(first["next"]))  # a page of each
        assert first["events"] + rest["events"] == events

        await nodes[1]._alerts.stop()  # it is there, and does not answer
        left = (await web.get(urls[0])).json()
        assert left["silent"] == ["node-1"]
        assert [a["device"] for a in left["alerts"]] == [
            a.device
            for a in nodes[0]._alerts.sink.active()  # type: ignore[union-attr]
        ]
        answer = await web.post(f"{urls[0]}/nothing/ack", json={"by": "ann"})
        assert (answer.status_code, "node-1" in answer.text) == (503, True)
