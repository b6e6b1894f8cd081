"""Whole runs over real sockets against brokers that answer, refuse, cut, or are not there."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from device_sim import fleet as fleet_module
from device_sim import link as link_module
from device_sim.config import SimConfig, SimError
from device_sim.report import Progress, SimReport
from device_sim.run import run_sim
from device_sim.stamps import unstamp
from device_sim.stores import VerifyError
from device_sim.traces import Record
from device_sim.truth import key_of
from mqtt.packets import Publish
from runtime.clock import ManualClock
from tests.device_sim.test_sources import write_trace
from tests.kit.processes import free_ports
from tests.kit.scripted_broker import ScriptedBroker
from tests.kit.stored_rows import add_rows, make_storage

BUSY = 0x97
FORBIDDEN = 0x87


async def simulate(broker: ScriptedBroker, **settings: Any) -> SimReport:
    """Run a small unpaced fleet unless told otherwise; every run ends in seconds."""
    fixed: dict[str, Any] = {"broker": broker.url, "speed": 0.0, "drain_timeout_s": 1.0}
    async with asyncio.timeout(60):
        return await run_sim(SimConfig(**(fixed | settings)))


def rows_of(broker: ScriptedBroker) -> list[tuple[str, bytes]]:
    return [(publish.topic_name, publish.payload) for _, publish in broker.published]


def came_of(keys: list[int], report: SimReport) -> bool:
    """Return True when what came is a part of what the only device says it sent, in order."""
    assert report.truth is not None
    wire = report.truth.devices[0].wire()
    return all(key in wire for key in keys)  # `in` consumes


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_count_is_sent_exactly(version: int, qos: int) -> None:
    async with ScriptedBroker() as broker:
        report = await simulate(broker, devices=7, count=200, qos=qos, protocol_version=version)
    assert len(broker.published) == report.readings == report.sent == 200
    assert report.acked == (200 if qos else 0)
    assert report.unacked == 0
    assert report.stopped_by == "count"
    assert broker.disconnects == 7
    assert {publish.qos for _, publish in broker.published} == {qos}
    assert {connect.protocol_version for connect in broker.connects} == {version}


async def test_same_seed_same_payloads_over_the_wire() -> None:
    said = []
    for seed in (3, 3, 4):
        async with ScriptedBroker() as broker:
            await simulate(
                broker, devices=5, count=60, seed=seed, stamp=False, start_s=1.79e9, window=1
            )
        by_client = defaultdict(list)
        for client, publish in broker.published:
            by_client[client].append((publish.topic_name, publish.payload))
        said.append({client: rows[:8] for client, rows in by_client.items()})
    assert said[0] == said[1]
    assert said[0] != said[2]


async def test_a_run_is_verified_against_what_the_broker_took(tmp_path: Path) -> None:
    path = make_storage(tmp_path / "storage.db", [("old", b"1")])
    async with ScriptedBroker() as broker:

        def store(_client: str, publish: Publish) -> int:
            add_rows(
                path, [(publish.topic_name, publish.payload)], first_seq=2 + len(broker.published)
            )
            return 0

        broker.answer = store
        report = await simulate(broker, devices=20, count=120, verify=str(path))
    assert report.verdict is not None
    assert report.verdict.ok
    assert report.ok
    assert report.verdict.acked == report.verdict.stored == 120
    assert report.store_latency


async def test_a_broker_that_acknowledges_and_drops_is_found_out(tmp_path: Path) -> None:
    path = make_storage(tmp_path / "storage.db")
    async with ScriptedBroker() as broker:

        def forgetful(_client: str, publish: Publish) -> int:
            at = len(broker.published)
            if at != 50:
                add_rows(path, [(publish.topic_name, publish.payload)], first_seq=at)
            return 0

        broker.answer = forgetful
        report = await simulate(
            broker, devices=10, count=100, verify=str(path), verify_timeout_s=0.2
        )
    assert report.verdict is not None
    assert (report.verdict.lost, report.verdict.doubled) == (1, 0)
    assert not report.ok
    assert "1 lost" in report.text()


async def test_after_a_cut_what_was_not_acknowledged_goes_out_first_as_a_new_attempt() -> None:
    async with ScriptedBroker() as broker:
        cut_at = 40

        def answer(_client: str, _publish: Publish) -> int | None:
            if len(broker.published) == cut_at:
                asyncio.get_running_loop().call_soon(broker.cut)
            return 0 if len(broker.published) < cut_at - 3 or len(broker.connects) > 1 else None

        broker.answer = answer
        report = await simulate(broker, devices=1, profile="zigbee2mqtt", count=100, window=8)
    found = [unstamp(publish.payload) for _, publish in broker.published]
    order = [(stamp.attempt, stamp.counter) for stamp, _ in filter(None, found)]
    assert order == sorted(order)
    assert {counter for _, counter in order} == set(range(100))
    assert Counter(counter for _, counter in order).most_common(1)[0][1] == 2
    assert report.connections_lost == 1
    assert report.connects == 2
    assert report.acked == 100
    assert report.sent >= len(broker.published) > 100
    assert came_of([key_of(*place) for place in order], report)


async def test_a_kept_session_sends_again_under_the_same_stamp() -> None:
    async with ScriptedBroker() as broker:

        def answer(_client: str, _publish: Publish) -> int | None:
            if len(broker.published) == 30:
                asyncio.get_running_loop().call_soon(broker.cut)
            return 0 if len(broker.published) < 26 or len(broker.connects) > 1 else None

        broker.answer = answer
        report = await simulate(
            broker, devices=1, profile="zigbee2mqtt", count=60, window=8, clean_start=False
        )
    stamps = [found[0] for _, p in broker.published if (found := unstamp(p.payload))]
    assert {stamp.attempt for stamp in stamps} == {0}
    assert any(publish.dup for _, publish in broker.published)
    assert came_of([key_of(0, stamp.counter) for stamp in stamps], report)
    assert report.acked == 60


@pytest.mark.parametrize("window", [1, 4])
async def test_a_refusal_for_now_is_tried_again(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "RETRY_REFUSED_S", 0.02)
    async with ScriptedBroker() as broker:
        broker.answer = lambda _client, _publish: BUSY if 20 < len(broker.published) < 40 else 0
        report = await simulate(broker, devices=1, profile="tasmota", count=60, window=window)
    accepted = [
        found[0].counter
        for at, (_, p) in enumerate(broker.published, 1)
        if not 20 < at < 40 and (found := unstamp(p.payload))
    ]
    assert sorted(accepted) == list(range(60))
    assert accepted == sorted(accepted) or window > 1  # the broker took a later one first
    assert report.refused == 19
    assert report.acked == 60
    assert report.unacked == 0


async def test_a_final_refusal_is_counted_and_not_repeated() -> None:
    async with ScriptedBroker() as broker:
        broker.answer = lambda _client, _publish: FORBIDDEN if len(broker.published) == 5 else 0
        report = await simulate(broker, devices=2, count=20)
    assert len(broker.published) == 20
    assert (report.acked, report.refused, report.unacked) == (19, 1, 1)


async def test_a_silent_broker_ends_the_wait_and_is_told() -> None:
    async with ScriptedBroker() as broker:
        broker.answer = lambda _client, _publish: None
        report = await simulate(broker, devices=3, window=4, duration_s=0.2, drain_timeout_s=0.1)
    assert report.stopped_by == "duration"
    assert len(broker.published) == report.sent == report.unacked == 12


async def test_readings_that_were_due_and_never_sent_are_told() -> None:
    async with ScriptedBroker() as broker:
        broker.answer = lambda _client, _publish: None
        report = await simulate(
            broker, devices=2, speed=1, rate_per_s=500, window=1, duration_s=0.5, drain_timeout_s=0
        )
    assert report.readings == 2
    assert report.unsent > 20
    assert f"{report.unsent} readings were due at the end" in report.text()


async def test_a_window_is_never_passed() -> None:
    waiting: Counter[str] = Counter()
    most = 0
    async with ScriptedBroker() as broker:

        def hold(client: str, _publish: Publish) -> None:
            nonlocal most
            waiting[client] += 1
            most = max(most, waiting[client])

        broker.answer = hold
        await simulate(broker, devices=4, window=5, duration_s=0.2, drain_timeout_s=0.05)
    assert most == 5


async def test_stop_ends_a_run_without_limit() -> None:
    stop = asyncio.Event()
    async with ScriptedBroker() as broker:
        broker.answer = lambda _client, _publish: (
            (stop.set() if len(broker.published) == 50 else None) or 0
        )
        config = SimConfig(broker=broker.url, speed=0, duration_s=0, devices=3)
        async with asyncio.timeout(60):
            report = await run_sim(config, stop=stop)
    assert report.stopped_by == "stop"
    assert report.acked == report.sent == len(broker.published) >= 50
    assert broker.disconnects == 3


async def run_until(broker: ScriptedBroker, done: Callable[[], bool], **settings: Any) -> SimReport:
    """Run a paced fleet until `done()`; the time limit is only there for a fault."""
    stop = asyncio.Event()
    config = SimConfig(broker=broker.url, duration_s=15, drain_timeout_s=5, **settings)
    run = asyncio.create_task(run_sim(config, stop=stop))
    while not (done() or run.done()):
        await asyncio.sleep(0.01)
    stop.set()
    report = await run
    assert done()
    return report


async def test_progress_is_told_each_second() -> None:
    told: list[Progress] = []
    stop = asyncio.Event()

    def on_progress(progress: Progress) -> None:
        told.append(progress)
        if progress.acked:
            stop.set()

    async with ScriptedBroker() as broker:
        config = SimConfig(broker=broker.url, devices=5, rate_per_s=200, duration_s=15)
        await run_sim(config, on_progress=on_progress, stop=stop)
    progress = told[-1]
    assert progress.connected == 5
    assert progress.sent >= progress.acked > 0
    assert progress.p99_ms >= progress.p50_ms > 0
    assert "5 connected" in progress.line()


async def test_progress_is_told_while_nobody_answers() -> None:
    told: list[Progress] = []
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        config = SimConfig(broker=f"mqtt://127.0.0.1:{port}", devices=3, connect_timeout_s=2.5)
        with pytest.raises(SimError, match="no connection in"):
            await run_sim(config, on_progress=told.append)
    assert told
    assert {progress.connected for progress in told} == {0}


async def test_a_storm_cuts_all_and_all_come_back() -> None:
    async with ScriptedBroker() as broker:
        report = await run_until(
            broker, lambda: len(broker.connects) == 60, devices=30, rate_per_s=300, storm_at_s=0.2
        )
    assert report.connections_lost == 30
    assert report.acked == report.readings
    assert report.unacked == 0


async def test_storms_can_repeat() -> None:
    async with ScriptedBroker() as broker:
        await run_until(
            broker,
            lambda: len(broker.connects) >= 20,
            devices=5,
            storm_at_s=0.1,
            storm_every_s=0.1,
        )


async def test_churn_cuts_some() -> None:
    async with ScriptedBroker() as broker:
        report = await run_until(
            broker, lambda: len(broker.connects) >= 16, devices=10, rate_per_s=100, churn_per_s=30
        )
    assert report.connections_lost >= 6
    assert report.acked == report.readings


async def test_a_ramp_spreads_the_connects() -> None:
    connected_at_first_reading: list[int] = []
    async with ScriptedBroker() as broker:

        def answer(_client: str, _publish: Publish) -> int:
            connected_at_first_reading.append(len(broker.connects))
            return 0

        broker.answer = answer
        await run_until(
            broker,
            lambda: len(broker.connects) == 40 and bool(broker.published),
            devices=40,
            rate_per_s=2000,
            ramp_s=1.5,
        )
    assert connected_at_first_reading[0] < 40


async def test_devices_can_share_connections() -> None:
    async with ScriptedBroker() as broker:
        report = await simulate(broker, devices=12, connections=3, count=240, window=4)
    assert report.connections == len(broker.connects) == 3
    assert {connect.client_id for connect in broker.connects} == {"sim-0", "sim-1", "sim-2"}
    senders = defaultdict(set)
    order = defaultdict(list)
    for client, publish in broker.published:
        device = publish.topic_name.split("/")[1]
        senders[device].add(client)
        if found := unstamp(publish.payload):
            order[device].append(found[0].counter)
    assert len(senders) == 12
    assert all(len(clients) == 1 for clients in senders.values())
    assert all(counters == sorted(counters) for counters in order.values())


async def test_a_trace_is_replayed_to_the_bit_and_in_order(tmp_path: Path) -> None:
    records = [
        Record(1000 + n, f"tele/d{n % 4}/S", b'{"n":%d}' % n if n % 3 else b"%d" % (n % 5))
        for n in range(400)
    ]
    path = write_trace(tmp_path / "t.cborseq", records)
    async with ScriptedBroker() as broker:
        report = await simulate(broker, replay=path, stamp=False, topic_prefix="")
    assert report.stopped_by == "trace end"
    assert report.devices == 4
    sent, asked = defaultdict(list), defaultdict(list)
    for topic, payload in rows_of(broker):
        sent[topic].append(payload)
    for record in records:
        asked[record.topic].append(record.payload)
    assert sent == asked


async def test_properties_of_a_trace_go_out_in_mqtt_5(tmp_path: Path) -> None:
    properties = {3: "application/json", 38: [("fw", "2")]}
    path = write_trace(
        tmp_path / "t.cborseq",
        [Record(1, "a/b", b"1", properties={3: "application/json", 38: [["fw", "2"]]})],
    )
    for version, expected in ((5, properties), (4, {})):
        async with ScriptedBroker() as broker:
            await simulate(broker, replay=path, protocol_version=version)
        assert broker.published[0][1].properties == expected


async def test_keep_alive_pings_an_idle_connection() -> None:
    async with ScriptedBroker() as broker:
        await run_until(
            broker, lambda: broker.pings > 0, devices=1, rate_per_s=0.001, keep_alive_s=1
        )


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no time pass for a fleet until a connection of it has failed."""
    began_s, failed, on_lost = time.monotonic(), asyncio.Event(), fleet_module.Fleet.on_lost

    def note(fleet: Any, *about: Any, **how: Any) -> None:
        failed.set()
        on_lost(fleet, *about, **how)

    monkeypatch.setattr(fleet_module.Fleet, "on_lost", note)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() if failed.is_set() else began_s)
    monkeypatch.setattr(fleet_module, "time", clock)


@pytest.mark.usefixtures("_patient")
async def test_a_broker_that_is_not_there_is_one_clear_line() -> None:
    (port,) = free_ports(1)
    config = SimConfig(broker=f"mqtt://127.0.0.1:{port}", devices=3, connect_timeout_s=0.3)
    with pytest.raises(SimError) as caught:
        await run_sim(config)
    assert str(caught.value) == (
        f"mqtt://127.0.0.1:{port}: no connection in 0.3 s: Connection refused;"
        " is the broker running there?"
    )


@pytest.mark.usefixtures("_patient")
async def test_a_broker_that_refuses_all_is_told_with_its_reason() -> None:
    async with ScriptedBroker(connack=FORBIDDEN) as broker:
        with pytest.raises(SimError, match=r"refused the connection: .*not authorized"):
            await simulate(broker, devices=2, connect_timeout_s=0.3)


async def test_an_unknown_host_is_told() -> None:
    with pytest.raises(SimError, match=r"no-such-host\.invalid:1883: unknown host"):
        await run_sim(SimConfig(broker="mqtt://no-such-host.invalid"))


async def test_a_broker_that_comes_late_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    refused, on_lost = asyncio.Event(), fleet_module.Fleet.on_lost

    def note(fleet: Any, *about: Any, **how: Any) -> None:
        on_lost(fleet, *about, **how)
        refused.set()

    monkeypatch.setattr(fleet_module.Fleet, "on_lost", note)
    (port,) = free_ports(1)
    config = SimConfig(broker=f"mqtt://127.0.0.1:{port}", devices=2, speed=0, count=10)
    run = asyncio.create_task(run_sim(config))
    async with asyncio.timeout(60):
        await refused.wait()
    async with ScriptedBroker(port=port):
        report = await run
    assert report.acked == 10
    assert report.connect_failures > 0


async def test_a_broker_that_stays_away_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "OUTAGE_TIMEOUT_S", 0.2)
    broker = ScriptedBroker()
    async with broker:
        run = asyncio.create_task(
            simulate(broker, devices=2, speed=1, rate_per_s=50, drain_timeout_s=0.1)
        )
        while len(broker.published) < 5:
            await asyncio.sleep(0.01)
    report = await run
    assert report.stopped_by == "broker"


async def test_a_damaged_trace_is_refused_before_connecting(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.cborseq", [Record(1, "a", b"1")])
    path.write_bytes(path.read_bytes()[:-1])
    async with ScriptedBroker() as broker:
        with pytest.raises(Exception, match="record 1: the file ends inside it"):
            await simulate(broker, replay=path)
    assert not broker.connects


async def test_a_wrong_store_is_refused_before_connecting(tmp_path: Path) -> None:
    async with ScriptedBroker() as broker:
        with pytest.raises(VerifyError, match="no such folder"):
            await simulate(broker, verify=str(tmp_path / "absent" / "storage.db"))
    assert not broker.connects


async def test_the_report_is_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    async with ScriptedBroker() as broker:
        report = await simulate(broker, devices=2, count=30, report=path)
        written = json.loads(path.read_text())
        assert written["acked"] == report.acked == 30
        assert written["due_latency"]["p99_ms"] >= written["due_latency"]["p50_ms"]
        assert "truth" not in written
        with pytest.raises(SimError, match="cannot be written"):
            await simulate(broker, devices=1, count=1, report=tmp_path / "no" / "r.json")


async def test_simulated_time_is_the_clocks_unless_given() -> None:
    async with ScriptedBroker() as broker:
        config = SimConfig(broker=broker.url, speed=0, count=4, devices=1, profile="owntracks")
        report = await run_sim(config, clock=ManualClock(wall_us=1_600_000_000_000_000))
    found = unstamp(broker.published[0][1].payload)
    assert found is not None
    assert abs(json.loads(found[1])["tst"] - 1_600_000_000) < 100
    assert found[0].run == report.run
    assert found[0].sent_us == 1_600_000_000_000_000
