"""Tells gateways how fast to drain, as sinks and ingest can take it (cloud/fleet.py decides).

When many dial at once they are let in one after the other (cloud/admission.py), and none while
ingest can take no more. Those that connect learn a first limit from the retained
`tidegate/v1/down`, by how many have come and how many are expected. Once a second each gateway that
begins to drain is told its own credit on `tidegate/v1/down/{gateway}`, mostly that there is no
limit; and while there is pressure, each whose credit has changed much or would run out soon.
docs/link-format.md sections 1.4 and 8.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import structlog

from bridge.link_pacing import (
    DOWN_ALL,
    DOWN_PREFIX,
    UPLINK_CLIENT_PREFIX,
    Credit,
    encode_credit,
)
from cloud.admission import Admission
from cloud.config import PacingConfig
from cloud.fleet import Draining, FleetPacer, Pressure
from cloud.gateways import GatewaySeen, GatewaysSeen
from cloud.ingest_batches import BatchIngest
from cloud.parts import CloudNode
from cloud.sinks.contract import Sink
from cloud.sinks.live import LivePublisher
from cloud.sinks.runner import SinkStats
from cloud.stream.contract import StreamError
from mqtt.broker.broker import Outgoing
from mqtt.broker.seams import ClientInfo
from runtime.background import Background
from runtime.clock import Clock
from runtime.logs import limited
from runtime.metrics import Metrics

__all__ = ["Pacing", "PacingPart"]

log = structlog.get_logger(component="pacing")

_RATE_WEIGHT = 0.2  # of the newest second in the averages: a small credit's batches are far apart
_CAPACITY_DECAY = 0.95  # a second, while the sink is behind
_BYTES_S_MIN = 50_000.0  # what ingest is taken to do at least: it may have had nothing to do
_DRAINING_S = 5.0  # a gateway drains while its next backlog batch is overdue by no more
_PERIOD_MAX_S = 120.0  # of the batches of a gateway with a small credit
_SATURATED_S = 5.0  # after which a gateway should look again whether ingest takes more
_LOG_EVERY_S = 10.0
_GREET_S = 0.1  # how often the first limit follows the number of connections
_CHANGE = 0.2  # of a limit, from which on it is told
_CAPACITY_FIRST_READINGS_S = 4000.0  # what a sink is taken to write until it has shown it
_ANSWERS_KEPT = 30  # looks in which a batch was answered as fast as the stream allows


class _Ingest(Protocol):
    """What is read of the node's ingest."""

    batches: BatchIngest

    @property
    def waiting_bytes(self) -> int: ...

    def saturated(self) -> bool: ...


class _Told(NamedTuple):
    """What a gateway was told last."""

    credit: Credit
    at_s: float


class Pacing:
    """Paces the gateways of one node.

    Args:
        config: Whether and how.
        clock: Time.
        seen: The gateways.
        ingest: The way into the stream.
        sinks: Gives the sinks' figures.
        broker: Where credits are published.
        decoded_readings_max: What the sinks keep decoded for one another.
    """

    def __init__(
        self,
        config: PacingConfig,
        clock: Clock,
        seen: GatewaysSeen,
        ingest: _Ingest,
        sinks: Callable[[], Awaitable[Sequence[SinkStats]]],
        broker: LivePublisher,
        *,
        decoded_readings_max: int = 0,
    ) -> None:
        self._config = config
        self._clock = clock
        self._seen = seen
        self._ingest = ingest
        self._sinks = sinks
        self._broker = broker
        self._pacer = FleetPacer(config.lag_target_s, config.valid_s)
        self._written: dict[str, int] = {}  # by sink, at the last look
        self._capacity: dict[str, float] = {}  # readings a second by sink, while it was behind
        self._taken: dict[str, int] = {}  # backlog readings by gateway, at the last look
        self._rates: dict[str, float] = {}
        self._began: dict[str, int] = {}  # readings before it began to drain
        self._batch_bytes = 0  # of ingest, at the last look
        self._live_taken = 0
        self._live_rate = 0.0
        self._backlog_taken = 0
        self._backlog_rate = 0.0
        self._decoded_readings_max = decoded_readings_max
        self._fastest_s: deque[float] = deque(maxlen=_ANSWERS_KEPT)
        self._late_s = 0.0  # by how much the event loop was late since the last look
        self._looked_s = clock.monotonic_s()
        self._told: dict[str, _Told] = {}
        self._newcomer: Credit | None = None
        self._draining = 0
        self._admission = Admission(config.connects_s)
        self._background = Background(self._run, "pacing")

    async def start(self) -> None:
        """Begin to look, once a second."""
        if self._config.enabled:
            self._seen.admits = self.connect_wait_s
            self._background.start()

    async def stop(self) -> None:
        """End; credits run out by themselves."""
        await self._background.stop()

    def connect_wait_s(self, client: ClientInfo) -> float:
        """Return after how long a client should dial again; only gateways are asked to."""
        if client.protocol_version < 5 or not client.client_id.startswith(UPLINK_CLIENT_PREFIX):
            return 0.0
        if self._ingest.saturated():
            return _SATURATED_S
        return self._admission.wait_s(client.client_id, self._clock.monotonic_s())

    def register_metrics(self, metrics: Metrics) -> None:
        """Add the figures of pacing."""
        metrics.gauge(
            "tidegate_pacing_pressure",
            "What lies before the sinks; from 1 on backlog is limited.",
            lambda: self._pacer.pressure,
        )
        metrics.gauge(
            "tidegate_pacing_total_readings_s",
            "Backlog readings a second the fleet may send; 0 = no limit.",
            lambda: self._pacer.total_readings_s or 0.0,
        )
        metrics.gauge(
            "tidegate_pacing_draining_gateways",
            "Gateways that send backlog.",
            lambda: float(self._draining),
        )
        metrics.gauge(
            "tidegate_pacing_expected_gateways",
            "Gateways that were told when to come.",
            lambda: float(self._admission.waiting(self._clock.monotonic_s())),
        )

    async def _run(self) -> None:
        look_at_s = self._clock.monotonic_s()
        while True:
            try:
                await self.greet()
                if self._clock.monotonic_s() >= look_at_s:
                    look_at_s += self._config.interval_s
                    await self.look()
            except StreamError as error:
                limited(log, "pacing", _LOG_EVERY_S).warning("pacing_waits", error=str(error))
            except Exception:  # the task's root: without it nobody is limited any more
                log.exception("pacing_failed")
            asleep_s = self._clock.monotonic_s()
            await asyncio.sleep(_GREET_S)
            late_s = self._clock.monotonic_s() - asleep_s - _GREET_S
            self._late_s = max(self._late_s, late_s)

    async def look(self) -> None:
        """Look at the node once and tell gateways what has changed for them."""
        now_s = self._clock.monotonic_s()
        passed_s = max(0.001, now_s - self._looked_s)
        self._looked_s = now_s
        sinks = await self._sinks()
        draining = self._find_draining(passed_s)
        pressure = self._pressure(sinks, passed_s)
        self._draining = len(draining)
        granted = self._pacer.decide(pressure, draining)
        changed = {
            gateway: credit
            for gateway, credit in granted.items()
            if self._is_news(self._told.get(gateway), credit, now_s)
        }
        self._told = {
            gateway: _Told(credit, now_s) if gateway in changed else self._told[gateway]
            for gateway, credit in granted.items()
        }
        if changed:
            await self._broker.publish_many(
                [Outgoing(DOWN_PREFIX + g, encode_credit(c)) for g, c in changed.items()]
            )

    def _is_news(self, told: _Told | None, credit: Credit, now_s: float) -> bool:
        """Return whether a gateway has to be told its credit: a thousand words cost a second."""
        if told is None or credit.readings_s is None or told.credit.readings_s is None:
            return told is None or told.credit != credit
        if now_s - told.at_s >= self._config.valid_s / 2:
            return True
        before = told.credit.readings_s
        return abs(credit.readings_s - before) > before * _CHANGE

    async def greet(self) -> None:
        """Keep what gateways that connect are told in step with how many there are."""
        expected = self._admission.waiting(self._clock.monotonic_s())
        credit = self._pacer.newcomer(self._seen.connections + expected)
        known = self._newcomer
        if known is not None and credit.hold_s == known.hold_s:
            before, after = known.readings_s or 0, credit.readings_s or 0
            if abs(after - before) <= before * _CHANGE:
                return
        self._newcomer = credit
        message = Outgoing(DOWN_ALL, encode_credit(credit), retain=True)
        await self._broker.publish_many([message])

    def _pressure(self, sinks: Sequence[SinkStats], passed_s: float) -> Pressure:
        lag_s: dict[int, float] = {}
        slowest = most_behind = 0.0
        for sink in sinks:
            rate = (sink.readings - self._written.get(sink.name, sink.readings)) / passed_s
            self._written[sink.name] = sink.readings
            behind = sum(lag.readings for lag in sink.lag.values())
            known = self._capacity.get(sink.name, _CAPACITY_FIRST_READINGS_S)
            # what it did at best, lately: in many a second it had not enough to do
            self._capacity[sink.name] = max(rate, known * _CAPACITY_DECAY if behind else known)
            capacity = self._capacity[sink.name]
            most_behind = max(most_behind, behind)
            if not behind:
                continue
            slowest = min(slowest or capacity, capacity)
            # a partition waits for all others of its sink: they are written in turns
            each_s = behind / capacity
            most = max(lag.readings for lag in sink.lag.values())
            for partition, lag in sink.lag.items():
                own_s = each_s * lag.readings / most
                lag_s[partition] = max(lag_s.get(partition, 0.0), own_s)
        taken = self._ingest.batches.stats.batch_bytes
        rate = (taken - self._batch_bytes) / passed_s
        self._batch_bytes = taken
        return Pressure(
            lag_s,
            waiting_s=self._ingest.waiting_bytes / max(rate, _BYTES_S_MIN),
            capacity_readings_s=slowest,
            live_readings_s=self._live_rate,
            backlog_readings_s=self._backlog_rate,
            answer_s=self._answer_s(),
            decoded=most_behind / (self._decoded_readings_max or math.inf),
        )

    def _answer_s(self) -> float:
        """Return how long the slowest batch waited, beyond two commits of the stream.

        One may be under way when it comes, and the next is its own.
        """
        waits = self._ingest.batches.waits()
        if waits.fastest_s < math.inf:
            self._fastest_s.append(waits.fastest_s)
        late_s, self._late_s = self._late_s, 0.0
        return max(late_s, waits.slowest_s - 2 * min(self._fastest_s, default=0.0))

    def _find_draining(self, passed_s: float) -> list[Draining]:
        now_us = self._clock.wall_us()
        taken: dict[str, int] = {}
        draining = []
        live = backlog = 0
        for seen in self._seen.all():
            live += seen.live_readings
            backlog += seen.backlog_readings
            name = seen.gateway
            period_s = self._period_s(seen)
            if not seen.backlog_us or now_us - seen.backlog_us > (_DRAINING_S + period_s) * 1e6:
                continue
            taken[name] = seen.backlog_readings
            rate = (seen.backlog_readings - self._taken.get(name, 0)) / passed_s
            known = self._rates.get(name, rate)
            weight = min(_RATE_WEIGHT, 0.5 * passed_s / period_s if period_s else 1.0)
            self._rates[name] = known + (rate - known) * weight
            began = self._began.setdefault(name, seen.backlog_readings - seen.backlog_batch)
            drained = seen.backlog_readings - began
            draining.append(Draining(name, self._rates[name], seen.partitions, drained, period_s))
        self._taken = taken
        self._rates = {name: self._rates[name] for name in taken}
        self._began = {name: self._began[name] for name in taken}
        live_rate = max(0, live - self._live_taken) / passed_s
        self._live_rate += (live_rate - self._live_rate) * _RATE_WEIGHT
        self._live_taken = live
        backlog_rate = max(0, backlog - self._backlog_taken) / passed_s
        self._backlog_rate += (backlog_rate - self._backlog_rate) * _RATE_WEIGHT
        self._backlog_taken = backlog
        return draining

    def _period_s(self, seen: GatewaySeen) -> float:
        """Return how far apart a gateway's batches are, by its credit; 0 without a limit."""
        told = self._told.get(seen.gateway)
        if told is None or not told.credit.readings_s:
            return 0.0
        return min(_PERIOD_MAX_S, seen.backlog_batch / told.credit.readings_s)


class PacingPart:
    """Pacing, plugged into a node."""

    def __init__(self) -> None:
        self._pacing: Pacing | None = None

    def sinks(self, node: CloudNode) -> Sequence[Sink]:  # noqa: ARG002 - it feeds none
        """Return none."""
        return ()

    async def start(self, node: CloudNode) -> None:
        """Begin to pace the node's gateways."""
        self._pacing = Pacing(
            node.config.pacing,
            node.clock,
            node.gateways_seen,
            node.capture,
            node.sinks.stats,
            node.broker,
            decoded_readings_max=node.config.sinks.decoded_readings_max,
        )
        self._pacing.register_metrics(node.metrics)
        await self._pacing.start()

    async def stop(self) -> None:
        """End."""
        if self._pacing is not None:
            await self._pacing.stop()
