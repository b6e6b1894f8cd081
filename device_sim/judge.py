"""The judge: compares what devices sent and had acknowledged with what was stored.

For each device (stamped payloads) or topic (payloads recognised by content) there are three
sequences: what went out in order, which of it was acknowledged, and what is stored in order.

- acknowledged, not stored: LOST
- stored more often than sent: DOUBLED; what a device itself sent twice may be stored twice
- stored in another order than sent: REORDERED, as many as are outside the longest ordered part
- stored under a device or topic of the run, never sent like that: ALTERED
- stored, not acknowledged: allowed, counted (the acknowledgement was on its way)

Invariant: a verdict is `ok` exactly when none of the first four happened.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from device_sim.latency import Latencies
from device_sim.stamps import stampable, unstamp
from device_sim.truth import Truth, counter_of, key_of

__all__ = ["History", "Judge", "Tally", "Verdict", "compare"]

_EXAMPLES_MAX = 10


class History(Protocol):
    """A source that can say again what it said."""

    @property
    def clients(self) -> Sequence[str]:
        """Client id by device."""
        ...

    def history(self, counts: Sequence[int]) -> Iterator[tuple[int, int, str, bytes]]:
        """Yield (device, counter, topic, payload) for `counts[device]` readings of each.

        Counters of a device rise by one from 0.
        """
        ...


@dataclass(slots=True)
class Tally:
    """The comparison of one sequence."""

    acked: int = 0
    stored: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    altered: int = 0
    stored_unacked: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when nothing acknowledged is missing, doubled, out of order or altered."""
        return not (self.lost or self.doubled or self.reordered or self.altered)


@dataclass(slots=True)
class Verdict(Tally):
    """The sum over all devices of a run."""

    foreign: int = 0  # rows of other runs or devices, not judged

    def add(self, part: Tally) -> None:
        """Add the comparison of one sequence."""
        self.acked += part.acked
        self.stored += part.stored
        self.lost += part.lost
        self.doubled += part.doubled
        self.reordered += part.reordered
        self.altered += part.altered
        self.stored_unacked += part.stored_unacked
        self.examples += part.examples[: max(0, _EXAMPLES_MAX - len(self.examples))]

    def summary(self) -> str:
        """Return one line for a person."""
        if self.ok:
            return (
                f"verified: {self.acked} acknowledged, all stored once and in order"
                f" ({self.stored_unacked} more stored that were not acknowledged)"
            )
        return (
            f"NOT verified: of {self.acked} acknowledged {self.lost} lost, {self.doubled} doubled,"
            f" {self.reordered} reordered, {self.altered} altered; e.g. {self.examples[0]}"
        )


def compare(sent: Sequence[int], acked: Sequence[int], stored: Sequence[int], name: str) -> Tally:
    """Compare one sequence.

    Args:
        sent: Identities in the order they were sent; one may come more than once.
        acked: For each of `sent`, 1 when it was acknowledged, else 0.
        stored: Identities in the order of storage.
        name: What the examples call the sequence.
    """
    tally = Tally(acked=sum(acked), stored=len(stored))
    if stored == sent and tally.acked == len(sent):
        return tally  # the usual case, without tables
    times_sent = Counter(sent)
    times_acked = Counter(identity for identity, done in zip(sent, acked, strict=True) if done)
    times_stored = Counter(stored)
    place = {identity: at for at, identity in enumerate(sent)}
    for identity, times in times_acked.items():
        missing = times - times_stored[identity]
        if missing > 0:
            tally.lost += missing
            _note(tally, f"{name}: publish {place[identity] + 1} acknowledged, not stored")
    for identity, times in times_stored.items():
        if identity not in times_sent:
            tally.altered += times
            _note(tally, f"{name}: stored, never sent like that")
            continue
        extra = times - times_sent[identity]
        if extra > 0:
            tally.doubled += extra
            _note(tally, f"{name}: publish {place[identity] + 1} stored {extra} times too often")
        tally.stored_unacked += max(0, min(times, times_sent[identity]) - times_acked[identity])
    left = times_sent.copy()
    once: list[int] = []  # what is stored, without what is doubled or altered
    for identity in stored:
        if left[identity] > 0:
            left[identity] -= 1
            once.append(identity)
    tally.reordered = _reordered(sent, once)
    if tally.reordered:
        _note(tally, f"{name}: {tally.reordered} of {len(once)} not in the order sent")
    return tally


def _note(tally: Tally, example: str) -> None:
    if len(tally.examples) < _EXAMPLES_MAX:
        tally.examples.append(example)


def _reordered(sent: Sequence[int], stored: list[int]) -> int:
    """Return how many of `stored` are not in the longest part that keeps the order of `sent`.

    Exact when every identity was sent once. With repeats 0 still means in order; otherwise the
    nth copy stored is taken for the nth copy sent.
    """
    rest = iter(sent)
    if all(identity in rest for identity in stored):  # `in` consumes: a test for subsequence
        return 0
    places: dict[int, list[int]] = {}
    for at, identity in enumerate(sent):
        places.setdefault(identity, []).append(at)
    used: Counter[int] = Counter()
    ends: list[int] = []  # the least last place of a rising run of each length
    for identity in stored:
        at = places[identity][used[identity]]
        used[identity] += 1
        where = bisect_left(ends, at)
        ends[where : where + 1] = [at]
    return len(stored) - len(ends)


class Judge:
    """Takes stored rows in order and gives a verdict on a run.

    Args:
        truth: What the run did.
        source: Where its payloads came from; it is asked to say all of them again.
        canonical: How the store writes a payload; rows are compared in that form.
    """

    def __init__(
        self,
        truth: Truth,
        source: History,
        canonical: Callable[[bytes], bytes] = lambda payload: payload,
    ) -> None:
        self._truth = truth
        self._clients = source.clients
        self._contents = [array("q") for _ in truth.devices]  # by device and counter
        # by device and counter: the number of the topic whose content is judged, or -1: stamped
        self._places = [array("l") for _ in truth.devices]
        self._topics: dict[str, int] = {}
        self._sent_topics: set[str] = set()
        counts = [device.readings() for device in truth.devices]
        for device, _counter, topic, payload in source.history(counts):
            self._contents[device].append(hash((topic, canonical(payload))))
            self._sent_topics.add(topic)
            by_content = not (truth.stamped and stampable(payload))
            number = self._topics.setdefault(topic, len(self._topics)) if by_content else -1
            self._places[device].append(number)
        self.begin()

    def begin(self) -> None:
        """Forget every row seen: the store is read again."""
        self._by_device = [array("q") for _ in self._truth.devices]
        self._by_topic = [array("q") for _ in self._topics]
        self._foreign = 0
        self._strangers = Tally()
        self.store_latencies = Latencies()

    def observe(self, topic: str, payload: bytes, received_us: int) -> None:
        """Take one stored row; rows of a device come in the order they are stored.

        Args:
            topic: The topic it was published to.
            payload: The bytes stored.
            received_us: When the cloud took it, or 0 when not known.
        """
        found = unstamp(payload) if self._truth.stamped else None
        if found is not None:
            stamp, original = found
            if stamp.run != self._truth.run:
                self._foreign += 1
                return
            contents = self._contents[stamp.device] if stamp.device < len(self._contents) else ()
            if stamp.counter < len(contents) and contents[stamp.counter] == hash((topic, original)):
                key = key_of(stamp.attempt, stamp.counter)
                self._by_device[stamp.device].append(key)
                if received_us:
                    self.store_latencies.record(received_us - stamp.sent_us)
                return
        elif topic in self._topics:
            self._by_topic[self._topics[topic]].append(hash((topic, payload)))
            return
        elif topic not in self._sent_topics:
            self._foreign += 1
            return
        self._strangers.altered += 1
        self._strangers.stored += 1
        _note(self._strangers, f"{topic}: stored, never sent like that: {payload[:80]!r}")

    def verdict(self) -> Verdict:
        """Compare everything observed since `begin` with the truth."""
        verdict = Verdict(foreign=self._foreign)
        verdict.add(self._strangers)
        sent_by_topic = [array("q") for _ in self._topics]
        acked_by_topic = [bytearray() for _ in self._topics]
        for number, device in enumerate(self._truth.devices):
            places, contents = self._places[number], self._contents[number]
            sent, acked = array("q"), bytearray()
            # MQTT itself sends a key again when a kept session resumes: one acknowledgement then
            # stands for one of the deliveries, and any of the others may have been cut off
            waits = Counter(device.wire())
            for key in device.wire():
                waits[key] -= 1
                done = not waits[key] and key in device.acked
                counter = counter_of(key)
                if places[counter] < 0:
                    sent.append(key)
                    acked.append(done)
                else:
                    sent_by_topic[places[counter]].append(contents[counter])
                    acked_by_topic[places[counter]].append(done)
            verdict.add(compare(sent, acked, self._by_device[number], self._clients[number]))
        for topic, number in self._topics.items():
            stored = self._by_topic[number]
            verdict.add(compare(sent_by_topic[number], acked_by_topic[number], stored, topic))
        return verdict
