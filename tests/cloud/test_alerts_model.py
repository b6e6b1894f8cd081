"""The rule engine against a naive model, over shuffled, late and restarted input.

The model polls: second by second it looks at everything again, without deadlines, heaps or kept
state but four variables. Both must say the same of every second.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.alerts.config import RuleConfig
from cloud.alerts.series import Order
from tests.kit.alerts import EngineLab, batch, hot, said, silent, us

LATE_S, AHEAD_S = 10, 3


@dataclass(frozen=True)
class Arrival:
    """One reading: when it arrives, how old it is then, what it says."""

    at: int
    age: int
    value: int
    seq: int

    @property
    def time(self) -> int:
        return self.at - self.age

    @property
    def order(self) -> Order:
        return us(self.time), "gw", 7, self.seq


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    gaps = draw(st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 7, 20]), min_size=1, max_size=25))
    ages = st.sampled_from(
        [0, 0, 0, 0, 1, 2, 5, LATE_S, LATE_S + 1, 40, -1, -AHEAD_S, -AHEAD_S - 1]
    )
    at, result = 0, []
    for seq, gap in enumerate(gaps, 1):
        at += gap
        result.append(Arrival(at, draw(ages), draw(st.integers(8, 13)), seq))
    return result


def live_only(given: list[Arrival]) -> list[Arrival]:
    """Return the readings that count: trusted, young, and newer than all that counted before."""
    result: list[Arrival] = []
    for one in given:
        if -AHEAD_S <= one.age <= LATE_S and all(one.order > other.order for other in result):
            result.append(one)
    return result


def threshold_model(
    rule: RuleConfig, given: list[Arrival], end: int, grace: int
) -> list[tuple[str, float]]:
    limit = rule.value
    assert limit is not None
    live = live_only(given)
    out: list[tuple[str, float]] = []
    state, wrong, since, well_since = "inactive", False, 0, None
    for now in range(end + 1):
        for moment in ("time", *[one for one in live if one.at == now]):
            lag = grace
            clock = now
            if isinstance(moment, Arrival):
                clock, lag = min(moment.time, now), 0
                was, wrong = wrong, moment.value > (limit - rule.hysteresis if wrong else limit)
                if wrong and not was:
                    if state == "inactive":
                        state, since = "pending", clock
                        if rule.for_s:
                            out.append(("pending", clock))
                    well_since = None
                elif was and not wrong:
                    if state == "pending":
                        state = "inactive"
                        out.append(("cancelled", clock))
                    else:
                        well_since = clock
            if state == "pending" and wrong and clock >= since + rule.for_s + lag:
                state = "firing"
                out.append(("firing", since + rule.for_s))
            held = well_since is not None and clock >= well_since + rule.clear_for_s + lag
            if state == "firing" and well_since is not None and held:
                state = "inactive"
                out.append(("resolved", well_since + rule.clear_for_s))
                well_since = None
    return out


def absence_model(
    absent_s: int, given: list[Arrival], end: int, grace: int
) -> list[tuple[str, float]]:
    out: list[tuple[str, float]] = []
    firing, alive = False, None
    seen: list[Order] = []
    for now in range(end + 1):
        if alive is not None and not firing and now >= alive + absent_s + grace:
            firing = True
            out.append(("firing", alive + absent_s))
        for one in [one for one in given if one.at == now and one.age >= -AHEAD_S]:
            if any(one.order <= order for order in seen):
                continue
            clock = min(one.time, now)
            first = now if one.age > LATE_S else clock
            alive = first if alive is None else max(clock, alive)
            seen.append(one.order)
            if firing and alive + absent_s + grace > now:
                firing = False
                out.append(("resolved", clock))
    return out


def run(
    lab: EngineLab, given: list[Arrival], end: int, *, restarts: frozenset[int] = frozenset()
) -> list[tuple[str, float]]:
    """Let every second pass with its arrivals; restart before the given steps."""
    out: list[tuple[str, float]] = []
    step = 0
    for now in range(end + 1):
        out += lab.waits(now)
        for one in [one for one in given if one.at == now]:
            if step in restarts:
                out += lab.restarts()
            step += 1
            entry = batch([(one.time, "devices/d/t", one.value)], received=now, first_seq=one.seq)
            out += said(lab.engine.receive(entry, entry.received_us))
    return out


def live(transitions: list[tuple[str, float]]) -> list[tuple[str, float]]:
    return [one for one in transitions if not one[0].startswith("late ")]


seconds = st.sampled_from([0, 1, 3, 8])
rules = st.builds(
    lambda hysteresis, for_s, clear_for_s: hot(
        value=10.0, hysteresis=float(hysteresis), for_s=float(for_s), clear_for_s=float(clear_for_s)
    ),
    st.integers(0, 2),
    seconds,
    seconds,
)


def lab_for(rule: RuleConfig, grace: int) -> EngineLab:
    return EngineLab(rule, late_after_s=LATE_S, ahead_max_s=AHEAD_S, grace_s=grace, flap_fires=100)


@settings(max_examples=300, deadline=None)
@given(rules, arrivals(), st.sampled_from([0, 1]))
def test_threshold_says_what_the_model_says(
    rule: RuleConfig, given_: list[Arrival], grace: int
) -> None:
    end = given_[-1].at + 20
    assert live(run(lab_for(rule, grace), given_, end)) == threshold_model(rule, given_, end, grace)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([1, 4, 15, 60]), arrivals(), st.sampled_from([0, 1]))
def test_absence_says_what_the_model_says(absent_s: int, given_: list[Arrival], grace: int) -> None:
    end = given_[-1].at + 80
    rule = silent(absent_s=float(absent_s))
    assert run(lab_for(rule, grace), given_, end) == absence_model(absent_s, given_, end, grace)


@settings(max_examples=150, deadline=None)
@given(rules, arrivals(), st.frozensets(st.integers(0, 24)))
def test_restarts_anywhere_change_nothing(
    rule: RuleConfig, given_: list[Arrival], restarts: frozenset[int]
) -> None:
    end = given_[-1].at + 80
    for one in (rule, silent(absent_s=4.0), RATE):
        assert run(lab_for(one, 1), given_, end, restarts=restarts) == run(
            lab_for(one, 1), given_, end
        )


RATE = RuleConfig(name="r", kind="rate", op=">", value=1.0, window_s=6.0)


@settings(max_examples=150, deadline=None)
@given(arrivals())
def test_rate_compares_with_the_oldest_reading_of_the_window(given_: list[Arrival]) -> None:
    lab = lab_for(RATE, 0)
    run(lab, given_, given_[-1].at)
    state = "inactive"
    counted = live_only(given_)
    for index, one in enumerate(counted):
        window = [old for old in counted[:index] if old.time >= one.time - 6]
        if window and (one.time - window[0].time) * 2 >= 6:
            span = one.time - window[0].time
            state = "firing" if (one.value - window[0].value) / span > 1.0 else "inactive"
    assert [series.state for series in lab.engine.series.values() if series.newest] == (
        [state] if counted else []
    )


@settings(max_examples=150, deadline=None)
@given(rules, arrivals(), st.randoms(use_true_random=False))
def test_late_readings_in_any_order_change_nothing_live(
    rule: RuleConfig, given_: list[Arrival], random: object
) -> None:
    end = given_[-1].at + 20
    late = [one for one in given_ if one.age > LATE_S]
    values = [(one.age, one.value) for one in late]
    random.shuffle(values)  # type: ignore[attr-defined]
    shuffled = {
        one.seq: Arrival(one.at, age, value, one.seq)
        for one, (age, value) in zip(late, values, strict=True)
    }
    mixed = [shuffled.get(one.seq, one) for one in given_]
    without = [one for one in given_ if one.age <= LATE_S]
    assert live(run(lab_for(rule, 1), mixed, end)) == live(run(lab_for(rule, 1), without, end))


@settings(max_examples=100, deadline=None)
@given(rules, arrivals())
def test_entries_may_be_cut_anywhere(rule: RuleConfig, given_: list[Arrival]) -> None:
    """Readings that arrive together say the same in one entry as in one entry each."""
    end = given_[-1].at
    whole = lab_for(rule, 1)
    out: list[tuple[str, float]] = []
    for now in range(end + 1):
        out += whole.waits(now)
        rows = [one for one in given_ if one.at == now]
        if rows:
            entry = batch(
                [(one.time, "devices/d/t", one.value) for one in rows],
                received=now,
                first_seq=rows[0].seq,
            )
            out += said(whole.engine.receive(entry, entry.received_us))
    assert out == run(lab_for(rule, 1), given_, end)


@settings(max_examples=100, deadline=None)
@given(rules, arrivals(), st.integers(0, 5))
def test_time_never_goes_back(rule: RuleConfig, given_: list[Arrival], back: int) -> None:
    """A wall clock that steps back stops time; what was decided stays decided."""
    lab = lab_for(rule, 0)
    for one in given_:
        before = lab.engine.now_us
        lab.waits(one.at - back)
        lab.reads(one.time, one.value, received=one.at - back)
        lab.waits(one.at - back)
        assert lab.engine.now_us >= before
        for series in lab.engine.series.values():
            assert series.deadline_us() > lab.engine.now_us
            assert series.fired_us <= lab.engine.now_us
            json.dumps(series.dump(), allow_nan=False)
