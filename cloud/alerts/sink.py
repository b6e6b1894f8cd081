"""The alerts sink: drives the rule engines with the stream's entries and with time.

Each partition has an engine; this keeps them in step with alerts.db and sends out what they say.

Invariants:
- State, history, messages and cursors are committed together (`store`), so an entry counts once
  whatever is killed when.
- Time moves on in a partition only as far as its readings are known: a deadline is met once every
  entry up to it was read. One lock holds readings, deadlines and acknowledgements apart.
- Nothing is sent out while the sink is behind its stream: a transition of long ago is history,
  and once the sink has caught up, what then stands is told if it was not.
- After the node was down, deadlines wait as long as it was, at most a minute: devices were not
  silent, nobody listened.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from bridge.partition import partition_of
from cloud.alerts.config import AlertsConfig
from cloud.alerts.engine import Batch, EngineStats, RuleEngine, StoredSeries
from cloud.alerts.handover import (
    KEEP_EVERY_US,
    HandOver,
    PartitionState,
    PartitionStates,
    partition_of_message,
)
from cloud.alerts.history import HistoryCopy, SharedHistory
from cloud.alerts.outbox import (
    MQTT,
    MqttTarget,
    Outbox,
    OutboxStats,
    Publish,
    Target,
    WebhookTarget,
)
from cloud.alerts.rules import Bounds, Rule
from cloud.alerts.series import Series, Transition
from cloud.alerts.shown import alert_view, event_view, urgency
from cloud.alerts.store import AlertStore, Changes, Message
from cloud.alerts.teller import Teller, webhook_target
from cloud.sinks.contract import DecodedEntry, SinkUnavailable
from cloud.stream.contract import Entry, StreamError
from cloud.views import AlertEventView, AlertView
from runtime.clock import Clock
from runtime.logs import limited

if TYPE_CHECKING:
    import httpx

__all__ = ["AlertSink", "Heads"]

log = structlog.get_logger(component="alerts")

# the last position of each partition of the stream
Heads = Callable[[], Awaitable[Mapping[int, int]]]

START_GRACE_MAX_US = 60_000_000
ALIVE_EVERY_US = 5_000_000  # how exactly a restart knows since when nobody listened
SLICE_S = 0.005  # how long readings may keep the event loop from others
COMMIT_EVERY_US = 250_000  # of state that nobody waits to be told of
IDLE_PAUSE_S = 1.0
_QUIET_S = 3.0  # how long a hand-over waits for messages under way
BUSY_PAUSE_S = 0.05


class AlertSink:
    """One consumer of the stream (cloud/sinks/contract.py) and the source of alerts.

    Attributes:
        name: Names the cursors and metrics.
        linger_s: Alerts do not wait for more readings.
        stats: What the engines saw.
        overflowed: Messages dropped because the outbox was full.
    """

    name = "alerts"
    linger_s = 0.0

    def __init__(
        self,
        config: AlertsConfig,
        path: Path,
        clock: Clock,
        heads: Heads,
        publish: Publish | None,
        *,
        states: PartitionStates | None = None,
        history: SharedHistory | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Prepare; `open` begins.

        Args:
            config: Rules, webhooks and bounds.
            path: alerts.db.
            clock: Its wall clock is compared with the times of readings.
            heads: Tells how far the stream is, so that time stands still behind it.
            publish: Publishes an alert on MQTT, retained at QoS 1; None = MQTT is not used.
            states: Where the nodes of a cluster keep the state of partitions; None: alerts.db has
                everything.
            history: Where they keep what happened; None: this node's own is all there is.
            transport: Replaces the network of webhooks, for tests.
            rng: For pauses between attempts.
        """
        self.stats = EngineStats()
        self._config = config
        self._path = path
        self._clock = clock
        self._heads = heads
        self._bounds = Bounds.of(config.limits)
        self._rules = [Rule(rule) for rule in config.rule]
        self._publish = publish
        self._transport = transport
        self._targets = self._make_targets()
        self._rng = rng
        self._engines: dict[int, RuleEngine] = {}
        self._positions: dict[int, int] = {}  # what the engines have seen
        self._applied: dict[int, int] = {}  # of a write whose commit failed: it will come again
        self._changes = Changes()
        self._teller = Teller(config, mqtt=publish is not None)
        self._turns: frozenset[int] | None = None  # None: all partitions are ours
        self._states = states
        self._hand_over: HandOver | None = None
        self._shared = history
        self._copy: HistoryCopy | None = None
        self._deaf = (0, 0)
        self._alive_us = 0
        self.overflowed = 0
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._store: AlertStore | None = None
        self._outbox: Outbox | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # ---- the sink --------------------------------------------------------------------------------

    async def open(self, stream_epoch: int) -> None:
        """Load state and begin to watch deadlines and deliver messages.

        Raises:
            DatabaseError: alerts.db cannot be used; one line.
        """
        limits = self._config.limits
        store = self._store = await AlertStore.open(
            self._path, history_max=limits.history_max, outbox_max=limits.outbox_max
        )
        if self._states is not None:
            self._hand_over = HandOver(self._states, stream_epoch)
            await store.forget()
        if self._shared is not None:
            self._copy = HistoryCopy(self._shared, store, limits.history_max)
            await self._copy.start()
        kept = await store.load()
        await store.begin(stream_epoch)
        now_us = self._clock.wall_us()
        if kept.alive_us and self._hand_over is None:
            down_us = max(now_us - kept.alive_us, 0)
            self._deaf = (kept.alive_us, now_us + min(down_us, START_GRACE_MAX_US))
        if kept.stream_epoch == stream_epoch:
            self._positions = {p: position for p, (position, _) in kept.cursors.items()}
        times = {p: min(engine_us, now_us) for p, (_, engine_us) in kept.cursors.items()}
        self._load(kept.series, times)
        await self._discard_others(store)
        outbox = Outbox(store, self._targets, self._clock, self._rng, self._message_told)
        self._outbox = outbox
        await self._commit()
        self._tasks = [
            asyncio.create_task(self._watch(), name="alerts-deadlines"),
            asyncio.create_task(outbox.run(), name="alerts-outbox"),
        ]

    def _make_targets(self) -> dict[str, Target]:
        targets: dict[str, Target] = {MQTT: MqttTarget(self._publish)} if self._publish else {}
        for webhook in self._config.webhook:
            targets[webhook_target(webhook.name)] = WebhookTarget(webhook, self._transport)
        return targets

    async def _discard_others(self, store: AlertStore) -> None:
        discarded = await store.discard_others(self._targets)
        if discarded:
            log.warning("messages_dropped", count=discarded, cause="their webhook was removed")

    async def cursors(self) -> Mapping[int, int]:
        """Return the position reached in each partition."""
        return dict(self._positions)

    async def claim(self, tokens: Mapping[int, int]) -> Mapping[int, int]:
        """Go on with partitions where their last holder has ended, or died.

        Raises:
            SinkFenced: of some a higher token is known.
            SinkUnavailable: their state cannot be read now.
        """
        if self._hand_over is not None:
            async with self._lock:
                for partition, state in (await self._hand_over.claim(tokens)).items():
                    self._adopt(partition, state)
                await self._commit()
            self._wake.set()
        return {p: self._positions.get(p, 0) for p in tokens}

    def _adopt(self, partition: int, state: PartitionState | None) -> None:
        self._let_go(partition)
        assert self._hand_over is not None
        self._positions[partition] = self._hand_over.kept()[partition]
        if state is None:
            return
        engine = self._engine(partition)
        now_us = self._clock.wall_us()
        down_us = now_us - state.kept_us
        if down_us > 2 * KEEP_EVERY_US:  # no node has listened
            engine.deaf(state.kept_us, now_us + min(down_us, START_GRACE_MAX_US))
        self._note(engine, engine.load(state.series, min(state.now_us, now_us)))
        self._teller.check(engine.series)
        self._changes.outbox += [one for one in state.messages if one.target in self._targets]

    def _let_go(self, partition: int) -> None:
        """Forget a partition that is another's, with what was not committed of it."""
        engine = self._engines.pop(partition, None)
        if engine is not None:
            engine.close()
        self._positions.pop(partition, None)
        self._applied.pop(partition, None)
        self._changes.leave_out(partition)

    async def give_up(self, partitions: Collection[int]) -> None:
        """Keep the state of partitions, and what was not told of them, for their next holder."""
        if self._hand_over is None or self._store is None:
            return
        assert self._outbox is not None
        async with self._outbox.quiet(_QUIET_S), self._lock:
            try:
                await self._keep([p for p in partitions if p not in self._applied])
            except SinkUnavailable as error:  # the next holder reads the last minute again
                log.warning("state_not_handed_over", error=str(error))
            try:
                pending = await self._store.pending()
                await self._store.drop(m for m in pending if partition_of_message(m) in partitions)
            except sqlite3.Error as error:  # both tell them, under the same ids
                log.warning("messages_not_dropped", error=str(error))
            self._hand_over.forget(partitions)
            for partition in partitions:
                self._let_go(partition)

    def kept(self) -> Mapping[int, int] | None:
        """Return the positions that another holder could go on from; None: alerts.db has them."""
        return None if self._hand_over is None else self._hand_over.kept()

    def _message_told(self, message: Message) -> None:
        if self._hand_over is not None:
            self._hand_over.told(message)
            self._wake.set()

    async def _keep(self, partitions: Collection[int]) -> None:
        """Keep what the next holders of partitions have to know."""
        if not partitions:
            return
        assert self._hand_over is not None
        assert self._store is not None
        if self._copy is not None:  # first: a state that has it is not decided on once more
            await self._copy.add(self._changes.history)
        try:
            lost = await self._hand_over.keep(
                self._changes, self._engines, self._store.pending, self._clock.wall_us(), partitions
            )
        except sqlite3.Error as error:
            raise SinkUnavailable(f"{self._path}: {error}") from error
        for partition in lost:
            log.warning("partition_fenced", partition=partition)
            self._let_go(partition)

    async def write(self, entries: Sequence[DecodedEntry], cursors: Mapping[int, int]) -> None:
        """Run the rules over `entries` and commit the outcome with `cursors`.

        What has to be told is committed before this returns. State alone may wait, with its
        cursors, for a quarter of a second: after a crash the same entries bring it back.

        Args:
            entries: In stream order within each partition.
            cursors: Where the sink then stands; empty for a dead letter that is tried once more.

        Raises:
            SinkUnavailable: alerts.db cannot be written now.
        """
        loop = asyncio.get_running_loop()
        async with self._lock:
            if self._hand_over is not None:
                self._hand_over.check(cursors)
            slice_ends_s = loop.time() + SLICE_S
            for decoded in entries:
                self._apply(decoded, again=not cursors)
                if loop.time() >= slice_ends_s:
                    await asyncio.sleep(0)
                    slice_ends_s = loop.time() + SLICE_S
            await self._advance(cursors)

    def turns(self, partitions: Collection[int]) -> None:
        """Watch the deadlines of these partitions only: others are another node's by now."""
        self._turns = frozenset(partitions)
        self._wake.set()

    async def pass_over(self, entry: Entry) -> None:
        """Move the cursor past an entry without its data."""
        async with self._lock:
            await self._advance({entry.partition: entry.position})

    async def close(self) -> None:
        """Stop watching and delivering, and release alerts.db; harmless when never opened."""
        async with contextlib.AsyncExitStack() as stack:
            if self._hand_over is not None and self._outbox is not None:  # or it is told again
                await stack.enter_async_context(self._outbox.quiet(_QUIET_S))
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._outbox is not None:
            await self._outbox.close()
        if self._store is not None:
            async with self._lock:
                try:
                    if not self._applied:  # else half a write is in the state: it comes again
                        await self._commit()
                        if self._hand_over is not None:
                            await self._keep(list(self._engines))
                except SinkUnavailable as error:
                    log.warning("state_not_written", error=str(error))
                store, self._store = self._store, None
                await store.close()

    # ---- for the API -----------------------------------------------------------------------------

    def active(self, rule: str | None = None, device: str | None = None) -> list[AlertView]:
        """Return alerts pending or firing here, the most severe and newest first."""
        views = map(alert_view, self.standing())
        wanted = (v for v in views if rule in (None, v.rule) and device in (None, v.device))
        return sorted(wanted, key=urgency)

    def standing(self) -> Iterator[Series]:
        """Yield what is pending or firing here."""
        for engine in self._ours():
            yield from engine.active()

    @property
    def targets(self) -> Collection[str]:
        """Where messages go."""
        return self._targets.keys()

    @property
    def delivery(self) -> OutboxStats:
        """What became of messages; of none before it was opened."""
        return OutboxStats() if self._outbox is None else self._outbox.stats

    async def history(
        self, *, rule: str | None, device: str | None, before: int | None, limit: int
    ) -> list[AlertEventView]:
        """Return what happened, newest first."""
        assert self._store is not None
        if self._copy is not None:
            await self._copy.write()
        rows = await self._store.history(rule=rule, device=device, before=before, limit=limit)
        return list(map(event_view, rows))

    async def acknowledge(self, alert_id: str, by: str, note: str) -> AlertView | None:
        """Note that somebody has taken a firing alert on; None when there is no such alert.

        Raises:
            SinkUnavailable: alerts.db cannot be written now.
        """
        async with self._lock:
            now_us = self._clock.wall_us()
            for engine in self._engines.values():
                transition = engine.acknowledge(alert_id, by, note, now_us)
                if transition is not None:
                    self._note(engine, [transition])
                    await self._commit()
                    key = (transition.rule, transition.device, transition.topic)
                    return alert_view(engine.series[key])
        return None

    async def take_config(self, config: AlertsConfig) -> None:
        """Go on with these rules, limits and webhooks: alerts of rules that stay stand as they do.

        As at a restart, what fired by a rule that is gone or changed is resolved, and what waited
        for a webhook that is gone is dropped.

        Raises:
            SinkUnavailable: alerts.db cannot be used now; everything stays what it was.
        """
        assert self._store is not None
        async with self._lock:
            if self._applied:  # half a write is in the state, and comes again
                raise SinkUnavailable(f"{self._path}: cannot be written now")
            await self._commit()
            kept = [item for engine in self._engines.values() for item in engine.dump()]
            times = {partition: engine.now_us for partition, engine in self._engines.items()}
            others = config.webhook != self._config.webhook
            self._config = config
            self._rules = [Rule(rule) for rule in config.rule]
            self._bounds = Bounds.of(config.limits)
            self._store.limit(config.limits.history_max, config.limits.outbox_max)
            if self._copy is not None:
                self._copy.history_max = config.limits.history_max
            self._teller = Teller(config, mqtt=self._publish is not None)
            if others:
                await self._change_targets(self._store)
            self._engines.clear()
            self.stats.series = 0
            self._load(kept, times)
            with contextlib.suppress(SinkUnavailable):  # the rules stand: it is tried again soon
                await self._commit()
        self._wake.set()

    async def _change_targets(self, store: AlertStore) -> None:
        """Deliver to the webhooks of the configuration from here on."""
        before = self._outbox
        assert before is not None
        async with before.quiet(_QUIET_S):
            task = self._tasks.pop()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await before.close()
        self._targets = self._make_targets()
        outbox = Outbox(store, self._targets, self._clock, self._rng, self._message_told)
        outbox.stats = before.stats
        self._outbox = outbox
        self._tasks.append(asyncio.create_task(outbox.run(), name="alerts-outbox"))
        with contextlib.suppress(sqlite3.Error):  # else at the next start
            await self._discard_others(store)

    # ---- readings --------------------------------------------------------------------------------

    def _apply(self, decoded: DecodedEntry, *, again: bool) -> None:
        entry = decoded.entry
        if not again and entry.position <= self._applied.get(entry.partition, 0):
            return  # its outcome waits in `_changes`
        engine = self._engine(entry.partition)
        batch = Batch(
            entry.gateway, entry.epoch, entry.appended_us, decoded.readings, decoded.historical
        )
        self._note(engine, engine.receive(batch, entry.appended_us))
        if not again:
            self._applied[entry.partition] = entry.position

    async def _advance(self, cursors: Mapping[int, int]) -> None:
        for partition, position in cursors.items():
            engine = self._engines.get(partition)
            self._changes.cursors[partition] = (position, engine.now_us if engine else 0)
            if self._hand_over is not None:
                self._hand_over.reached(partition, position)
        idle_us = abs(self._clock.wall_us() - self._alive_us)
        if self._changes.urgent or idle_us >= COMMIT_EVERY_US:
            await self._commit()
        self._applied.clear()
        self._positions.update(cursors)
        self._wake.set()

    def _ours(self) -> list[RuleEngine]:
        """Return the engines of the partitions that are this node's."""
        turns = self._turns
        return [e for p, e in self._engines.items() if turns is None or p in turns]

    def _engine(self, partition: int) -> RuleEngine:
        engine = self._engines.get(partition)
        if engine is None:
            engine = self._engines[partition] = RuleEngine(self._rules, self._bounds, self.stats)
            engine.deaf(*self._deaf)
        return engine

    def _load(self, kept: Iterable[StoredSeries], times: Mapping[int, int]) -> None:
        by_partition: dict[int, list[StoredSeries]] = {}
        for item in kept:
            by_partition.setdefault(partition_of(item.key[1]), []).append(item)
        for partition, items in by_partition.items():
            engine = self._engine(partition)
            ended = engine.load(items, times.get(partition, 0))
            self._note(engine, ended)
            self._teller.check(engine.series)

    # ---- time ------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Meet deadlines, for as long as the sink is open."""
        while True:
            pause_s = IDLE_PAUSE_S
            try:
                async with self._lock:
                    pause_s = await self._tick()
            except StreamError as error:  # how far the stream is cannot be said
                limited(log, "deadlines_wait", 60.0).warning("deadlines_wait", error=str(error))
            except SinkUnavailable as error:
                limited(log, "state_not_written", 60.0).error("state_not_written", error=str(error))
            except Exception:  # noqa: BLE001 - a task's root: deadlines must go on
                limited(log, "tick_failed", 60.0).exception("tick_failed")
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
                self._wake.clear()
                await asyncio.sleep(BUSY_PAUSE_S)  # many writes make one look at the deadlines
            except TimeoutError:
                pass

    async def _tick(self) -> float:
        """Meet the deadlines that are due; return how long there is nothing to do, seconds."""
        now_us = self._clock.wall_us()
        if self._copy is not None:
            await self._copy.write()
        heads = await self._heads()
        next_us = now_us + round(IDLE_PAUSE_S * 1_000_000)
        for partition, engine in self._engines.items():
            if self._turns is not None and partition not in self._turns:
                continue
            head, position = heads.get(partition, 0), self._positions.get(partition, 0)
            if position != head and head:
                continue  # a write is coming, and with it a wake-up
            deadline_us = engine.next_deadline_us()
            if deadline_us is not None and deadline_us <= now_us:
                self._note(engine, engine.handle_timeout(now_us))
                deadline_us = engine.next_deadline_us()
            self._teller.settle(partition, engine, self._changes, now_us)
            if deadline_us is not None:
                next_us = min(next_us, deadline_us)
        idle_us = abs(now_us - self._alive_us)
        changed = self._changes or any(one.has_changes for one in self._engines.values())
        if (
            self._changes.urgent
            or (self._hand_over is not None and self._hand_over.waits)
            or (changed and idle_us >= COMMIT_EVERY_US)
            or (self.stats.series and idle_us >= ALIVE_EVERY_US)
        ):
            await self._commit()
        elif changed:
            next_us = min(next_us, now_us + COMMIT_EVERY_US)
        return max((next_us - self._clock.wall_us()) / 1_000_000, BUSY_PAUSE_S)

    # ---- what comes out --------------------------------------------------------------------------

    def _note(self, engine: RuleEngine, transitions: Iterable[Transition]) -> None:
        self._teller.note(engine, transitions, self._changes, self._clock.wall_us())

    async def _commit(self) -> None:
        """Make everything durable; what cannot be written now is kept for the next time."""
        assert self._store is not None
        changes = self._changes
        for engine in self._engines.values():
            if engine.has_changes:
                changes.series.update((item.key, item) for item in engine.dump_changes())
        now_us = self._clock.wall_us()
        try:
            if self._hand_over is not None:
                await self._keep(self._hand_over.wanted(changes, now_us))
                changes.cursors.clear()
                changes.series.clear()
                if self._copy is not None:
                    changes.history.clear()
            dropped = await self._store.commit(changes, now_us)
        except sqlite3.Error as error:
            raise SinkUnavailable(f"{self._path}: {error}") from error
        self._changes = Changes()
        self._alive_us = now_us
        if dropped:
            self.overflowed += dropped
            limited(log, "outbox_full", 60.0).error("outbox_full", dropped=dropped)
        if changes.outbox and self._outbox is not None:
            self._outbox.wake()
