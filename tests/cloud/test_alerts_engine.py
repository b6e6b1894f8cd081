"""The rule engine by example: what fires when, what ends it, and what never does either."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloud.alerts.config import RuleConfig
from tests.kit.alerts import EngineLab, batch, hot, said, silent, us

YEAR_S = 365 * 86_400


# ---- threshold -----------------------------------------------------------------------------------


def test_threshold_fires_and_resolves_at_event_time() -> None:
    lab = EngineLab(hot())
    assert lab.reads(0, 30) == []
    assert lab.reads(1, 30.5, received=4) == [("firing", 1)]
    assert lab.reads(2, 99, received=5) == []
    assert lab.reads(3, 30, received=6) == [("resolved", 3)]


@pytest.mark.parametrize(
    ("op", "wrong", "well"),
    [(">", 31, 30), (">=", 30, 29), ("<", 29, 30), ("<=", 30, 31), ("==", 30, 31), ("!=", 31, 30)],
)
def test_every_operator(op: str, wrong: float, well: float) -> None:
    lab = EngineLab(hot(op=op))
    assert lab.reads(0, well) == []
    assert lab.reads(1, wrong) == [("firing", 1)]
    assert lab.reads(2, well) == [("resolved", 2)]


@pytest.mark.parametrize(
    ("op", "wrong", "between", "well"), [(">", 31, 28.5, 28), ("<", 29, 31.5, 32)]
)
def test_hysteresis_keeps_what_was_wrong_wrong(
    op: str, wrong: float, between: float, well: float
) -> None:
    lab = EngineLab(hot(op=op, hysteresis=2.0))
    assert lab.reads(0, between) == []
    assert lab.reads(1, wrong) == [("firing", 1)]
    assert lab.reads(2, between) == []
    assert lab.reads(3, well) == [("resolved", 3)]
    assert lab.reads(4, between) == []


def test_text_is_compared_whole() -> None:
    lab = EngineLab(hot(value=None, text="open", op="==", field="state"))
    assert lab.reads(0, {"state": "closed"}) == []
    assert lab.reads(1, {"state": "open"}) == [("firing", 1)]
    assert lab.reads(2, {"state": "opened"}) == [("resolved", 2)]


def test_for_is_met_by_a_later_reading_or_by_time() -> None:
    lab = EngineLab(hot(for_s=10.0), grace_s=1.5)
    assert lab.reads(0, 31) == [("pending", 0)]
    assert lab.reads(9, 31) == []
    assert lab.reads(11, 31) == [("firing", 10)]
    lab = EngineLab(hot(for_s=10.0))
    assert lab.reads(0, 31, received=2) == [("pending", 0)]
    assert lab.waits(9.999) == []
    assert lab.waits(10) == [("firing", 10)]


def test_pending_that_gets_well_was_never_an_alert() -> None:
    lab = EngineLab(hot(for_s=10.0))
    lab.reads(0, 31)
    assert lab.reads(5, 20) == [("cancelled", 5)]
    assert lab.waits(100) == []
    assert lab.reads(101, 31) == [("pending", 101)]
    assert lab.waits(111) == [("firing", 111)]


def test_grace_lets_a_reading_from_before_the_deadline_arrive() -> None:
    lab = EngineLab(hot(for_s=10.0), grace_s=1.0)
    lab.reads(0, 31)
    assert lab.waits(10.9) == []
    assert lab.reads(9.5, 20, received=10.95) == [("cancelled", 9.5)]
    lab.reads(20, 31)
    assert lab.waits(31) == [("firing", 30)]


def test_clear_for_holds_an_alert_until_it_stays_well() -> None:
    lab = EngineLab(hot(clear_for_s=10.0))
    lab.reads(0, 31)
    assert lab.reads(1, 20) == []
    assert lab.reads(9, 31) == []
    assert lab.reads(10, 20) == []
    assert lab.waits(19.9) == []
    assert lab.waits(20) == [("resolved", 20)]


def test_value_is_found_by_path_and_what_has_none_is_counted() -> None:
    lab = EngineLab(hot(field="sensors[0].temp"))
    for payload in (
        b"\xff\xfe",
        b"",
        b"31",
        b"[" * 100_000,
        b'{"sensors": []}',
        b'{"sensors": 31}',
    ):
        assert lab.reads(0, payload) == []
    for value in (None, "warm", float("nan"), float("inf"), [], 10**400):
        assert lab.reads(0, {"sensors": [{"temp": value}]}) == []
    assert lab.stats.unreadable == 12
    assert lab.reads(1, {"sensors": [{"temp": "31.5"}]}) == [("firing", 1)]


def test_only_matching_topics_and_devices_count() -> None:
    lab = EngineLab(hot(topic="devices/+/temp", device="boiler-*"))
    assert lab.reads(0, 99, topic="devices/boiler-1/hum") == []
    assert lab.reads(1, 99, topic="devices/fan-1/temp") == []
    assert lab.reads(2, 99, topic="devices/boiler-1/temp") == [("firing", 2)]
    assert lab.reads(3, 99, topic="devices/boiler-2/temp") == [("firing", 3)]


def test_by_topic_keeps_topics_of_a_device_apart() -> None:
    lab = EngineLab(hot(by="topic"))
    assert lab.reads(0, 31, topic="devices/d/in") == [("firing", 0)]
    assert lab.reads(1, 20, topic="devices/d/out") == []
    assert lab.reads(2, 31, topic="devices/d/out") == [("firing", 2)]
    assert lab.reads(3, 20, topic="devices/d/in") == [("resolved", 3)]


# ---- rate ----------------------------------------------------------------------------------------


def rising(**keys: Any) -> RuleConfig:
    given = {"name": "r", "kind": "rate", "op": ">", "value": 2.0, "window_s": 60.0}
    return RuleConfig(**{**given, "rate_per": "minute", **keys})


def test_rate_is_change_over_the_window() -> None:
    lab = EngineLab(rising())
    assert lab.reads(0, 10) == []
    assert lab.reads(20, 14) == []  # 12 a minute, but over a third of the window only
    assert lab.reads(30, 11) == []  # 2 a minute
    assert lab.reads(60, 12.1) == [("firing", 60)]  # 2.1 a minute
    assert lab.reads(70, 12.1) == [("resolved", 70)]  # against 14 at 20


def test_rate_is_unknown_after_a_gap() -> None:
    lab = EngineLab(rising(rate_per="second", value=1.0))
    lab.reads(0, 0)
    assert lab.reads(30, 60) == [("firing", 30)]
    assert lab.reads(200, 500) == []  # nothing to compare with: the state stays
    assert lab.reads(230, 500) == [("resolved", 230)]


def test_rate_keeps_a_bounded_number_of_points() -> None:
    lab = EngineLab(rising())
    for step in range(5_000):
        lab.reads(step * 0.05, 0)
    (series,) = lab.engine.series.values()
    assert len(series.points) <= 130
    assert series.points[0][0] <= us(250 - 59)


# ---- absence -------------------------------------------------------------------------------------


def test_absence_fires_at_its_deadline_and_ends_with_a_reading() -> None:
    lab = EngineLab(silent())
    assert lab.reads(0, 1, received=5) == []
    assert lab.waits(59.999) == []
    assert lab.waits(60) == [("firing", 60)]
    assert lab.waits(10_000) == []
    assert lab.reads(10_001, 1) == [("resolved", 10_001)]
    assert lab.waits(10_061) == [("firing", 10_061)]


def test_absence_of_a_field_is_not_ended_by_other_readings() -> None:
    lab = EngineLab(silent(field="temp"))
    lab.reads(0, {"temp": 1})
    assert lab.reads(50, {"hum": 1}) == []
    assert lab.waits(60) == [("firing", 60)]
    assert lab.reads(61, {"hum": 1}) == []
    assert lab.reads(62, {"temp": None}) == [("resolved", 62)]


def test_late_reading_ends_an_absence_only_if_it_is_young_enough() -> None:
    lab = EngineLab(silent(), late_after_s=5.0)
    lab.reads(0, 1)
    lab.waits(60)
    assert lab.reads(20, 1, received=100) == []
    assert lab.reads(70, 1, received=100) == [("resolved", 70)]
    assert lab.waits(130) == [("firing", 130)]


def test_device_first_heard_of_by_late_readings_gets_its_full_time() -> None:
    lab = EngineLab(silent(), late_after_s=5.0)
    assert lab.reads(0, 1, received=1_000) == []
    assert lab.waits(1_059) == []
    assert lab.waits(1_060) == [("firing", 1_060)]


# ---- late, wrong clocks --------------------------------------------------------------------------


def test_late_readings_only_write_history() -> None:
    lab = EngineLab(hot(for_s=10.0), late_after_s=60.0)
    assert lab.reads(0, 31, received=1_000) == []
    assert lab.reads(10, 31, received=1_000) == [("late firing", 10)]
    assert lab.reads(20, 20, received=1_000) == [("late resolved", 20)]
    assert lab.waits(2_000) == []
    assert not list(lab.engine.active())


def test_reading_behind_the_newest_is_history_however_young() -> None:
    lab = EngineLab(hot())
    assert lab.reads(10, 20) == []
    assert lab.reads(9, 31, received=10) == [("late firing", 9)]
    assert lab.reads(11, 20) == []


def test_backlog_neither_fires_nor_ends_a_live_alert() -> None:
    lab = EngineLab(hot(), late_after_s=60.0)
    assert lab.reads(1_000, 31) == [("firing", 1_000)]
    assert lab.reads(500, 20, received=1_001) == []
    assert lab.reads(501, 31, received=1_001) == [("late firing", 501)]
    assert lab.reads(502, 20, received=1_001) == [("late resolved", 502)]
    assert [series.state for series in lab.engine.active()] == ["firing"]


def test_clock_in_1970_is_history_and_in_2099_nothing_at_all() -> None:
    lab = EngineLab(hot(), silent())
    assert lab.reads(-53 * YEAR_S, 31, received=0) == [("late firing", -53 * YEAR_S)]
    assert lab.reads(76 * YEAR_S, 31, received=1) == []
    assert lab.stats.clock_refused == 1
    assert lab.reads(2, 31) == [("firing", 2)]
    assert lab.reads(3, 20) == [("resolved", 3)]
    assert lab.waits(63) == [("firing", 63)]  # silent


def test_clock_a_little_ahead_counts_as_its_arrival() -> None:
    lab = EngineLab(hot(for_s=10.0), ahead_max_s=30.0)
    assert lab.reads(25, 31, received=0) == [("pending", 0)]
    assert lab.waits(10) == [("firing", 10)]
    assert lab.reads(40.5, 20, received=10) == []  # more than a little
    assert lab.reads(40, 20, received=11) == [("resolved", 11)]


def test_equal_times_are_ordered_by_identity() -> None:
    lab = EngineLab(hot())
    entry = batch(
        [(0, "devices/d/t", 31), (0, "devices/d/t", 20), (0, "devices/d/t", 32)], received=0
    )
    transitions = lab.engine.receive(entry, entry.received_us)
    assert said(transitions) == [("firing", 0), ("resolved", 0), ("firing", 0)]
    assert len({t.alert_id for t in transitions}) == 2


# ---- flapping, acknowledgement, repetition -------------------------------------------------------


def test_flapping_alert_stays_firing_until_it_is_quiet() -> None:
    lab = EngineLab(hot(), flap_fires=3, flap_window_s=100.0, flap_quiet_s=50.0)
    said_all = []
    for start in range(0, 40, 4):
        said_all += lab.reads(start, 31)
        said_all += lab.reads(start + 2, 20)
    assert said_all == [
        ("firing", 0),
        ("resolved", 2),
        ("firing", 4),
        ("resolved", 6),
        ("firing", 8),
    ]
    (series,) = lab.engine.active()
    assert series.flapping
    assert lab.waits(87.9) == []
    assert lab.waits(88) == [("resolved", 88)]
    assert lab.reads(200, 31) == [("firing", 200)]
    assert lab.reads(201, 20) == [("resolved", 201)]


def test_acknowledged_alert_is_not_repeated() -> None:
    lab = EngineLab(hot(repeat_s=100.0))
    lab.reads(0, 31)
    assert lab.waits(100) == [("repeated", 100)]
    assert lab.waits(750) == [("repeated", 750)]  # once, not six times
    (series,) = lab.engine.active()
    assert lab.engine.acknowledge("nobody", "ann", "", us(750)) is None
    done = lab.engine.acknowledge(series.alert_id, "ann", "on it", us(751))
    assert done is not None
    assert (done.state, done.alert_id) == ("acknowledged", series.alert_id)
    assert (series.acked_by, series.note) == ("ann", "on it")
    assert lab.waits(10_000) == []
    assert lab.reads(10_001, 20) == [("resolved", 10_001)]
    assert series.acked_by == ""
    lab.reads(10_002, 31)
    assert lab.waits(10_102) == [("repeated", 10_102)]


# ---- bounds and restarts -------------------------------------------------------------------------


def test_forgotten_after_long_silence() -> None:
    lab = EngineLab(hot(), forget_after_s=1_000.0)
    lab.reads(0, 31)
    (series,) = lab.engine.active()
    series.told = (series.alert_id, "firing")
    lab.saves()
    assert lab.waits(1_000) == [("resolved", 1_000), ("forgotten", 1_000)]
    lab.saves()
    assert (lab.engine.series, lab.stored, lab.stats.series) == ({}, {}, 0)
    assert lab.engine.next_deadline_us() is None


def test_series_are_bounded() -> None:
    lab = EngineLab(hot(), series_max=2)
    for number in range(4):
        lab.reads(number, 31, topic=f"devices/{number}/t")
    assert len(list(lab.engine.active())) == 2
    assert lab.stats.refused_series == 2


def test_deadline_heap_stays_in_proportion() -> None:
    lab = EngineLab(hot(for_s=10.0))
    for number in range(2_000):
        lab.reads(number, 31)
        lab.reads(number + 0.5, 20)
    assert len(lab.engine._deadlines) < 100


def test_restart_keeps_pending_firing_and_acknowledged() -> None:
    lab = EngineLab(hot(for_s=10.0), silent())
    lab.reads(0, 31)
    assert lab.restarts() == []
    assert lab.waits(10) == [("firing", 10)]
    (series,) = lab.engine.active()
    lab.engine.acknowledge(series.alert_id, "ann", "on it", us(751))
    lab.restarts()
    (series,) = lab.engine.active()
    assert (series.acked_by, series.alert_id != "") == ("ann", True)
    assert lab.waits(60) == [("firing", 60)]


@pytest.mark.parametrize("changed", [(hot(value=40.0),), (silent(),), (hot(severity="critical"),)])
def test_rule_that_changed_or_went_ends_its_alerts(changed: tuple[RuleConfig, ...]) -> None:
    lab = EngineLab(hot())
    lab.reads(0, 31)
    assert lab.restarts(*changed) == [("resolved", 0)]
    lab.saves()
    assert lab.stored == {}


def test_other_words_are_no_change_of_a_rule() -> None:
    lab = EngineLab(hot())
    lab.reads(0, 31)
    assert lab.restarts(hot(summary="too hot")) == []
    assert lab.reads(1, 20) == [("resolved", 1)]


def test_no_deadline_is_met_while_nobody_listened() -> None:
    lab = EngineLab(silent())
    lab.reads(0, 1)
    lab.restarts()
    lab.engine.deaf(us(1), us(300))  # down until 240, and a minute for gateways to come back
    assert lab.engine.next_deadline_us() == us(300)
    assert lab.waits(240) == []
    assert lab.reads(250, 1) == []
    assert lab.waits(300) == []
    assert lab.waits(310) == [("firing", 310)]


def test_payload_is_parsed_once_for_all_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "cloud.alerts.engine.json_document", lambda payload: calls.append(1) or json.loads(payload)
    )
    lab = EngineLab(*(hot(name=f"r{number}", field="t") for number in range(5)))
    assert len(lab.reads(0, {"t": 31})) == 5
    assert len(calls) == 1
