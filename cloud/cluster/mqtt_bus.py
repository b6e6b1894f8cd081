"""MQTT over several nodes: the `Bus` and the `SessionStore` of one node's broker, put together.

    cluster = MqttCluster(fabric, "node-1", clock)
    broker = Broker(config, store=cluster, bus=cluster, clock=clock)

What carries what (docs/adr/0009-mqtt-across-nodes.md):

    to.{instance}      core message   QoS 0, to a node that wants it
    all, ctl.{inst}    core message   subscriptions, beats, asking for a session
    s.{shard}          log            QoS 1 and 2 for lasting sessions, by client id
    a.{instance}       log            QoS 1 and 2 for other sessions of other nodes, by publisher's
    g.{instance}       log            QoS 1 and 2 for a shared subscription's member there
    s., r., n., e.     states         sessions, retained messages, leases, estates

Invariants:
- every node reads the whole log, in order, once; what it published itself is passed over in `a`;
- no answer to a publisher leaves before the log has what other nodes or lasting sessions are owed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog

from cloud.cluster.mqtt_backlog import Backlogs
from cloud.cluster.mqtt_claims import Claims
from cloud.cluster.mqtt_fabric import Fabric, FabricError, LogEntry, State
from cloud.cluster.mqtt_interest import Group, Interest, Reach
from cloud.cluster.mqtt_outbox import Outbox
from cloud.cluster.mqtt_peers import Peers
from cloud.cluster.mqtt_presence import Presence
from cloud.cluster.mqtt_retained import RetainedStates
from cloud.cluster.mqtt_sessions import SessionRecords
from cloud.cluster.mqtt_shares import Shares
from cloud.cluster.mqtt_shedding import Shedding
from cloud.cluster.mqtt_tickets import Tickets
from cloud.cluster.mqtt_wire import (
    SHARDS,
    Carried,
    Record,
    WireError,
    decode_batch,
    encode_message,
    position_of,
    shard_of,
)
from mqtt.broker.bus import BusRouter
from mqtt.broker.changes import Change, RetainedEnded, RetainedSaved, StoredState
from mqtt.broker.core import Core
from mqtt.errors import MqttError
from mqtt.packets import Connect
from mqtt.server_messages import Message
from mqtt.session import Session, ShareGroup, Subscribed
from mqtt.topics import split_shared
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["MqttCluster", "MqttClusterStats"]

log = structlog.get_logger(component="mqtt-cluster")

_TOLD_S: Final = 2.0  # how long a node that joins waits for the others' subscriptions
_HOUSEKEEPING_S: Final = 15.0
_SHED_S: Final = 2.0
_SHED_PAUSE_S: Final = 0.1
_LEAVE_S: Final = 2.0
_LOG_EVERY_S: Final = 10.0
_OVERHEAD: Final = 2048  # bytes of a batch and a message besides topic, payload and properties
_LOCAL_PREFIX: Final = "$SYS/"
_RECENT_US: Final = 5_000_000


@dataclass(slots=True, frozen=True)
class MqttClusterStats:
    """Figures of one node at a moment; counters since its start."""

    instance: str
    nodes: int  # that are there, this one too
    lasting_sessions: int  # in the cluster
    held_sessions: int  # of this node
    logged_messages: int  # messages that this node put into the log
    log_entries: int
    read_entries: int  # entries of the log
    sessions_behind: int  # of those, that have more in the log than in memory
    dropped_messages: int  # QoS 0 messages that other nodes did not get
    lost_messages: int  # of the log, that went before their sessions came for them
    unguarded_messages: int  # of shared subscriptions, that went before they were acknowledged
    log_fill: float  # 0 to 1, seen by the node that keeps house
    taken_over: int  # sessions that came from other nodes
    shares_moved: int
    waiting_bytes: int
    not_durable: int  # writes and batches under way


class MqttCluster:
    """One node's share of a cluster's MQTT.

    Attributes:
        salvages: 0: its damage is the engine's to mend.
        message_bytes_max: Topic, payload and properties of what can leave a node.

    Args:
        fabric: The engine.
        node: The node's name: letters, digits, `-` and `_`.
        clock: Time.
        local_topics: Topics that every node has for itself, besides `$SYS/`.
    """

    def __init__(
        self, fabric: Fabric, node: str, clock: Clock, local_topics: frozenset[str] = frozenset()
    ) -> None:
        self.salvages = 0
        self.message_bytes_max = fabric.payload_bytes_max - 2 * _OVERHEAD
        self.tickets = Tickets()
        self.outbox = Outbox(fabric, self.tickets, self._log_is_full)
        self.interest = Interest(self._interest_changed)
        self.position = 0  # of the log: up to here all was handed on
        self.read = 0
        self._fabric = fabric
        self._clock = clock
        self._local_topics = local_topics
        self._core: Core
        self._router: BusRouter
        self.shares: Shares
        self.records = SessionRecords(
            fabric,
            self.tickets,
            lambda: self.position,
            self._lost,
            self.interest.lasting,
            self._look_at_backlog,
        )
        self.backlogs = Backlogs(fabric, self.records, lambda: self.position, self._message)
        self.claims = Claims(
            fabric,
            clock,
            self.records,
            self.interest.lasting,
            self._is_there,
            lambda instance, client_id: self.peers.tell("release", client_id, to=instance),
            self._fire,
        )
        self.retained = RetainedStates(fabric, self.tickets, clock, self._apply_retained)
        self.peers = Peers(
            fabric,
            clock,
            self.interest,
            lambda: (self.records.revision, self.claims.revision),
            lambda: self.position,
            self.retained.when_written,
            self._told,
        )
        self.presence = Presence(
            fabric, clock, node, self._settle, self.peers.came, self._gone, self._fenced
        )
        self.shedding = Shedding(
            fabric,
            self.claims,
            clock,
            lambda: min(self.peers.read_by_all, self.position),
            self.presence.acknowledged,
        )
        self._shed_soon = asyncio.Event()
        self._wills: dict[str, Message] = {}  # by client id, of connected clients
        self._numbers: dict[tuple[str, str], int] = {}  # last batch by instance and subject
        self._recent: dict[str, int] = {}  # client id -> when it connected here, lately
        self._tasks: list[asyncio.Task[None]] = []
        self._rejoining: asyncio.Task[None] | None = None

    # -- SessionStore -------------------------------------------------------------------------

    async def open(self) -> StoredState:
        """Join the cluster; sessions are restored one by one, as their clients come.

        Raises:
            FabricError: the engine cannot be used.
        """
        self._take_name()
        await self._fabric.follow_states(self._seen)
        self.position = await self._fabric.log_end()
        await self._fabric.follow_log(self.position, self._read)
        await self._join()
        loop = asyncio.get_running_loop()
        for name, work in (
            ("beats", self.peers.run),
            ("lease", self.presence.run),
            ("records", self.records.keep_up),
            ("housekeeping", self._keep_house),
            ("shedding", self._shed),
        ):
            self._tasks.append(loop.create_task(work(), name=f"mqtt-cluster-{name}"))
        return StoredState()

    def _take_name(self) -> None:
        if self.presence.instance:
            self.peers.former.add(self.presence.instance)
        instance = self.presence.new_instance()
        self.records.instance = self.claims.instance = instance
        self.outbox.instance = self.peers.instance = instance

    async def _join(self) -> None:
        instance = self.presence.instance
        await self._fabric.listen(f"to.{instance}", self._received)
        await self.peers.start()
        try:
            async with asyncio.timeout(_TOLD_S):
                while not self.peers.all_told:  # noqa: ASYNC110 - a moment at start
                    await asyncio.sleep(0.005)
        except TimeoutError:
            log.warning("mqtt_nodes_have_not_told", nodes=sorted(self.interest.unknown))
        await self.presence.join(self.position)
        log.info("mqtt_cluster_joined", instance=instance, nodes=len(self.presence.there))

    def put(self, change: Change) -> None:
        """Take a change of a session or of what is retained."""
        if isinstance(change, RetainedSaved | RetainedEnded):
            if not self._is_local(change.topic.decode()):
                self.retained.put(change)
        else:
            self.records.put(change)

    def when_durable(self, callback: Callable[[], None]) -> None:
        """Call back when all that was put or published so far is durable in the cluster."""
        self.tickets.when_done(callback)

    def saturated(self) -> bool:
        """Return True when as much waits for the log as is allowed."""
        return self.outbox.saturated

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """Call back when it is not saturated any more."""
        self.outbox.when_relieved(callback)

    async def close(self) -> None:
        """Write what waits, as far as the engine takes it, and leave the cluster."""
        if self._rejoining is not None:
            self._rejoining.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.outbox.drain(_LEAVE_S)
        await self.claims.stop()
        await self.backlogs.stop()
        await self.records.stop()
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self.presence.leave()
        except (FabricError, TimeoutError) as error:
            log.warning("mqtt_cluster_not_left", error=str(error))
        await self.presence.stop()
        await self.outbox.stop()
        await self.retained.stop()
        await self._fabric.stop()

    # -- Bus: what goes out -------------------------------------------------------------------

    def attach(self, core: Core) -> None:
        """Take the broker."""
        assert isinstance(core.router, BusRouter)
        self._core = self.claims.core = self.backlogs.core = core
        self._router = core.router
        self.shares = Shares(core.router, self._elsewhere, self.presence.done)

    def reach(self, topic_name: str) -> Reach | None:
        """Return where else a topic's messages go."""
        if self._is_local(topic_name):
            return None
        return self.interest.reach(topic_name)

    def publish(self, message: Message, reach: object) -> bool:
        """Send a message to where `reach` says; True when its answer has to wait for the log."""
        assert isinstance(reach, Reach)
        data = self._encoded(message)
        if len(data) > self.message_bytes_max + _OVERHEAD:  # no client's: those were refused
            self.outbox.dropped += 1
            limited(log, "large", _LOG_EVERY_S).warning(
                "mqtt_message_too_large", topic=message.topic.decode(), size=len(data)
            )
            return False
        if message.publisher in self._wills and self._wills[message.publisher] is message:
            self._publish_will(message, reach, data)
            return True
        waits = False
        if message.qos:
            for shard in reach.shards:
                self.outbox.to_log(f"s.{shard}", data)
                waits = True
        if message.qos and reach.logged:
            self.outbox.to_log(f"a.{self.presence.instance}", data)
            waits = True
        else:
            for instance in reach.nodes:
                self.outbox.to_node(instance, data)
        for group in reach.groups:
            waits = self._share(message, group) or waits
        return waits

    def _publish_will(self, message: Message, reach: Reach, data: bytes) -> None:
        """As `publish`, but under the will's own id: an heir may try too."""
        held = self.records.held.get(message.publisher or "")
        will_id = held.record.will_id if held is not None else ""
        subjects = [(f"s.{shard}", f"s{shard}") for shard in reach.shards if message.qos]
        if reach.nodes:
            subjects.append((f"a.{self.presence.instance}", "a"))
        for subject, word in subjects:
            self.outbox.once(subject, data, f"will:{will_id}:{word}")
        for group in reach.groups:
            self._share(message, group)

    def _share(self, message: Message, group: Group, *, waiting: bool = True) -> bool:
        """Send a message to one member of a group; True when it is in the log's hands."""
        instance = group.choose()
        name = group.topic_filter
        if instance is None:
            client_id = group.choose_waiting() if waiting and message.qos else None
            if client_id is None:
                return False
            data = self._encoded(message, name, client_id)
            self.outbox.to_log(f"s.{shard_of(client_id)}", data)
            return True
        if message.qos:
            self.outbox.to_log(f"g.{instance}", self._encoded(message, name))
            return True
        if instance != self.presence.instance:
            self.outbox.to_node(instance, self._encoded(message, name))
        else:
            self._give_unlogged(message, name)
        return False

    def _give_unlogged(self, message: Message, group: str) -> None:
        members = self._router.group(group)
        if members is not None:
            self._router.deliver_shared(message, members, self._core.now_s)

    def reroute(
        self, message: Message, group: ShareGroup, done: Callable[[], object], *, waiting: bool
    ) -> bool:
        """Put a shared message into the log for another member."""
        known = self.interest.group(group.topic_filter)
        if known is None or not message.qos or not self._share(message, known, waiting=waiting):
            return False
        self.tickets.when_done(done)
        return True

    def _elsewhere(self, group: str, message: Message, done: Callable[[], object]) -> bool:
        known = self.interest.group(group)
        if known is None or not self._share(message, known):
            return False
        self.tickets.when_done(done)
        return True

    def _encoded(self, message: Message, group: str = "", client_id: str = "") -> bytes:
        recorder = self._core.recorder
        assert recorder is not None
        return encode_message(
            Carried(
                message.topic,
                message.payload,
                message.qos,
                message.retain,
                message.properties,
                recorder.wall_expiry_us(message.expires_s),
                message.publisher,
                group,
                client_id,
            )
        )

    async def _fire(self, record: Record) -> None:
        """Publish the will of a record that is this node's now; the log has it when it returns."""
        saved = record.saved
        assert saved.will_topic is not None
        expires_s = float(saved.will_expiry_s) if saved.will_expiry_s > 0 else 0.0
        will = Message(
            saved.will_topic,
            saved.will_payload,
            saved.will_flags & 3,
            bool(saved.will_flags & 4),
            saved.will_properties,
            expires_s,
            saved.client_id,
        )
        core = self._core
        route = self._router.routes[will.topic]
        if route.lane >= 0 and core.capture is not None:
            core.publish_will(_nobody(core, saved.client_id, saved.version), will, None)
        else:
            if expires_s:
                will.expires_s += core.refresh()
            if will.retain:
                self._router.retain(will, route.name)
            data = self._encoded(will)
            reach = self.interest.reach(route.name)
            for shard in reach.shards if reach is not None and will.qos else ():
                self.outbox.once(f"s.{shard}", data, f"will:{record.will_id}:s{shard}")
            self.outbox.once("a.all", data, f"will:{record.will_id}:a")
            for group in reach.groups if reach is not None else ():
                self._share(will, group)
        durable = asyncio.Event()
        self.tickets.when_done(durable.set)
        await durable.wait()

    # -- Bus: subscriptions and sessions ------------------------------------------------------

    def subscribed(self, session: Session, topic_filter: str) -> None:
        """Tell the others of a subscription that was made, changed or ended."""
        share_name, plain = split_shared(topic_filter)
        if share_name is not None:
            self._count_members(topic_filter)
            return
        entry = session.subscriptions.get(topic_filter) if session.subscriptions else None
        if entry is not None:
            qos = entry.qos if session.recorder is None else 0
            self.peers.want(plain, max(qos, self.peers.wanted(plain)))
            return
        values = self._router.tree.at(plain)
        if not values or not any(isinstance(one, Subscribed) for one in values.values()):
            self.peers.want(plain, -1)

    def _count_members(self, topic_filter: str) -> None:
        group = self._router.group(topic_filter)
        members = group.members if group is not None else ()
        self.peers.members(topic_filter, sum(one.owner is not None for one in members))

    def when_spread(self, callback: Callable[[], None]) -> None:
        """Call back when the other nodes know the subscriptions made so far, and when what was
        retained anywhere before is here."""
        current = partial(self.retained.when_current, callback)
        if self.tickets:
            self.tickets.when_done(lambda: self.peers.when_spread(current))
        else:
            self.peers.when_spread(current)

    def claim(self, connect: Connect, proceed: Callable[[], None]) -> bool:
        """Make the client's session this node's: True if it is."""
        stamp = self._clock.wall_us()
        self._recent[connect.client_id] = stamp
        if self.peers.known:
            self.peers.tell("connected", connect.client_id, stamp)
        return self.claims.claim(connect, proceed)

    def session_moved(self, session: Session, *, here: bool) -> None:
        """A session got a connection of this node, or lost it, or ended."""
        client_id = session.client_id
        for topic_filter in session.subscriptions or ():
            if here or topic_filter.startswith("$share/"):
                self.subscribed(session, topic_filter)
        if session.will is None:
            self._wills.pop(client_id, None)
        elif here:
            self._wills[client_id] = session.will
            if session.recorder is None and self._core.recorder is not None:
                self._core.recorder.session_saved(session, away=False)
        if here:
            self.backlogs.look(client_id)
        if not here or session.will is None:
            held = self.records.held.get(client_id)
            if held is not None and not held.record.lasting:
                self.records.drop(client_id)

    # -- what comes in ------------------------------------------------------------------------

    def _seen(self, state: State) -> None:
        kind = state.key[0]
        if kind == "s":
            self.claims.seen(state)
            self.peers.seen()
        elif kind == "r":
            self.retained.seen(state)
        else:
            self.presence.seen(state)

    def _told(self, kind: str, instance: str, fields: list[Any]) -> None:
        if kind == "connected":
            self._connected_elsewhere(instance, *fields)
        elif kind == "release":
            log.debug("mqtt_session_wanted", client_id=fields[0], node=instance)
            self.claims.release(fields[0])
        elif kind == "full":
            self._shed_soon.set()

    def _connected_elsewhere(self, instance: str, client_id: str, stamp: int) -> None:
        """A session without a record is where its client was last; the others end."""
        session = self._core.registry.sessions.get(client_id)
        if session is None or session.owner is None or session.recorder is not None:
            return
        if (self._recent.get(client_id, 0), self.presence.instance) > (stamp, instance):
            return  # both at once: one of the two stays
        session.owner.disconnect(0x8E)

    def _received(self, data: bytes) -> None:
        """Take QoS 0 messages of another node."""
        try:
            batch = decode_batch(data)
        except WireError as error:
            limited(log, "wire", _LOG_EVERY_S).warning("mqtt_batch_not_read", error=str(error))
            return
        self._core.refresh()
        for carried in batch.messages:
            self._give(carried, 0, 0)

    def _read(self, entry: LogEntry) -> None:
        """Take an entry of the log."""
        self.read += 1
        kind, _, word = entry.subject.partition(".")
        mine = word == self.presence.instance
        if (kind == "g") == mine or kind == "s":  # others' `a`, our own `g`, every shard
            try:
                batch = decode_batch(entry.data)
            except WireError as error:
                limited(log, "wire", _LOG_EVERY_S).warning("mqtt_batch_not_read", error=str(error))
            else:
                if self._is_new(batch.instance, entry.subject, batch.number):
                    try:
                        self._hand_on(entry, kind, word, batch.messages)
                    except Exception:  # one message's fault must not end the reading
                        log.exception("mqtt_entry_not_handed_on", seq=entry.seq)
        self.position = entry.seq
        self.shares.passed(entry.seq)

    def _is_new(self, instance: str, subject: str, number: int) -> bool:
        """Return False for a batch that is in the log twice."""
        if not instance:
            return True
        key = (instance, subject)
        if number <= self._numbers.get(key, 0):
            return False
        self._numbers[key] = number
        return True

    def _hand_on(self, entry: LogEntry, kind: str, word: str, messages: list[Carried]) -> None:
        self._core.refresh()
        if kind == "s":
            shard = int(word)
            for index, carried in enumerate(messages):
                self._give_lasting(carried, shard, -position_of(entry.seq, index))
        else:
            for index, carried in enumerate(messages):
                self._give(carried, entry.seq, index)

    def _message(self, carried: Carried) -> Message | None:
        recorder = self._core.recorder
        assert recorder is not None
        expires_s = recorder.monotonic_expiry_s(carried.expires_us)
        if expires_s and expires_s <= self._core.now_s:
            return None
        return Message(
            carried.topic,
            carried.payload,
            carried.qos,
            carried.retain,
            carried.properties,
            expires_s,
            carried.publisher,
        )

    def _give(self, carried: Carried, seq: int, index: int) -> None:
        message = self._message(carried)
        if message is None:
            return
        if carried.group:
            if carried.qos:
                self.shares.give(seq, index, carried.group, message, self._core.now_s)
            else:
                self._give_unlogged(message, carried.group)
            return
        try:
            route = self._router.routes[carried.topic]
        except MqttError as error:
            limited(log, "topic", _LOG_EVERY_S).warning("mqtt_topic_refused", error=str(error))
            return
        self._router.deliver_here(message, route, self._core.now_s)

    def _give_lasting(self, carried: Carried, shard: int, store_id: int) -> None:
        message = self._message(carried)
        if message is None:
            return
        message.store_id = store_id
        now_s = self._core.now_s
        if carried.client_id:
            session = self._core.registry.sessions.get(carried.client_id)
            if session is None or session.recorder is None:
                return
            if not self.backlogs.takes(session, message.size, -store_id):
                return
            entry = (session.subscriptions or {}).get(carried.group)
            qos = min(message.qos, entry.qos) if entry is not None else message.qos
            identifier = entry.identifier if entry is not None else b""
            group = self._router.group(carried.group)
            session.offer(message, qos, False, identifier, now_s, group)
            return
        try:
            route = self._router.routes[carried.topic]
        except MqttError:
            return
        takes = partial(self.backlogs.takes, position=-store_id)
        self._router.deliver_logged(message, route, shard, shard_of, now_s, takes)

    def _apply_retained(self, name: str, change: RetainedSaved | None) -> None:
        if change is None:
            self._router.apply_retained(name, None)
            return
        recorder = self._core.recorder
        assert recorder is not None
        message = Message(
            change.topic,
            change.payload,
            change.qos,
            True,
            change.properties,
            recorder.monotonic_expiry_s(change.expires_us),
            change.publisher,
        )
        self._router.apply_retained(name, message)

    # -- the life of the node -----------------------------------------------------------------

    def _is_there(self, instance: str) -> bool:
        return self.peers.is_there(instance)

    def _is_local(self, topic_name: str) -> bool:
        return topic_name.startswith(_LOCAL_PREFIX) or topic_name in self._local_topics

    def _interest_changed(self, topic_filter: str) -> None:
        self._router.routes.subscriptions_changed(topic_filter)

    def _look_at_backlog(self, client_id: str) -> None:
        self.backlogs.look(client_id)

    def _lost(self, client_id: str) -> None:
        self.claims.lost(client_id)

    def _gone(self, instance: str) -> None:
        self.peers.gone(instance)
        for key in [key for key in self._numbers if key[0] == instance]:
            del self._numbers[key]

    async def _settle(self, instance: str, done: int) -> None:
        """Settle a dead instance's estate: wills, and shared messages without a PUBACK."""
        await self.claims.settle(instance)
        subject = f"g.{instance}"
        end = await self._fabric.log_end()
        for entry in await self._fabric.scan(subject, done, end):
            for carried in decode_batch(entry.data).messages:
                message = self._message(carried)
                group = self.interest.group(carried.group)
                if message is not None and group is not None:
                    self._share(message, group)
        durable = asyncio.Event()
        self.tickets.when_done(durable.set)
        await durable.wait()
        await self._fabric.purge(subject, end + 1)

    def _fenced(self) -> None:
        """The lease is over: others may have what was ours. Begin again as somebody else."""
        if self._rejoining is None or self._rejoining.done():
            self._rejoining = asyncio.get_running_loop().create_task(
                self._rejoin(), name="mqtt-cluster-rejoin"
            )

    async def _rejoin(self) -> None:
        for client_id in list(self.records.held):
            self.claims.lost(client_id)
        for connection in list(self._core.connections):
            connection.disconnect(0x8B)
        self._take_name()
        while True:
            try:
                await self._join()
            except FabricError as error:
                log.warning("mqtt_cluster_not_joined", error=str(error))
                await asyncio.sleep(1.0)
            else:
                return

    async def _keep_house(self) -> None:
        """Forget what nobody needs any more, now and then, until cancelled."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            try:
                await self.keep_house()
            except (FabricError, WireError) as error:
                limited(log, "house", _LOG_EVERY_S).warning("mqtt_not_tidied", error=str(error))

    async def _shed(self) -> None:
        """Make room in the log before the engine does, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SHED_S):
                    await self._shed_soon.wait()
            self._shed_soon.clear()
            if self._keeper == self.presence.instance:
                try:
                    await self.shedding.look()
                except (FabricError, WireError) as error:
                    limited(log, "shed", _LOG_EVERY_S).warning(
                        "mqtt_log_not_shed", error=str(error)
                    )
                await asyncio.sleep(_SHED_PAUSE_S)  # what was removed shows

    @property
    def _keeper(self) -> str:
        """The instance that keeps house; empty while none is known."""
        return min(self.presence.there, default="")

    def _log_is_full(self) -> None:
        """Have room made without delay."""
        if self._keeper == self.presence.instance:
            self._shed_soon.set()
        elif self._keeper:
            self.peers.tell("full", to=self._keeper)

    async def keep_house(self) -> None:
        """Forget entries of the log and records that nobody needs; raises FabricError."""
        self.backlogs.look_at_all()
        for instance in list(self.peers.known):
            if instance not in self.presence.there and not self.peers.is_there(instance):
                self.peers.gone(instance)  # a last word came after its lease was over
        recent_us = self._clock.wall_us() - _RECENT_US
        for client_id in [c for c, at in self._recent.items() if at < recent_us]:
            del self._recent[client_id]
        await self._fabric.purge(f"g.{self.presence.instance}", self.presence.settled + 1)
        if self._keeper != self.presence.instance:
            return
        read = min(self.peers.read_by_all, self.position)
        await self._fabric.purge("a.>", read)
        for shard in range(SHARDS):
            await self._fabric.purge(
                f"s.{shard}", min(read, self.claims.lowest_cursor(shard, read))
            )
        await self.claims.expire()

    def stats(self) -> MqttClusterStats:
        """Return the figures of this moment."""
        return MqttClusterStats(
            instance=self.presence.instance,
            nodes=len(self.presence.there),
            lasting_sessions=len(self.claims.known),
            held_sessions=len(self.records.held),
            logged_messages=self.outbox.logged,
            log_entries=self.outbox.batches,
            read_entries=self.read,
            sessions_behind=sum(1 for held in self.records.held.values() if held.behind),
            dropped_messages=self.outbox.dropped,
            lost_messages=self.shedding.lost_messages,
            unguarded_messages=self.shedding.unguarded_messages,
            log_fill=self.shedding.fill,
            taken_over=self.claims.taken_over,
            shares_moved=self.shares.moved,
            waiting_bytes=self.outbox.waiting_bytes,
            not_durable=len(self.tickets),
        )


def _nobody(core: Core, client_id: str, version: int) -> Session:
    session = Session(client_id, core.policy)
    session.version = version
    return session
