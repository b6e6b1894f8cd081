"""A thousand gateways that come back in one moment, in simulated time: live readings come first.

The cloud is a processor of which every batch and every reading takes a part, live batches before
backlog ones; the gateways keep to their credits as real ones do (bridge/link_pacing.py). What
decides is the real thing: cloud/pacing.py, cloud/fleet.py and cloud/admission.py.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from benchmarks.fleet import jain
from bridge.batch import Batch
from bridge.endpoint_rotation import RETRY_AFTER_SPREAD
from bridge.envelope import LinkLane
from bridge.link_pacing import DOWN_ALL, DOWN_PREFIX, Pace, decode_credit
from bridge.readings import Readings
from cloud.config import PacingConfig, SinksConfig
from cloud.gateways import GatewaysSeen
from cloud.ingest_batches import BatchStats, BatchTaken, Waits
from cloud.pacing import Pacing
from cloud.sinks.runner import SinkStats
from cloud.stream.contract import Backlog
from mqtt.broker.broker import Outgoing
from mqtt.broker.seams import ClientInfo
from runtime.clock import ManualClock

STEP_S = 0.1
BATCH = 50
WINDOW = 2
LIVE_EVERY_S = 2.0
BATCH_S, READING_S, SINKS_S = 0.4e-3, 8e-6, 12e-6  # of the processor
DECODED_AGAIN_S = 12e-6  # a reading and sink more, past what sinks keep decoded
BYTES, BYTES_READING = 100, 12
LOOK_S = 0.1  # between two greetings


@dataclass
class Job:
    """A batch on its way."""

    gateway: Gateway
    count: int
    live: bool
    sent_s: float


@dataclass
class Gateway:
    """One that has a backlog, and a live reading now and then."""

    name: str
    rng: random.Random
    left: int
    pace: Pace
    client: ClientInfo
    dial_s: float = 0.0
    live_s: float = 0.0
    connected: bool = False
    in_flight: int = 0
    sent: int = 0
    acked: int = 0
    dials: int = 0


@dataclass
class Cloud:
    """A node: what it has to do, and a processor that does it."""

    speed: float
    commit_s: float
    clock: ManualClock = field(default_factory=ManualClock)
    live: deque[Job] = field(default_factory=deque)
    backlog: deque[Job] = field(default_factory=deque)
    answers: deque[tuple[float, Job]] = field(default_factory=deque)
    behind: int = 0  # readings before the sinks
    written: int = 0
    left_s: float = 0.0  # of the processor, carried over
    longest_queue: int = 0
    newest: Outgoing | None = None

    def __post_init__(self) -> None:
        self.seen = GatewaysSeen(self.clock)
        self.waited = Waits()
        self.batches = SimpleNamespace(stats=BatchStats(), waits=self.take_waits)
        self.decoded_max = SinksConfig().decoded_readings_max
        self.pacing = Pacing(
            PacingConfig(), self.clock, self.seen, self, self.sinks, self,
            decoded_readings_max=self.decoded_max,
        )  # fmt: skip
        self.gateways: dict[str, Gateway] = {}

    # ---- what pacing looks at --------------------------------------------------------------------

    @property
    def waiting_bytes(self) -> int:
        return sum(BYTES + job.count * BYTES_READING for job in (*self.live, *self.backlog))

    def saturated(self) -> bool:
        return False

    def has_subscribers(self, topic_name: str) -> bool:
        return True

    def take_waits(self) -> Waits:
        waited, self.waited = self.waited, Waits()
        oldest = min((job.sent_s for job in self.live if job.live), default=self.now_s)
        return Waits(waited.fastest_s, max(waited.slowest_s, self.now_s - oldest))

    async def sinks(self) -> Sequence[SinkStats]:
        lag = {3: Backlog(1, self.behind, 1)} if self.behind else {}
        return [SinkStats("storage", self.written, 0, 0, 0, 0, "", {}, lag, {})]

    async def publish_many(self, messages: Iterable[Outgoing]) -> int:
        for message in messages:
            if message.topic_name == DOWN_ALL:
                self.newest = message
                hearers = [one for one in self.gateways.values() if one.connected]
            else:
                hearers = [self.gateways[message.topic_name.removeprefix(DOWN_PREFIX)]]
            for one in hearers:
                self.tell(one, message)
        return 0

    # ---- what it does ----------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        return self.clock.monotonic_s()

    def tell(self, gateway: Gateway, message: Outgoing) -> None:
        credit = decode_credit(message.payload)
        assert credit is not None
        gateway.pace.take(credit, self.now_s, own=message.topic_name != DOWN_ALL)

    def take_live(self, job: Job) -> None:
        """Take a live batch; what its gateway sent before it is hurried."""
        before = [one for one in self.backlog if one.gateway is job.gateway]
        if before:
            self.backlog = deque(one for one in self.backlog if one.gateway is not job.gateway)
        self.live.extend((*before, job))

    def work(self) -> None:
        """Work for a step: half of it for ingest while the sinks have something to do."""
        self.left_s += STEP_S * self.speed
        for_ingest_s = self.left_s / (2 if self.behind else 1)
        while (self.live or self.backlog) and for_ingest_s > 0:
            job = (self.live or self.backlog).popleft()
            cost_s = BATCH_S + job.count * READING_S
            for_ingest_s -= cost_s
            self.left_s -= cost_s
            self.batches.stats.batch_bytes += BYTES + job.count * BYTES_READING
            self.answers.append((self.now_s + self.commit_s, job))
        again_s = 3 * DECODED_AGAIN_S if self.behind > self.decoded_max else 0.0
        done = min(self.behind, int(max(0.0, self.left_s) / (SINKS_S + again_s)))
        self.left_s = min(0.0, self.left_s - done * (SINKS_S + again_s))
        self.behind -= done
        self.written += done
        self.longest_queue = max(self.longest_queue, len(self.live) + len(self.backlog))

    def answered(self) -> Iterable[Job]:
        """Answer what is in the stream by now."""
        while self.answers and self.answers[0][0] <= self.now_s:
            _, job = self.answers.popleft()
            if job.live:
                self.waited = self.waited.with_one(self.now_s - job.sent_s)
            self.behind += job.count
            lane = LinkLane.LIVE if job.live else LinkLane.BACKLOG
            rows = Readings(range(1, job.count + 1), [("t", job.gateway.name)], [0] * job.count,
                            [1] * job.count, [1] * job.count, [b""] * job.count)  # fmt: skip
            batch = Batch(job.gateway.name, 1, lane, not job.live, rows, ((1, job.count),), (),
                          job.count, 0, 1000)  # fmt: skip
            self.seen.batch_taken(BatchTaken(job.gateway.client, batch, self.clock.wall_us()))
            yield job


@dataclass
class Fleet:
    """The gateways, and what became of them."""

    cloud: Cloud
    gateways: list[Gateway]
    live_s: list[float] = field(default_factory=list)
    half: list[int] = field(default_factory=list)  # readings of each when half was through

    async def run(self, *, most_s: float) -> float:
        """Return after how many seconds all was through."""
        cloud, clock = self.cloud, self.cloud.clock
        began_s = cloud.now_s
        looked_s = greeted_s = began_s
        whole = sum(one.left for one in self.gateways)
        await cloud.pacing.greet()
        while any(one.left for one in self.gateways):
            assert cloud.now_s - began_s < most_s, "it takes too long"
            for one in self.gateways:
                if one.left:
                    self._step(one)
            cloud.work()
            clock.advance(STEP_S)
            for job in cloud.answered():
                self._answer(job)
            if not self.half and sum(one.acked for one in self.gateways) >= whole / 2:
                self.half = [one.acked for one in self.gateways]
            if cloud.now_s - greeted_s >= LOOK_S:
                greeted_s = cloud.now_s
                await cloud.pacing.greet()
            if cloud.now_s - looked_s >= 1.0:
                looked_s = cloud.now_s
                await cloud.pacing.look()
        return cloud.now_s - began_s

    def _step(self, one: Gateway) -> None:
        now_s = self.cloud.now_s
        if not one.connected:
            if now_s < one.dial_s:
                return
            one.dials += 1
            told_s = self.cloud.pacing.connect_wait_s(one.client)
            if told_s:
                one.dial_s = now_s + one.rng.uniform(told_s, told_s * RETRY_AFTER_SPREAD)
                return
            one.connected = True
            one.live_s = now_s + one.rng.uniform(0, LIVE_EVERY_S)
            self.cloud.seen.client_connected(one.client)
            if self.cloud.newest is not None:
                self.cloud.tell(one, self.cloud.newest)
        if now_s >= one.live_s:
            one.live_s += LIVE_EVERY_S
            self.cloud.take_live(Job(one, 1, True, now_s))
        while one.in_flight < WINDOW and one.sent < one.left + one.acked and not one.pace.wait_s(
            now_s
        ):  # fmt: skip
            count = min(BATCH, one.left + one.acked - one.sent)
            one.pace.sent(count)
            one.sent += count
            one.in_flight += 1
            self.cloud.backlog.append(Job(one, count, False, now_s))

    def _answer(self, job: Job) -> None:
        if job.live:
            self.live_s.append(self.cloud.now_s - job.sent_s)
            return
        one = job.gateway
        one.in_flight -= 1
        one.acked += job.count
        one.left -= job.count
        if not one.left:
            one.connected = False
            self.cloud.seen.client_disconnected(one.client, 0)


def fleet_of(count: int, readings: int, *, speed: float, commit_s: float = 0.05) -> Fleet:
    cloud = Cloud(speed, commit_s)
    for number in range(count):
        name, rng = f"gw-{number}", random.Random(number)
        cloud.gateways[name] = Gateway(
            name, rng, readings, Pace(rng, BATCH), ClientInfo(f"tidegate-{name}", 5)
        )
    return Fleet(cloud, list(cloud.gateways.values()))


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


# a core; a slow disk; and seven tenths of a core, of which live readings alone take two
@pytest.mark.parametrize(
    ("speed", "commit_s", "most_s"), [(1.0, 0.05, 60), (1.0, 0.45, 90), (0.7, 0.05, 100)]
)
async def test_a_fleet_drains_and_its_live_readings_do_not_wait(
    speed: float, commit_s: float, most_s: float
) -> None:
    fleet = fleet_of(1000, 500, speed=speed, commit_s=commit_s)
    await fleet.run(most_s=most_s)
    assert quantile(fleet.live_s, 0.99) < 1.0
    assert jain(fleet.half) >= 0.95
    assert max(one.dials for one in fleet.gateways) <= 3, "nobody is refused for ever"
    assert fleet.cloud.longest_queue < 2000, "memory is bounded by the credits"
