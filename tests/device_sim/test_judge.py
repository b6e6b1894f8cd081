"""The judge finds what was lost, doubled, reordered or altered, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.judge import Judge, Tally, compare
from device_sim.stamps import stamp, stampable
from device_sim.truth import DeviceTruth, Truth, counter_of, key_of

RUN = "r1"


class Said:
    """A source of fixed payloads: `said[device][counter] = (topic, payload)`."""

    def __init__(self, said: list[list[tuple[str, bytes]]]) -> None:
        self.said = said
        self.clients: Sequence[str] = [f"dev{n}" for n in range(len(said))]

    def history(self, counts: Sequence[int]) -> Iterator[tuple[int, int, str, bytes]]:
        for device, count in enumerate(counts):
            for counter in range(count):
                yield device, counter, *self.said[device][counter]


# One sequence


@st.composite
def faulty(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], Tally]:
    """Sent, acknowledged and stored of distinct publishes, with known faults put in."""
    count = draw(st.integers(1, 60))
    sent = list(range(100, 100 + count))
    acked = draw(st.lists(st.sampled_from([1, 1, 1, 0]), min_size=count, max_size=count))
    expected = Tally(acked=sum(acked))
    stored = []
    for identity, done in zip(sent, acked, strict=True):
        fate = draw(st.sampled_from(["stored"] * 6 + ["dropped", "doubled"]))
        if fate == "dropped":
            expected.lost += done
            continue
        expected.stored_unacked += 1 - done
        stored.append(identity)
        if fate == "doubled":
            expected.doubled += 1
            stored.append(identity)
    distinct = list(dict.fromkeys(stored))
    moved = draw(st.sets(st.sampled_from(distinct), max_size=1)) if len(distinct) > 2 else set()
    for identity in moved:  # to the other end: it alone is out of order
        copies = [identity] * stored.count(identity)
        rest = [other for other in stored if other != identity]
        at_front = identity != distinct[0] and distinct.index(identity) > 0
        stored = copies + rest if at_front else rest + copies
        expected.reordered = 1
    for stranger in draw(st.lists(st.integers(1000, 1010), max_size=2)):
        stored.insert(draw(st.integers(0, len(stored))), stranger)
        expected.altered += 1
    expected.stored = len(stored)
    return sent, acked, stored, expected


@given(faulty())
def test_faults_put_in_are_found_exactly(
    case: tuple[list[int], list[int], list[int], Tally],
) -> None:
    sent, acked, stored, expected = case
    found = compare(sent, acked, stored, "x")
    assert bool(found.examples) != found.ok
    found.examples = []
    assert found == expected


@given(st.lists(st.integers(0, 4), max_size=40), st.data())
def test_with_repeated_values_any_part_in_order_is_in_order(
    sent: list[int], data: st.DataObject
) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=len(sent), max_size=len(sent)))
    stored = [value for value, keep in zip(sent, kept, strict=True) if keep]
    tally = compare(sent, [int(keep) for keep in kept], stored, "x")
    assert tally.ok
    assert tally.stored_unacked == 0


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_with_repeated_values_another_order_is_found(sent: list[int], random: object) -> None:
    stored = list(sent)
    random.shuffle(stored)  # type: ignore[attr-defined]
    tally = compare(sent, [1] * len(sent), stored, "x")
    assert (tally.lost, tally.doubled, tally.altered) == (0, 0, 0)
    assert (tally.reordered > 0) == (stored != sent)


@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.lists(st.integers(0, 3), max_size=30),
    st.data(),
)
def test_counts_hold_for_any_two_multisets(
    sent: list[int], stored: list[int], data: st.DataObject
) -> None:
    acked = data.draw(st.lists(st.integers(0, 1), min_size=len(sent), max_size=len(sent)))
    tally = compare(sent, acked, stored, "x")
    done = Counter(value for value, ack in zip(sent, acked, strict=True) if ack)
    there, out = Counter(stored), Counter(sent)
    assert tally.lost == sum((done - there).values())
    assert tally.doubled == sum(max(0, n - out[value]) for value, n in there.items() if out[value])
    assert tally.altered == sum(n for value, n in there.items() if not out[value])


# A whole run


class Run:
    """Two devices of stampable and of plain payloads, all sent and acknowledged once."""

    def __init__(self, readings: int = 30, *, stamped: bool = True) -> None:
        self.source = Said(
            [
                [
                    (f"devices/dev{d}/{'json' if n % 2 else 'plain'}", self._payload(d, n))
                    for n in range(readings)
                ]
                for d in range(2)
            ]
        )
        self.truth = Truth(RUN, stamped, [DeviceTruth(), DeviceTruth()])
        for device in self.truth.devices:
            for n in range(readings):
                device.on_sent(key_of(0, n))
                device.on_acked(key_of(0, n))
        self.rows = [
            self.row(device, key)
            for device, truth in enumerate(self.truth.devices)
            for key in truth.wire()
        ]

    @staticmethod
    def _payload(device: int, n: int) -> bytes:
        return b'{"v":%d,"d":%d}' % (n, device) if n % 2 else b"%d.5" % (n % 3)

    def row(self, device: int, key: int) -> tuple[str, bytes]:
        """What the store has when all is well."""
        counter, attempt = counter_of(key), key >> 40
        topic, payload = self.source.said[device][counter]
        if self.truth.stamped and stampable(payload):
            payload = stamp(payload, RUN, device, counter, attempt, 1_000_000)
        return topic, payload

    def judge(self) -> Judge:
        judge = Judge(self.truth, self.source)
        for topic, payload in self.rows:
            judge.observe(topic, payload, 1_250_000)
        return judge


@pytest.mark.parametrize("stamped", [True, False])
def test_a_perfect_run_is_ok(stamped: bool) -> None:
    verdict = Run(stamped=stamped).judge().verdict()
    assert verdict.ok
    assert verdict.acked == verdict.stored == 60
    assert verdict.summary().startswith("verified: 60 acknowledged")


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("at", [2, 3, 31, 59])
def test_a_missing_row_is_lost(at: int, stamped: bool) -> None:
    run = Run(stamped=stamped)
    del run.rows[at]
    verdict = run.judge().verdict()
    assert (verdict.lost, verdict.doubled, verdict.reordered, verdict.altered) == (1, 0, 0, 0)
    assert "NOT verified: of 60 acknowledged 1 lost" in verdict.summary()


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("at", [2, 3, 31, 59])
def test_a_row_stored_twice_is_doubled(at: int, stamped: bool) -> None:
    run = Run(stamped=stamped)
    run.rows.append(run.rows[at])
    verdict = run.judge().verdict()
    assert (verdict.lost, verdict.doubled, verdict.altered) == (0, 1, 0)


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("kind", ["json", "plain"])
def test_rows_of_a_topic_in_another_order_are_reordered(kind: str, stamped: bool) -> None:
    run = Run(stamped=stamped)
    first, second = [at for at, row in enumerate(run.rows) if row[0] == f"devices/dev0/{kind}"][4:6]
    run.rows[first], run.rows[second] = run.rows[second], run.rows[first]
    verdict = run.judge().verdict()
    assert (verdict.lost, verdict.doubled, verdict.reordered, verdict.altered) == (0, 0, 1, 0)


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("at", [2, 3])
def test_one_changed_bit_is_altered_and_lost(at: int, stamped: bool) -> None:
    run = Run(stamped=stamped)
    topic, payload = run.rows[at]
    run.rows[at] = (topic, payload[:1] + bytes([payload[1] ^ 1]) + payload[2:])
    verdict = run.judge().verdict()
    assert (verdict.lost, verdict.altered) == (1, 1)


def test_a_payload_under_another_topic_is_altered() -> None:
    run = Run()
    run.rows[3] = ("devices/dev1/json", run.rows[3][1])
    verdict = run.judge().verdict()
    assert (verdict.lost, verdict.altered) == (1, 1)


def test_what_the_device_sent_again_may_be_stored_again() -> None:
    run = Run()
    device = run.truth.devices[0]
    device.on_sent(key_of(1, 28))
    device.on_sent(key_of(1, 29))
    device.on_acked(key_of(1, 29))
    run.rows += [run.row(0, key_of(1, 28)), run.row(0, key_of(1, 29))]
    verdict = run.judge().verdict()
    assert verdict.ok
    assert verdict.stored_unacked == 1


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("copies", [0, 1, 2])
@pytest.mark.parametrize("at", [28, 29])
def test_a_kept_session_sends_again_and_one_delivery_counts(
    at: int, copies: int, stamped: bool
) -> None:
    run = Run(stamped=stamped)
    run.truth.devices[0] = again = DeviceTruth()
    for n in range(30):
        again.on_sent(key_of(0, n))
        if n == at:
            again.on_sent(key_of(0, n))
        again.on_acked(key_of(0, n))
    row = run.rows.pop(at)
    run.rows[at:at] = [row] * copies
    verdict = run.judge().verdict()
    assert (verdict.acked, verdict.lost, verdict.doubled) == (60, int(copies == 0), 0)
    assert verdict.ok == (copies > 0)


def test_an_attempt_stored_twice_is_doubled_though_the_device_sent_the_reading_twice() -> None:
    run = Run()
    run.truth.devices[0].on_sent(key_of(1, 29))
    again = run.row(0, key_of(0, 29))
    run.rows.insert(30, again)
    assert run.judge().verdict().doubled == 1


def test_rows_of_others_are_not_judged() -> None:
    run = Run()
    other = stamp(b'{"v":1}', "r0", 0, 1, 0, 5)
    run.rows += [("devices/dev0/json", other), ("somewhere/else", b"1")]
    verdict = run.judge().verdict()
    assert verdict.ok
    assert verdict.foreign == 2


def test_a_stamp_that_was_never_given_is_altered() -> None:
    run = Run()
    run.rows.append(("devices/dev0/json", stamp(b'{"v":1}', RUN, 7, 999, 0, 5)))
    assert run.judge().verdict().altered == 1


def test_time_to_the_store_is_told_for_stamped_rows() -> None:
    times = Run().judge().store_latencies
    assert times.count() == 30
    assert times.quantile_ms(50) == pytest.approx(250, rel=0.01)


def test_a_second_look_forgets_the_first() -> None:
    run = Run()
    judge = run.judge()
    judge.begin()
    for topic, payload in run.rows:
        judge.observe(topic, payload, 0)
    assert judge.verdict().ok
