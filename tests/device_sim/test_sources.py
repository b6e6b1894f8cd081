"""Sources: steady and bursty schedules, traces as fleets, and the same again when asked."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.config import SimConfig
from device_sim.sources import Generated, Replayed, group_of
from device_sim.traces import Record, TraceError

START_S = 1_790_000_000.0


def write_trace(path: Path, records: list[Record]) -> Path:
    path.write_bytes(
        b"".join(
            cbor2.dumps([r.time_ms, r.topic, r.payload, r.qos, r.retain, r.properties])
            for r in records
        )
    )
    return path


TWO_DEVICES = [
    Record(1000, "tele/a/SENSOR", b"1", 2, True),
    Record(1500, "tele/b/SENSOR", b"2"),
    Record(1200, "tele/a/STATE", b"3"),
    Record(3000, "tele/b/SENSOR", b"4"),
]


def test_generated_history_is_what_was_sent() -> None:
    source = Generated(SimConfig(devices=20), START_S)
    sent = [
        (device, counter, message.topic, message.payload)
        for device in range(20)
        for counter in range(5)
        for message in [source.message(device, counter)]
    ]
    assert list(source.history([5] * 20)) == sent


def test_same_seed_same_start_gives_the_same_bytes_in_another_run() -> None:
    first = Generated(SimConfig(devices=30, seed=4), START_S)
    second = Generated(SimConfig(devices=30, seed=4), START_S)
    other = Generated(SimConfig(devices=30, seed=5), START_S)
    counts = [8] * 30
    assert list(first.history(counts)) == list(second.history(counts))
    assert list(first.history(counts)) != list(other.history(counts))


@given(st.integers(0, 2**63 - 1))
def test_a_schedule_never_steps_back_and_keeps_its_rate(seed: int) -> None:
    source = Generated(SimConfig(devices=1, rate_per_s=2, seed=seed), START_S)
    times = [source.due_s(0, counter) for counter in range(400)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] == pytest.approx(200, abs=17)


def test_a_fleet_begins_at_its_rate_without_a_rush() -> None:
    source = Generated(SimConfig(devices=2000, rate_per_s=2000), START_S)
    for second in range(3):
        due = sum(
            second <= source.due_s(device, counter) < second + 1
            for device in range(2000)
            for counter in range(40)
        )
        assert due == pytest.approx(2000, rel=0.1)


def test_some_readings_come_in_bursts() -> None:
    source = Generated(SimConfig(devices=1, rate_per_s=1), START_S)
    times = [source.due_s(0, counter) for counter in range(2000)]
    gaps = [after - before for before, after in pairwise(times)]
    assert 0.05 < sum(gap < 0.2 for gap in gaps) / len(gaps) < 0.2
    assert max(gaps) > 4


def test_prefixes_hold_the_client_id() -> None:
    config = SimConfig(devices=3, client_prefix="x-", topic_prefix="site/{client}/")
    source = Generated(config, START_S)
    assert all(client.startswith("x-") for client in source.clients)
    message = source.message(2, 0)
    assert message.topic.startswith(f"site/{source.clients[2]}/")


def test_a_trace_is_a_fleet(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.cborseq", TWO_DEVICES)
    source = Replayed(SimConfig(topic_prefix=""), path)
    assert source.clients == ["a", "b"]
    assert [(due, device, m.topic, m.payload, m.qos) for due, device, m in source.feed()] == [
        (0.0, 0, "tele/a/SENSOR", b"1", 1),
        (0.5, 1, "tele/b/SENSOR", b"2", 1),
        (0.5, 0, "tele/a/STATE", b"3", 1),  # its clock stepped back: sent at once
        (2.0, 1, "tele/b/SENSOR", b"4", 1),
    ]


def test_compressed_time_and_the_traces_own_flags(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.cborseq", TWO_DEVICES)
    source = Replayed(SimConfig(speed=10, keep_qos=True, topic_prefix="devices/{client}/"), path)
    fed = list(source.feed())
    assert [due for due, _, _ in fed] == pytest.approx([0, 0.05, 0.05, 0.2])
    first = fed[0][2]
    assert (first.topic, first.qos, first.retain) == ("devices/a/tele/a/SENSOR", 2, True)


def test_history_of_a_trace_tells_each_devices_counters(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.cborseq", TWO_DEVICES)
    source = Replayed(SimConfig(topic_prefix=""), path)
    assert list(source.history([1, 2])) == [
        (0, 0, "tele/a/SENSOR", b"1"),
        (1, 0, "tele/b/SENSOR", b"2"),
        (1, 1, "tele/b/SENSOR", b"4"),
    ]


def test_rounds_follow_each_other_in_time(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.cborseq", TWO_DEVICES)
    source = Replayed(SimConfig(replay_loops=3), path)
    times = [due for due, _, _ in source.feed()]
    assert len(times) == source.total == 12
    assert times == sorted(times)
    assert times[4] == pytest.approx(2.5)  # the span and one mean interval


def test_count_ends_a_replay_early(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.cborseq", TWO_DEVICES)
    source = Replayed(SimConfig(count=3), path)
    assert len(list(source.feed())) == source.total == 3


def test_an_empty_or_damaged_trace_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    empty = write_trace(tmp_path / "t.cborseq", [])
    with pytest.raises(TraceError, match="holds no records"):
        Replayed(SimConfig(), empty)
    whole = write_trace(tmp_path / "u.cborseq", TWO_DEVICES).read_bytes()
    (tmp_path / "u.cborseq").write_bytes(whole[:-1])
    with pytest.raises(TraceError, match="record 4"):
        Replayed(SimConfig(), tmp_path / "u.cborseq")


def test_a_trace_that_changes_under_the_replay_is_told(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.cborseq", TWO_DEVICES)
    source = Replayed(SimConfig(), path)
    write_trace(path, [Record(1, "other/topic", b"x")])
    with pytest.raises(TraceError, match="changed while it was replayed"):
        list(islice(source.feed(), 1))


@pytest.mark.parametrize(
    ("topic", "device"),
    [
        ("zigbee2mqtt/motion_7", "motion_7"),
        ("tele/tasmota_5D6A98/SENSOR", "tasmota_5D6A98"),
        ("shellies/shelly1pm-AB/relay/0/power", "shelly1pm-AB"),
        ("shellyplus1pm-ab/status/switch:0", "shellyplus1pm-ab"),
        ("shellyplus1pm-ab/events/rpc", "shellyplus1pm-ab"),
        ("owntracks/fleet/veh081", "fleet-veh081"),
        ("esp-lab-43/sensor/esp-lab-43_co2/state", "esp-lab-43"),
        ("devices/d1/temperature", "d1"),
        ("city/air/guanyuan/aq-004/measurement", "city-air-guanyuan-aq-004"),
        ("alone", "alone"),
        ("/x", "x"),
    ],
)
def test_topics_are_grouped_as_their_software_means_them(topic: str, device: str) -> None:
    assert group_of(topic, "device") == device


def test_each_topic_can_be_a_device() -> None:
    assert group_of("tele/a/SENSOR", "topic") == "tele-a-SENSOR"
