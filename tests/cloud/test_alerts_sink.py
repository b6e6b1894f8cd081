"""The alerts sink: exactly once over restarts and failures, on time, quiet about the past."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.partition import partition_of
from cloud.alerts import outbox as outbox_module
from cloud.alerts.config import AlertsConfig, LimitsConfig, RuleConfig, WebhookConfig
from cloud.alerts.figures import register_figures
from cloud.alerts.sink import AlertSink
from cloud.alerts.store import AlertStore, Changes
from cloud.config import SinksConfig, StreamConfig
from cloud.database import DatabaseError
from cloud.sinks.contract import DecodedEntry, SinkUnavailable
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.runner import SinkRunner
from cloud.stream.contract import Entry
from cloud.stream.embedded import EmbeddedStream
from runtime.clock import ManualClock
from runtime.metrics import Metrics
from tests.kit.alerts import batch, hot, second, silent, tick, us
from tests.kit.cloud import append_readings
from tests.kit.readings import readings_of
from tests.kit.webhooks import WebhookServer, until

DAY_S = 86_400


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "FIRST_PAUSE_S", 0.01)


class SinkLab:
    """A sink on a stream of the imagination, at second 0 by a clock that is moved by hand."""

    def __init__(
        self, folder: Path, *rules: RuleConfig, hooks: tuple[WebhookConfig, ...] = (), **limits: Any
    ) -> None:
        self.config = AlertsConfig(
            rule=rules, webhook=hooks, limits=LimitsConfig(**{"grace_s": 0.0, **limits})
        )
        self.path = folder / "alerts.db"
        self.clock = ManualClock(wall_us=us(0))
        self.published: list[tuple[str, dict[str, Any]]] = []
        self.heads: dict[int, int] = {}
        self.position = 0
        self.seq = 0
        self.epoch = 5
        self.sink = self.make()

    def make(self) -> AlertSink:
        return AlertSink(self.config, self.path, self.clock, self.get_heads, self.publish)

    async def get_heads(self) -> Mapping[int, int]:
        return self.heads

    async def publish(self, topic: str, payload: bytes) -> None:
        self.published.append((topic, json.loads(payload) if payload else {}))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AlertSink]:
        self.sink = self.make()
        try:
            await self.sink.open(self.epoch)
            yield self.sink
        finally:
            await self.sink.close()

    def decoded(
        self, at: float, value: object, *, device: str = "d", received: float | None = None
    ) -> DecodedEntry:
        """Return the next entry of the stream: one reading."""
        self.seq += 1
        self.position += 1
        partition = partition_of(device)
        received = at if received is None else received
        made = batch([(at, f"devices/{device}/t", value)], received=received, first_seq=self.seq)
        self.heads[partition] = self.position
        entry = Entry(
            partition, self.position, "gw", 7, ((self.seq, self.seq),), 1, us(received), b""
        )
        return DecodedEntry(entry, made.readings, historical=False)

    async def reads(self, at: float, value: object, **keys: Any) -> None:
        """Write one reading."""
        await self.writes(self.decoded(at, value, **keys))

    async def writes(self, *entries: DecodedEntry) -> None:
        await self.sink.write(entries, {one.entry.partition: one.entry.position for one in entries})

    async def history(self) -> list[tuple[str, float]]:
        rows = await self.sink.history(rule=None, device=None, before=None, limit=100)
        return [
            (("late " if row.historical else "") + row.state, second(row.at_us))
            for row in reversed(rows)
        ]

    def told(self) -> list[tuple[str, str]]:
        return [(topic, body.get("state", "")) for topic, body in self.published]

    async def hears(self, count: int) -> None:
        """Wait until so many messages were published."""
        await until(lambda: len(self.published) >= count)


# ---- what goes out -------------------------------------------------------------------------------


async def test_what_a_gateway_marks_as_historical_pages_nobody_however_young(
    tmp_path: Path,
) -> None:
    lab = SinkLab(tmp_path, hot())
    async with lab.open() as sink:
        for at, value in ((0, 99), (1, 20)):
            entry = lab.decoded(at, value, received=8)
            await lab.writes(replace(entry, historical=True))
        assert sink.active() == []
        assert sink.stats.late == 2
        assert await lab.history() == [("late firing", 0), ("late resolved", 1)]
    assert lab.published == []


async def test_alert_is_published_and_kept(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, hot(severity="critical", summary="too hot"))
    async with lab.open() as sink:
        await lab.reads(0, 31.5)
        await lab.hears(1)
        (view,) = sink.active()
        assert (view.state, view.device, view.value, view.fired_us) == ("firing", "d", 31.5, us(0))
        lab.clock.advance(1)
        await lab.reads(1, 20)
        await lab.hears(2)
        assert sink.active() == []
        assert await lab.history() == [("firing", 0), ("resolved", 1)]
    (topic, firing), (_, resolved) = lab.published
    assert topic == "alerts/critical/hot/d"
    assert firing == {
        "id": f"{view.alert_id}.firing.{us(0):x}",
        "alert_id": view.alert_id,
        "state": "firing",
        "rule": "hot",
        "severity": "critical",
        "device": "d",
        "topic": "",
        "value": 31.5,
        "at": "2023-11-14T22:13:20Z",
        "at_us": us(0),
        "decided_us": us(0),
        "flapping": False,
        "reason": "",
        "summary": "too hot",
    }
    assert (resolved["state"], resolved["alert_id"]) == ("resolved", view.alert_id)


async def test_half_of_a_surrogate_pair_stops_no_alerts(tmp_path: Path) -> None:
    """JSON may have it; what cannot be stored of one device would keep all others' from it."""
    rule = RuleConfig(name="state", kind="threshold", op="!=", text="ok")
    lab = SinkLab(tmp_path, rule)
    async with lab.open() as sink:
        await lab.reads(0, b'"a\\ud800z"')
        await lab.reads(0, b'"bad"', device="other")
        assert {one.device: one.value for one in sink.active()} == {"d": "a?z", "other": "bad"}
        await lab.hears(2)
        assert await lab.history() == [("firing", 0), ("firing", 0)]


async def test_topic_of_an_alert_is_always_valid(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, hot(topic="#", by="topic"))
    async with lab.open():
        await lab.reads(0, 31, device="a+b#c%d")
        await lab.hears(1)
    assert lab.told() == [("alerts/warning/hot/a%2Bb%23c%25d/devices/a%2Bb%23c%25d/t", "firing")]


async def test_webhooks_get_their_severities_and_repetitions(tmp_path: Path) -> None:
    server = WebhookServer()
    await server.start()
    hooks = (
        WebhookConfig(name="all", url=server.url + "?all"),
        WebhookConfig(name="pager", url=server.url + "?pager", severities=("critical",)),
    )
    lab = SinkLab(tmp_path, hot(repeat_s=100.0), hooks=hooks)
    async with lab.open() as sink:
        await lab.reads(0, 31)
        await until(lambda: server.received)
        lab.clock.advance(100)
        await until(lambda: len(server.received) == 2)
        await lab.hears(1)
        metrics = Metrics(process=False)
        register_figures(sink, metrics)
        delivered = 'tidegate_alerts_messages_delivered_total{target="webhook:all"} 2.0'
        await until(lambda: delivered in metrics.render()[0].decode())
        text = metrics.render()[0].decode()
    await server.stop()
    assert [one.body["state"] for one in server.received] == ["firing", "repeated"]
    assert lab.told() == [("alerts/warning/hot/d", "firing")]
    assert 'tidegate_alerts_active_alerts{state="firing"} 1.0' in text
    assert "tidegate_alerts_evaluated_total 1.0" in text


async def test_an_alertmanager_gets_what_its_api_takes(tmp_path: Path) -> None:
    server = WebhookServer()
    await server.start()
    hook = WebhookConfig(name="am", url=server.url, format="alertmanager")
    lab = SinkLab(tmp_path, hot(summary="too hot"), hooks=(hook,))
    async with lab.open():
        await lab.reads(0, 31)
        await lab.reads(7, 20)
        await until(lambda: len(server.received) == 2)
    await server.stop()
    (fired,), (resolved,) = (one.body for one in server.received)
    assert fired["labels"] == {"alertname": "hot", "severity": "warning", "device": "d"}
    assert fired["annotations"]["summary"] == "too hot"
    assert fired["annotations"]["value"] == "31.0"
    assert fired["startsAt"] < fired["endsAt"]
    assert resolved["labels"] == fired["labels"]
    assert resolved["startsAt"] == resolved["endsAt"] > fired["startsAt"]
    assert resolved["annotations"]["state"] == "resolved"


async def test_late_backlog_is_never_sent(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, hot())
    async with lab.open() as sink:
        await lab.reads(0, 31, received=1_000)
        await lab.reads(1, 20, received=1_000)
        await lab.reads(1_000, 31)
        await lab.hears(1)
        assert await lab.history() == [("late firing", 0), ("late resolved", 1), ("firing", 1_000)]
        assert sink.stats.late == 2
    assert lab.told() == [("alerts/warning/hot/d", "firing")]


async def test_sink_that_was_behind_tells_only_what_stands(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, hot())
    lab.clock.advance(3_600)  # the entries below waited an hour in the stream
    async with lab.open():
        entries = [
            lab.decoded(0, 31, device="a"),
            lab.decoded(1, 20, device="a"),
            lab.decoded(2, 31, device="b"),
        ]
        await lab.writes(*entries[:2])
        await lab.writes(entries[2])
        await lab.hears(1)
        assert await lab.history() == [("firing", 0), ("resolved", 1), ("firing", 2)]
        await lab.reads(3_600, 20, device="b")
        await lab.hears(2)
    assert lab.told() == [("alerts/warning/hot/b", "firing"), ("alerts/warning/hot/b", "resolved")]
    assert lab.published[0][1]["at_us"] == us(2)


async def test_rules_are_changed_while_it_runs(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, hot(), hot(name="too", value=10.0))
    async with lab.open() as sink:
        await lab.reads(0, 31)
        await lab.hears(2)
        await sink.take_config(AlertsConfig(rule=(hot(), hot(name="cold", op="<", value=0.0))))
        await lab.hears(3)
        assert [view.rule for view in sink.active()] == ["hot"]
        await lab.reads(1, -1)
        await lab.hears(5)
        assert {view.rule for view in sink.active()} == {"cold"}
        assert sink.stats.series == 2
    assert lab.told() == [
        ("alerts/warning/hot/d", "firing"),
        ("alerts/warning/too/d", "firing"),
        ("alerts/warning/too/d", "resolved"),
        *lab.told()[3:],
    ]
    assert set(lab.told()[-2:]) == {
        ("alerts/warning/hot/d", "resolved"),
        ("alerts/warning/cold/d", "firing"),
    }


# ---- restarts and failures -----------------------------------------------------------------------


async def test_restart_keeps_state_cursor_and_history(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, hot(for_s=10.0))
    async with lab.open():
        await lab.reads(0, 31)
    lab.clock.advance(1)
    async with lab.open() as sink:
        assert await sink.cursors() == {partition_of("d"): 1}
        assert [view.state for view in sink.active()] == ["pending"]
        lab.clock.advance(10)
        await lab.hears(1)
        assert await lab.history() == [("firing", 10)]
    async with lab.open() as sink:
        (view,) = sink.active()
        done = await sink.acknowledge(view.alert_id, "ann", "on it")
        assert done is not None
        assert (done.acked_by, done.note) == ("ann", "on it")
        assert await sink.acknowledge("unknown", "ann", "") is None
        await lab.hears(2)
    async with lab.open() as sink:
        assert [view.acked_by for view in sink.active()] == ["ann"]
        assert await lab.history() == [("firing", 10), ("acknowledged", 11)]
    assert [state for _, state in lab.told()] == ["firing", "acknowledged"]


async def test_message_that_was_not_taken_is_sent_after_a_restart(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, hot())
    publish, lab.publish = lab.publish, _refusing  # type: ignore[method-assign]
    async with lab.open():
        await lab.reads(0, 31)
    lab.publish = publish  # type: ignore[method-assign]
    async with lab.open():
        await lab.hears(1)
    assert lab.told() == [("alerts/warning/hot/d", "firing")]


async def _refusing(_topic: str, _payload: bytes) -> None:
    raise RuntimeError("no broker")


async def test_write_that_cannot_be_committed_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = SinkLab(tmp_path, hot())
    async with lab.open() as sink:
        entry = lab.decoded(0, 31)
        commit = AlertStore.commit

        async def failing(self: AlertStore, changes: Changes, now_us: int) -> int:
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr(AlertStore, "commit", failing)
        for _ in range(3):
            with pytest.raises(SinkUnavailable, match="disk I/O error"):
                await lab.writes(entry)
        assert await sink.cursors() == {}
        monkeypatch.setattr(AlertStore, "commit", commit)
        await lab.writes(entry)
        await lab.hears(1)
        assert await lab.history() == [("firing", 0)]
        assert sink.stats.evaluated == 1
    assert lab.told() == [("alerts/warning/hot/d", "firing")]


async def test_positions_of_another_stream_are_forgotten(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, hot())
    async with lab.open():
        await lab.reads(0, 31)
        await lab.hears(1)
    lab.epoch, lab.position, lab.heads = 6, 0, {}
    async with lab.open() as sink:
        assert await sink.cursors() == {}
        assert [view.state for view in sink.active()] == ["firing"]
        await lab.reads(1, 20)
        assert await sink.cursors() == {partition_of("d"): 1}
        await lab.hears(2)


async def test_stream_restored_from_an_older_copy_is_read_again(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, hot())
    async with lab.open() as sink:
        for number in range(5):
            await lab.reads(number, 20)
        lab.position = 2  # what came after is gone; new entries get its positions
        await lab.reads(10, 31)
        assert await sink.cursors() == {partition_of("d"): 3}
        await lab.hears(1)


async def test_dead_letter_is_tried_without_moving_the_cursor(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, hot())
    async with lab.open() as sink:
        skipped = lab.decoded(0, 31)
        await sink.pass_over(skipped.entry)
        await lab.reads(1, 20)
        await sink.write([skipped], {})
        assert await sink.cursors() == {partition_of("d"): 2}
        assert await lab.history() == [("late firing", 0)]


async def test_removed_rule_ends_its_alert_and_takes_its_message_back(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, hot())
    async with lab.open():
        await lab.reads(0, 31)
        await lab.hears(1)
    lab.clock.advance(DAY_S)
    lab.config = AlertsConfig(rule=(silent(),))
    async with lab.open() as sink:
        await lab.hears(3)
        assert sink.active() == []
        assert (await lab.history())[-1][0] == "resolved"
    topic = "alerts/warning/hot/d"
    assert lab.told() == [(topic, "firing"), (topic, "resolved"), (topic, "")]
    assert lab.published[1][1]["reason"] == "the rule was removed"


async def test_entries_without_outcome_cost_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = SinkLab(tmp_path, hot(device="other"))
    commits: list[Changes] = []
    commit = AlertStore.commit

    async def counting(self: AlertStore, changes: Changes, now_us: int) -> int:
        commits.append(changes)
        return await commit(self, changes, now_us)

    monkeypatch.setattr(AlertStore, "commit", counting)
    async with lab.open() as sink:
        for number in range(20):
            await lab.reads(number, 31)
        assert await sink.cursors() == {partition_of("d"): 20}
        assert len(commits) <= 2  # open, and at most one by the watch
    async with lab.open() as sink:
        assert await sink.cursors() == {partition_of("d"): 20}


@pytest.mark.parametrize("seed", range(8))
async def test_crashes_anywhere_change_nothing(tmp_path: Path, seed: int) -> None:
    """Entries past the committed cursor come again; history and messages are as without crashes."""
    rng = random.Random(seed)
    rules = (hot(for_s=3.0, clear_for_s=2.0), silent(absent_s=4.0, by="topic"))
    steps = [
        (rng.choice([0.1, 0.5, 2.0, 6.0]), rng.choice("ab"), rng.choice([20, 31, 33]),
         rng.choice([0, 0, 0, 90]))
        for _ in range(60)
    ]  # fmt: skip

    async def outcome(folder: Path, crashes: set[int]) -> tuple[list[tuple[str, float]], set[str]]:
        folder.mkdir()
        lab = SinkLab(folder, *rules, flap_fires=100)
        await lab.sink.open(lab.epoch)
        written: list[DecodedEntry] = []
        for number, (gap, device, value, late) in enumerate(steps):
            if number in crashes:
                await crash(lab.sink)
                lab.sink = lab.make()
                await lab.sink.open(lab.epoch)
                reached = await lab.sink.cursors()
                for one in written:
                    if one.entry.position > reached.get(one.entry.partition, 0):
                        await lab.writes(one)
                await tick(lab.sink)
            lab.clock.advance(gap)
            now = second(lab.clock.wall_us())
            written.append(lab.decoded(now - late, value, device=device, received=now))
            await lab.writes(written[-1])
            await tick(lab.sink)
        history = await lab.history()
        async with asyncio.timeout(60):
            assert lab.sink._store is not None
            while await lab.sink._store.queued():
                await asyncio.sleep(0.005)
        await lab.sink.close()
        return sorted(history, key=str), {body["id"] for _, body in lab.published if body}

    crashes = set(rng.sample(range(60), 12))
    assert await outcome(tmp_path / "crashed", crashes) == await outcome(tmp_path / "calm", set())


async def crash(sink: AlertSink) -> None:
    """End a sink as SIGKILL does: nothing more is written."""
    for task in sink._tasks:
        task.cancel()
    await asyncio.gather(*sink._tasks, return_exceptions=True)
    assert sink._outbox is not None
    assert sink._store is not None
    await sink._outbox.close()
    await sink._store.close()


# ---- time ----------------------------------------------------------------------------------------


async def test_absence_is_told_within_two_seconds_of_its_deadline(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, silent(absent_s=1.0), grace_s=0.5)
    async with lab.open() as sink:
        await lab.reads(0, 1)
        async with asyncio.timeout(60):
            while not sink.active():
                told_us = lab.clock.wall_us()
                lab.clock.advance(await tick(sink))  # as long as its own task would wait
        await lab.hears(1)
    body = lab.published[0][1]
    assert body["at_us"] == us(1)
    assert 0 <= told_us - body["at_us"] < 2_000_000


async def test_deadline_waits_for_entries_that_were_not_read_yet(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, silent())
    async with lab.open() as sink:
        await lab.reads(0, 1)
        unread = lab.decoded(30, 1)
        lab.clock.advance(70)
        await tick(sink)
        assert sink.active() == []
        await lab.writes(unread)
        await tick(sink)
        assert sink.active() == []
        lab.clock.advance(20)
        await lab.hears(1)
    assert lab.published[0][1]["at_us"] == us(90)


async def test_node_that_was_down_gives_devices_time_to_come_back(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, silent())
    async with lab.open():
        await lab.reads(0, 1, device="a")
        await lab.reads(0, 1, device="b")
    lab.clock.advance(3_600)
    async with lab.open() as sink:
        await tick(sink)
        lab.clock.advance(59)
        await tick(sink)
        assert sink.active() == []
        await lab.reads(3_659, 1, device="a")
        lab.clock.advance(2)
        await lab.hears(1)
        assert [view.device for view in sink.active()] == ["b"]


async def test_watch_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud.alerts.sink.IDLE_PAUSE_S", 0.01)
    lab = SinkLab(tmp_path, silent())
    async with lab.open():
        await lab.reads(0, 1)
        heads, failed = lab.heads, []

        class Broken(dict[int, int]):
            def get(self, *args: object) -> int:  # type: ignore[override]
                failed.append(1)
                raise RuntimeError("no stream")

        lab.heads = Broken()
        await until(lambda: len(failed) >= 2)
        lab.heads = heads
        lab.clock.advance(60)
        await lab.hears(1)


# ---- the whole -----------------------------------------------------------------------------------


async def test_foreign_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "alerts.db").write_bytes(b"not a database at all" * 100)
    lab = SinkLab(tmp_path, hot())
    with pytest.raises(DatabaseError, match=r"alerts\.db: not a database"):
        await lab.sink.open(1)
    await lab.sink.close()


async def test_history_is_paged_filtered_and_bounded(tmp_path: Path) -> None:
    lab = SinkLab(tmp_path, hot(), history_max=100, flap_fires=100)
    async with lab.open() as sink:
        for number in range(120):
            await lab.reads(number, 31 if number % 2 == 0 else 20, device=f"d{number % 4 // 2}")
        everything = await sink.history(rule=None, device=None, before=None, limit=1_000)
        assert len(everything) == 100
        assert everything[0].at_us == us(119)
        page = await sink.history(
            rule="hot", device="d1", before=int(everything[10].event_id), limit=5
        )
        assert [(row.device, row.event_id) for row in page] == [
            (row.device, row.event_id) for row in everything[11:] if row.device == "d1"
        ][:5]
        assert await sink.history(rule="x", device=None, before=None, limit=5) == []


async def test_runs_behind_a_real_stream(tmp_path: Path) -> None:
    """Stream, runner and sink together; the stream is read to its end before time moves on."""
    clock = ManualClock(wall_us=us(0))
    stream = await EmbeddedStream.open(
        tmp_path / "stream.db", StreamConfig(disk_reserve_bytes=0), clock
    )
    published: list[dict[str, Any]] = []

    async def publish(_topic: str, payload: bytes) -> None:
        published.append(json.loads(payload))

    async def heads() -> Mapping[int, int]:
        return (await stream.stats()).last_positions

    config = AlertsConfig(rule=(hot(), silent()), limits=LimitsConfig(grace_s=0.0))
    for start, values, expected in ((1, [b"31", b"20"], 2), (3, [b"20", b"32"], 3)):
        sink = AlertSink(config, tmp_path / "alerts.db", clock, heads, publish)
        runner = SinkRunner(sink, stream, DecodedEntries(100), SinksConfig())
        await runner.start()
        times = [us(start), us(start) + 1]
        readings = readings_of(values, seqs=range(start, start + 2), times_us=times)
        await append_readings(stream, readings)
        async with asyncio.timeout(60):
            await runner.drained()
            while len(published) < expected:
                await asyncio.sleep(0.005)
        await runner.stop()
        clock.advance(2)
    assert [(body["state"], body["value"]) for body in published] == [
        ("firing", 31.0),
        ("resolved", 20.0),
        ("firing", 32.0),
    ]
    await stream.close()


async def test_a_partition_that_another_node_has_falls_silent_here(tmp_path: Path) -> None:
    """Its deadlines are the other's; given back, time goes on once its entries were seen."""
    lab = SinkLab(tmp_path, silent(absent_s=1.0))
    partition = partition_of("d")
    async with lab.open() as sink:
        await lab.reads(0, 1)
        sink.turns([])
        lab.clock.advance(30)
        assert await tick(sink) > 0
        assert sink.active() == []
        lab.decoded(29.5, 1)  # seen by the other node only
        sink.turns([partition])
        await tick(sink)
        assert sink.active() == []
        lab.seq, lab.position = 1, 1
        await lab.reads(29.5, 1)
        lab.clock.advance(2)
        await tick(sink)
        assert [one.state for one in sink.active()] == ["firing"]
