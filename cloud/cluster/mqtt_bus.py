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
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from cloud.cluster.mqtt_arrivals import Arrivals
from cloud.cluster.mqtt_backlog import Backlogs
from cloud.cluster.mqtt_claims import Claims
from cloud.cluster.mqtt_fabric import Fabric, FabricError, State
from cloud.cluster.mqtt_house import House
from cloud.cluster.mqtt_interest import Interest, Reach
from cloud.cluster.mqtt_outbox import Outbox
from cloud.cluster.mqtt_peers import Peers
from cloud.cluster.mqtt_presence import Presence
from cloud.cluster.mqtt_receiving import Receiving
from cloud.cluster.mqtt_retained import RetainedStates
from cloud.cluster.mqtt_sending import Sending
from cloud.cluster.mqtt_sessions import SessionRecords
from cloud.cluster.mqtt_shares import Shares
from cloud.cluster.mqtt_shedding import Shedding
from cloud.cluster.mqtt_tickets import Tickets
from cloud.cluster.mqtt_wire import WireError, decode_batch
from mqtt.broker.bus import BusRouter
from mqtt.broker.changes import Change, RetainedEnded, RetainedSaved, StoredState
from mqtt.broker.core import Core
from mqtt.packets import Connect
from mqtt.server_messages import Message
from mqtt.session import Session
from mqtt.session_subscriptions import ShareGroup, Subscribed
from mqtt.topics import split_shared
from runtime.clock import Clock

__all__ = ["MqttCluster", "MqttClusterStats"]

log = structlog.get_logger(component="mqtt-cluster")

T = TypeVar("T")

_TOLD_S: Final = 2.0  # how long a node that joins waits for the others' subscriptions
_LEAVE_S: Final = 2.0
_PAUSE_S: Final = 1.0
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
        patience_s: How long a start waits for what the engine cannot say yet.
    """

    def __init__(
        self,
        fabric: Fabric,
        node: str,
        clock: Clock,
        local_topics: frozenset[str] = frozenset(),
        *,
        patience_s: float = 60.0,
    ) -> None:
        self.salvages = 0
        self.tickets = Tickets()
        self.outbox = Outbox(fabric, self.tickets, self._log_is_full)
        self.interest = Interest(self._interest_changed)
        self._fabric = fabric
        self._clock = clock
        self._patience_s = patience_s
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
        self.sending = Sending(
            fabric.payload_bytes_max, self.outbox, self.tickets, self.interest, self.records
        )
        self.arrivals = Arrivals()
        self.receiving = Receiving(self.sending, self.arrivals)
        self.message_bytes_max = self.sending.message_bytes_max
        self.backlogs = Backlogs(
            fabric, self.records, lambda: self.position, self.receiving.message
        )
        self.claims = Claims(
            fabric,
            clock,
            self.records,
            self.interest.lasting,
            self._is_there,
            lambda instance, client_id: self.peers.tell("release", client_id, to=instance),
            self.sending.fire,
            self.arrivals,
            lambda: self.position,
        )
        self.retained = RetainedStates(fabric, self.tickets, clock, self.receiving.apply_retained)
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
        self.house = House(
            fabric,
            self.claims,
            self.peers,
            self.presence,
            self.backlogs,
            self.shedding,
            lambda: self.position,
            self._forget_connects,
        )
        self._recent: dict[str, int] = {}  # client id -> when it connected here, lately
        self._tasks: list[asyncio.Task[None]] = []
        self._rejoining: asyncio.Task[None] | None = None

    @property
    def position(self) -> int:
        """The number of the log up to which all was handed on."""
        return self.receiving.position

    # -- SessionStore -------------------------------------------------------------------------

    async def open(self) -> StoredState:
        """Join the cluster; sessions are restored one by one, as their clients come.

        Raises:
            FabricError: the engine cannot be used.
        """
        self._take_name()
        await self._fabric.follow_states(self._seen)
        self.receiving.position = await self._patiently(self._fabric.log_end, self._patience_s)
        await self._fabric.follow_log(self.position, self.receiving.read)
        await self._patiently(self._join, self._patience_s)
        loop = asyncio.get_running_loop()
        for name, work in (
            ("beats", self.peers.run),
            ("lease", self.presence.run),
            ("records", self.records.keep_up),
            ("housekeeping", self.house.run),
            ("shedding", self.house.make_room),
        ):
            self._tasks.append(loop.create_task(work(), name=f"mqtt-cluster-{name}"))
        return StoredState()

    def _take_name(self) -> None:
        if self.presence.instance:
            self.peers.former.add(self.presence.instance)
        instance = self.presence.new_instance()
        self.records.instance = self.claims.instance = instance
        self.outbox.instance = self.peers.instance = instance
        self.sending.instance = self.receiving.instance = instance

    async def _patiently(self, call: Callable[[], Awaitable[T]], give_up_s: float) -> T:
        """Return what a call returns, made again while the engine does not answer for so long."""
        give_up_at_s = self._clock.monotonic_s() + give_up_s
        while True:
            try:
                return await call()
            except FabricError as error:
                if self._clock.monotonic_s() >= give_up_at_s:
                    raise
                log.warning("mqtt_cluster_not_joined", error=str(error))
            await asyncio.sleep(_PAUSE_S)

    async def _join(self) -> None:
        instance = self.presence.instance
        await self._fabric.listen(f"to.{instance}", self.receiving.received)
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
        self.shares = Shares(core.router, self.sending.elsewhere, self.presence.done)
        self.sending.attach(core, core.router)
        self.receiving.attach(core, core.router, self.shares, self.backlogs)

    def reach(self, topic_name: str) -> Reach | None:
        """Return where else a topic's messages go."""
        if self._is_local(topic_name):
            return None
        return self.interest.reach(topic_name)

    def publish(self, message: Message, reach: object) -> bool:
        """Send a message to where `reach` says; True when its answer has to wait for the log."""
        assert isinstance(reach, Reach)
        return self.sending.publish(message, reach)

    def arriving(self, message: Message, session: Session, packet_id: int) -> None:
        """Take note of a QoS 2 publish of a lasting session, which is published next."""
        self.sending.arriving(message, session, packet_id)

    def reroute(
        self, message: Message, group: ShareGroup, done: Callable[[], object], *, waiting: bool
    ) -> bool:
        """Put a shared message into the log for another member."""
        return self.sending.reroute(message, group, done, waiting=waiting)

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
        entries = self._router.filters.at(plain)
        if not any(isinstance(one, Subscribed) for _, one in entries):
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
            self.sending.wills.pop(client_id, None)
        elif here:
            self.sending.wills[client_id] = session.will
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

    def _forget_connects(self) -> None:
        recent_us = self._clock.wall_us() - _RECENT_US
        for client_id in [c for c, at in self._recent.items() if at < recent_us]:
            del self._recent[client_id]

    def _told(self, kind: str, instance: str, fields: list[Any]) -> None:
        if kind == "connected":
            self._connected_elsewhere(instance, *fields)
        elif kind == "release":
            log.debug("mqtt_session_wanted", client_id=fields[0], node=instance)
            self.claims.release(fields[0])
        elif kind == "full":
            self.house.log_is_full()

    def _connected_elsewhere(self, instance: str, client_id: str, stamp: int) -> None:
        """A session without a record is where its client was last; the others end."""
        session = self._core.registry.sessions.get(client_id)
        if session is None or session.owner is None or session.recorder is not None:
            return
        if (self._recent.get(client_id, 0), self.presence.instance) > (stamp, instance):
            return  # both at once: one of the two stays
        session.owner.disconnect(0x8E)

    # -- the life of the node -----------------------------------------------------------------

    def _is_there(self, instance: str) -> bool:
        return self.peers.is_there(instance)

    def _is_local(self, topic_name: str) -> bool:
        return topic_name.startswith(_LOCAL_PREFIX) or topic_name in self._local_topics

    def _interest_changed(self, topic_filter: str) -> None:
        self._router.routes.subscriptions_changed((topic_filter,))

    def _look_at_backlog(self, client_id: str) -> None:
        self.backlogs.look(client_id)

    def _log_is_full(self) -> None:
        self.house.log_is_full()

    def _lost(self, client_id: str) -> None:
        self.claims.lost(client_id)

    def _gone(self, instance: str) -> None:
        self.peers.gone(instance)
        self.receiving.forget(instance)

    async def _settle(self, instance: str, done: int) -> None:
        """Settle a dead instance's estate: wills, and shared messages without a PUBACK."""
        await self.claims.settle(instance)
        subject = f"g.{instance}"
        end = await self._fabric.log_end()
        for entry in await self._fabric.scan(subject, done, end):
            try:
                batch = decode_batch(entry.data)
            except WireError as error:  # altered: the rest is settled all the same
                log.warning("mqtt_batch_not_read", seq=entry.seq, error=str(error))
                continue
            for carried in batch.messages:
                message = self.receiving.message(carried)
                group = self.interest.group(carried.group)
                if message is not None and group is not None:
                    self.sending.share(message, group)
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
        await self._patiently(self._join, math.inf)

    def stats(self) -> MqttClusterStats:
        """Return the figures of this moment."""
        return MqttClusterStats(
            instance=self.presence.instance,
            nodes=len(self.presence.there),
            lasting_sessions=len(self.claims.known),
            held_sessions=len(self.records.held),
            logged_messages=self.outbox.logged,
            log_entries=self.outbox.batches,
            read_entries=self.receiving.entries,
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
