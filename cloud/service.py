"""A cloud node as one service: stream, sinks, ingest, MQTT front, and what is plugged in.

Gateways are let in last, when everything behind them runs; the stream is closed last. The node is
ready when the stream has just acknowledged an append, not when a page says so (DESIGN section 6).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from typing import Any

import structlog

from bridge.devices import DeviceIds
from cloud.cluster.bucket import Bucket
from cloud.cluster.connection import PATIENCE_MIN_S, ClusterError
from cloud.cluster.gateway_peers import GatewayPeers
from cloud.cluster.leases import Leases
from cloud.cluster.mqtt_bus import MqttCluster
from cloud.cluster.mqtt_fabric import FabricError
from cloud.cluster.mqtt_metrics import register_mqtt_cluster
from cloud.cluster.mqtt_opening import open_mqtt_cluster
from cloud.cluster.replicas import Replicas
from cloud.config import CloudConfig
from cloud.database import DatabaseError
from cloud.gateways import GatewaysSeen
from cloud.ingest import CloudCapture
from cloud.ledger import Balance, JournalLedger, balance
from cloud.ledger_files import JournalFile
from cloud.node_view import gateway_views, ledger_views, partition_views
from cloud.parts import CloudPart
from cloud.sinks.contract import Sink
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.group import Sinks
from cloud.sinks.live import LiveSink
from cloud.storage import Storage, make_parquet, make_storage, storage_reader
from cloud.stream.contract import Stream, StreamError, StreamFull
from cloud.stream.jetstream.engine import JetStreamStream
from cloud.stream.opening import open_stream
from cloud.telemetry import (
    Sample,
    figures_of,
    register_metrics,
    register_replicas,
    register_stream_metrics,
)
from cloud.views import GatewayView, LedgerView, PartitionView, StatusView
from mqtt.broker.broker import Broker
from mqtt.broker.front import Front, FrontError
from mqtt.broker.seams import SessionStore
from mqtt.broker.session_store import SessionStoreError, SqliteSessionStore
from runtime.clock import Clock
from runtime.logs import limited
from runtime.metrics import Metrics
from runtime.native import tell_absent
from runtime.reload import Reloaded, changed_keys, sort_keys
from runtime.service import StartError

__all__ = ["CloudService"]

log = structlog.get_logger(component="cloud")

_SAMPLE_INTERVAL_S = 1.0
RELOADABLE = ("access", "broker", "listeners", "host", "port")  # tables and keys
_PROBE_INTERVAL_S = 5.0
_PROBE_TIMEOUT_S = 5.0
_PROVE_PAUSE_S = 0.5
_LOG_EVERY_S = 30.0
_DRAIN_S = 5.0  # how long an orderly stop waits for the sinks to catch up


class CloudService:
    """One cloud node, with a stream of its own or one of a cluster.

    Args:
        config: Everything that is configured.
        clock: Time.
        parts: What is plugged in.

    Attributes:
        port: The MQTT port in use; 0 before `start`.
        metrics: What `/metrics` shows.
    """

    def __init__(self, config: CloudConfig, clock: Clock, parts: Sequence[CloudPart] = ()) -> None:
        self.config = config
        self.clock = clock
        self.port = 0
        self.metrics = Metrics()
        self.gateways_seen = GatewaysSeen(clock)
        self.stream: Stream
        self.capture: CloudCapture
        self.broker: Broker
        self.mqtt_cluster: MqttCluster | None = None
        self.gateway_peers: GatewayPeers | None = None  # of a cluster, while it runs
        self.replicas: Replicas | None = None  # of a cluster's streams
        self._front: Front
        self.sinks: Sinks
        self.storage: Storage | None = None
        self._parts = parts
        self._stops: list[Any] = []  # what ends each thing begun, in order of beginning
        self._sample = Sample()
        self._decoded = DecodedEntries(config.sinks.decoded_readings_max)
        self._not_ready = "starting"
        self._full = False  # the cause of not being ready is a limit, which sinks can cure
        self._started_us = 0
        self._watching: asyncio.Task[None] | None = None

    # ---- start and stop --------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to serve.

        Raises:
            StartError: a port or a file cannot be had; one line.
        """
        self._started_us = self.clock.wall_us()
        await self._open_stream()  # 1. the stream: what was acknowledged is there
        self._make_capture()  # 2. the way into it, closed as yet
        await self._start_broker()  # 3. broker and sessions, no port yet
        await self._start_sinks()  # 4. the ways out of it
        await self._start_capture()
        register_metrics(
            self.metrics, lambda: self._sample, self.capture, self.broker, self.storage, self.ready
        )
        register_stream_metrics(self.metrics, self.stream)
        self.metrics.gauge(
            "tidegate_gateway_quiet_s",
            "Seconds since a gateway's last batch at this node; of a cluster's nodes the least.",
            self.gateways_seen.quiet_s,
            ("gateway",),
        )
        if self.mqtt_cluster is not None:
            register_mqtt_cluster(self.metrics, self.mqtt_cluster)
        if isinstance(self.stream, JetStreamStream):
            self.replicas = Replicas(self.stream.connection, self.stream.layout)
            self.replicas.start()
            self._stops.append(self.replicas.stop)
            register_replicas(self.metrics, self.replicas)
        await self._prove()  # 5. an append that is acknowledged; a full stream needs its sinks
        for part in self._parts:  # 6. what is plugged in
            self._stops.append(part.stop)
            await part.start(self)
        self._watching = asyncio.create_task(self._watch(), name="cloud-watch")
        await self._listen()  # 7. gateways and clients
        log.info("cloud_started", node=self.config.node_id, mqtt_port=self.port)
        tell_absent(log)

    async def stop(self) -> None:
        """End in the reverse order; what is not acknowledged stays at the gateways.

        1. Nobody is told any more that the node is ready. 2. Parts end. 3. Ingest takes nothing
        new and answers what it has. 4. Sinks take what is left, for a while, and end. 5. The
        broker sends the last messages and ends the connections. 6. The stream is closed.
        """
        self._not_ready = "stopping"
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        while self._stops:
            try:
                await self._stops.pop()()
            except Exception:  # one part's fault must not keep the stream from being closed
                log.exception("stop_failed")
        if self.port:
            log.info("cloud_stopped", node=self.config.node_id)
        self.port = 0

    async def _open_stream(self) -> None:
        path = self.config.data / "cloud" / "stream.db"
        try:
            await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(
                f"data folder {self.config.data}: {error.strerror or error}; "
                "choose another with --data"
            ) from None
        try:
            self.stream = await open_stream(
                path, self.config.stream, self.clock, node_id=self.config.node_id
            )
        except StreamError as error:
            raise StartError(f"stream: {error}") from None
        self._stops.append(self.stream.close)

    def _make_capture(self) -> None:
        self.capture = CloudCapture(
            self.stream,
            self.config.ingest,
            self.config.node_id,
            self.clock,
            command_ids=self._command_ids(),
            snapshots=self.config.data / "cloud" / "snapshots",
            taken=self.gateways_seen.batch_taken,
            encoded=self._decoded.offer,
        )

    def _command_ids(self) -> DeviceIds | None:
        commands = self.config.commands
        return DeviceIds(commands.topics) if commands.enabled else None

    async def _start_broker(self) -> None:
        store: SessionStore
        if self.config.stream.url:
            try:
                store = self.mqtt_cluster = await open_mqtt_cluster(
                    self.config.stream, self.clock, node_id=self.config.node_id
                )
            except FabricError as error:
                raise StartError(f"mqtt: {error}") from None
        else:
            store = SqliteSessionStore(self.config.data / "cloud" / "sessions.db")
        self._front = Front(
            self.config.front,
            capture=self.capture,
            store=store,
            bus=self.mqtt_cluster,
            hooks=self.gateways_seen,
            clock=self.clock,
        )
        self._stops.append(self._front.stop)
        try:
            await self._front.start()
        except (SessionStoreError, FabricError) as error:
            raise StartError(f"sessions: {error}") from None
        except FrontError as error:
            raise StartError(str(error)) from None
        self.broker = self._front.broker

    async def _start_sinks(self) -> None:
        sinks: list[Sink] = []
        if self.config.storage.enabled:
            self.storage = self._make_storage()
            sinks.append(self.storage)
        if self.config.parquet.enabled:
            sinks.append(self._make_parquet())
        if self.config.live.enabled:
            sinks.append(LiveSink(self.broker, self.config.live, self.clock))
        for part in self._parts:
            sinks += part.sinks(self)
        self.sinks = Sinks(
            self.stream,
            sinks,
            self.config.sinks,
            self.config.stream,
            self.clock,
            decoded=self._decoded,
            leases=self._leases(),
            per_node=self._per_node(),
        )
        try:
            await self.sinks.start()
        except (ClusterError, DatabaseError, StreamError) as error:
            raise StartError(f"sinks: {error}") from None
        self._stops.append(self._stop_sinks)
        await self._start_peers()

    async def _start_peers(self) -> None:
        """Have gateways of all nodes seen at any of them."""
        leases = self.sinks.leases
        if leases is None or not isinstance(self.stream, JetStreamStream):
            return
        self.gateway_peers = GatewayPeers(
            self.gateways_seen, self.stream.connection, self.stream.layout, leases, self.clock
        )
        self._stops.append(self.gateway_peers.stop)
        try:
            await self.gateway_peers.start()
        except ClusterError as error:
            raise StartError(f"gateways: {error}") from None

    def _leases(self) -> Leases | None:
        if not isinstance(self.stream, JetStreamStream):
            return None
        bucket = Bucket(self.stream.connection, self.stream.layout.bucket("leases"))
        version = self.stream.layout.version
        return Leases(bucket, self.config.node_id, self.clock, version=version)

    def _per_node(self) -> dict[str, bool]:
        """Return the sinks that a cluster's nodes do not share (cloud/sinks/group.py)."""
        names = {"latest": False}
        if not self.config.storage.url:
            names["storage"] = True
            if isinstance(self.stream, JetStreamStream) and self.config.storage.enabled:
                log.warning("storage_per_node", hint="each node stores everything in its own "
                            "storage.db; set storage.url for one PostgreSQL")  # fmt: skip
        if not self._front.clustered:
            names["live"] = False
        return names

    async def _stop_sinks(self) -> None:
        with contextlib.suppress(StreamError, TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self.sinks.drained()
        await self.sinks.stop()

    async def _start_capture(self) -> None:
        self._stops.append(self.capture.close)
        try:
            await self.capture.start()
        except StreamError as error:
            raise StartError(f"stream: {error}") from None

    async def _listen(self) -> None:
        try:
            self.port = await self._front.listen()
        except FrontError as error:
            raise StartError(str(error)) from None

    # sections that parts take beside these
    more_reloadable: frozenset[str] = frozenset()

    async def reload(self, config: CloudConfig) -> Reloaded:
        """Take what can be changed while it runs: access, limits, listeners, certificates.

        Clients that are still allowed notice nothing.
        """
        result = sort_keys(
            changed_keys(self.config, config),
            lambda key: key.partition(".")[0] in {*RELOADABLE, *self.more_reloadable},
        )
        try:
            await self._front.reload(config.front)
        except FrontError as error:
            result.problem = str(error)
        self.config = replace(
            self.config,
            host=config.host,
            port=config.port,
            broker=config.broker,
            access=config.access,
            listeners=config.listeners,
        )
        return result

    def _make_storage(self) -> Storage:
        try:
            return make_storage(self.config.data, self.config.storage, self.clock)
        except DatabaseError as error:
            raise StartError(str(error)) from None

    def _make_parquet(self) -> Sink:
        try:
            return make_parquet(self.config.data, self.config.parquet, self.config.node_id)
        except DatabaseError as error:
            raise StartError(str(error)) from None

    # ---- readiness and figures -------------------------------------------------------------------

    async def _watch(self) -> None:
        """Probe the stream and read figures for as long as the node runs."""
        loop = asyncio.get_running_loop()
        probe_at_s = loop.time() + _PROBE_INTERVAL_S
        while True:
            try:
                await self._read_sample()
            except StreamError as error:
                limited(log, "figures", _LOG_EVERY_S).warning("figures_not_read", error=str(error))
            self._step_back()
            if loop.time() >= probe_at_s:
                await self._probe()
                probe_at_s = loop.time() + _PROBE_INTERVAL_S
            await asyncio.sleep(_SAMPLE_INTERVAL_S)

    def _step_back(self) -> None:
        """Leave the partitions to other nodes when this one cannot read the stream any more."""
        leases = self.sinks.leases
        broken = self.stream.broken if isinstance(self.stream, JetStreamStream) else ""
        if broken:
            self._not_ready = broken  # before the next probe would find it
            if leases is not None and not leases.draining:
                leases.begin_drain()

    async def _read_sample(self) -> None:
        self._sample = Sample(
            self.clock.wall_us(),
            await self.stream.stats(),
            await self.sinks.stats(),
            self.stream.file_bytes,
        )

    async def _prove(self) -> None:
        """Return once the stream has taken an append, or is full.

        A cluster's may be between two leaders: it is waited for as when it was opened.

        Raises:
            StartError: it takes none.
        """
        wait_s = self.config.stream.start_wait_s if self.config.stream.url else _PROBE_TIMEOUT_S
        give_up_at_s = self.clock.monotonic_s() + wait_s
        while True:
            await self._probe(max(PATIENCE_MIN_S, give_up_at_s - self.clock.monotonic_s()))
            if not self._not_ready or self._full:
                return
            if self.clock.monotonic_s() >= give_up_at_s or not self.config.stream.url:
                raise StartError(f"stream: {self._not_ready}")
            await asyncio.sleep(_PROVE_PAUSE_S)

    async def _probe(self, timeout_s: float = _PROBE_TIMEOUT_S) -> None:
        before = self._not_ready
        timeout_s = min(timeout_s, _PROBE_TIMEOUT_S)
        try:
            async with asyncio.timeout(timeout_s):
                await self.stream.append(())
            self._not_ready = ""
        except TimeoutError:
            hindered = self.stream.hindered if isinstance(self.stream, JetStreamStream) else ""
            self._not_ready = f"the stream took no append in {timeout_s:.0f} s" + (
                f": {hindered}" if hindered else ""
            )
        except StreamError as error:
            self._not_ready = str(error)
            self._full = isinstance(error, StreamFull)
        if self._not_ready and self._not_ready != before:
            log.error("not_ready", cause=self._not_ready)

    def ready(self) -> Sequence[str]:
        """Return why the node cannot take batches now; empty when it can."""
        reasons = [self._not_ready] if self._not_ready else []
        if self.port and self.capture.saturated():
            reasons.append("ingest: as much waits for the stream as is allowed")
        if self.port and self.sinks.leases is not None and self.sinks.leases.draining:
            reasons.append("draining: this node hands its work over")
        return reasons

    def health(self) -> Sequence[str]:
        """Return why the process should be restarted; empty when it is well."""
        if not self.port:
            return []
        ended = [runner.name for runner in self.sinks.runners.values() if not runner.alive]
        causes = [f"sink {name}: its task ended" for name in ended]
        if isinstance(self.stream, JetStreamStream) and self.stream.broken:
            causes.append(self.stream.broken)
        return causes

    def figures(self) -> dict[str, Any]:
        """Return the figures of all parts as JSON values; empty before the node runs."""
        if not self.port:
            return {}
        figures = figures_of(
            self.config.node_id, self._sample, self.capture, self.broker, self.storage, self.ready()
        )
        if self.mqtt_cluster is not None:
            lost = dict(self.mqtt_cluster.shedding.lost_by_session)
            stats = asdict(self.mqtt_cluster.stats())
            figures["mqtt_cluster"] = {**stats, "lost_by_session": lost}
        if self.gateway_peers is not None:
            figures["silent_nodes"] = self.gateway_peers.silent
        if self.replicas is not None:
            figures["cluster"] = self.replicas.figures()
        return figures

    # ---- what the API asks -----------------------------------------------------------------------

    def status(self) -> StatusView:
        """Return the node's main figures."""
        batches, storage = self.capture.batches.stats, self.storage
        return StatusView(
            version=_version(),
            started_us=self._started_us,
            readings_taken=batches.readings + self.capture.devices.stats.readings,
            readings_stored=storage.stats.rows if storage is not None else 0,
            uplink_bytes=batches.batch_bytes,
            payload_bytes=batches.payload_bytes,
            stream_bytes=self.stream.file_bytes,
            storage_bytes=storage.stats.file_bytes if storage is not None else 0,
        )

    async def gateways(self) -> Sequence[GatewayView]:
        """Return every gateway that ever sent a batch, by name, with its link to any node."""
        peers = self.gateway_peers
        others = (await peers.links()).links if peers is not None else {}
        return gateway_views(await self.stream.ledger(), self.gateways_seen.links(), others)

    async def ledger(self) -> Sequence[LedgerView]:
        """Return the balance of every (gateway, epoch)."""
        return ledger_views(await self.balance())

    async def partitions(self) -> Sequence[PartitionView]:
        """Return the partitions that were ever written."""
        leases = self.sinks.leases
        holders = leases.holders() if leases is not None else ()
        return partition_views(await self.stream.stats(), await self.sinks.stats(), holders)

    async def stream_ends(self) -> Mapping[int, int]:
        """Return the last position of each partition."""
        return (await self.stream.stats()).last_positions

    async def stored_positions(self) -> Mapping[int, int]:
        """Return how far storage has got by its own cursors; nothing while that cannot be said."""
        try:
            return (await self.sinks.positions()).get("storage", {})
        except StreamError:
            return {}

    async def balance(self, *, thorough: bool = False) -> Balance:
        """Balance the ledger now, with the journal of a gateway in the same data folder.

        Raises:
            StreamError, DatabaseError: something cannot be read.
        """
        async with contextlib.AsyncExitStack() as stack:
            storage = None
            notes = []
            if self.storage is not None:
                storage = storage_reader(self.config.data, self.config.storage)
                await storage.open()
                stack.push_async_callback(storage.close)
            else:
                notes.append("storage is not enabled")
            journals: list[JournalLedger] = []
            journal = JournalFile(self.config.data / "edge" / "journal.db")
            if journal.path.exists():
                await journal.open()
                stack.push_async_callback(journal.close)
                journals.append(journal)
            sinks = await self.sinks.positions()
            sinks.pop("storage", None)
            return await balance(
                self.stream, storage, journals, sinks=sinks, thorough=thorough, notes=notes
            )


def _version() -> str:
    try:
        return metadata.version("tidegate")
    except metadata.PackageNotFoundError:  # run from a tree that was not installed
        return "unknown"
