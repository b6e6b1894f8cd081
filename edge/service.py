"""A gateway as one service: broker, capture, journal, uplink and HTTP, begun and ended in order.

Devices are let in last, when everything behind them runs, and the journal is closed last, when
nothing can write to it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog

from bridge.commands import Hello, Welcome
from bridge.devices import DeviceIds
from edge.capture import Capture
from edge.clock_repair import ClockRepair, ClockRepairError
from edge.command_store import CommandStore, CommandStoreError
from edge.commands import Commands
from edge.config import EdgeConfig
from edge.exchanges import JournalExchanges
from edge.forecast import Forecaster
from edge.journal import Journal
from edge.journal_schema import JournalError
from edge.telemetry import Parts, add_gateway_metrics, edge_metrics, edge_status
from edge.uplink import Uplink
from edge.uplink_dialler import RELOADABLE_KEYS
from edge.uplink_journal import UplinkJournal
from edge.wear import Wear
from mqtt.broker.broker import Broker
from mqtt.broker.front import Front, FrontError
from mqtt.broker.session_store import SessionStoreError, SqliteSessionStore
from runtime.clock import Clock
from runtime.http import HttpServer, telemetry_routes
from runtime.metrics import Metrics
from runtime.native import tell_absent
from runtime.reload import Reloaded, changed_keys, sort_keys
from runtime.service import StartError

__all__ = ["EdgeService"]


class EdgeService:
    """One gateway.

    Attributes:
        port: The MQTT port in use; 0 before `start`.
        http_port: The HTTP port in use; 0 before `start` or without HTTP.
        last_status: What `status` would have said at the end of a stop; empty before one.
        metrics: What `/metrics` shows; None before `start`.
    """

    def __init__(self, config: EdgeConfig, clock: Clock) -> None:
        self.port = 0
        self.http_port = 0
        self.metrics: Metrics | None = None
        self._config = config
        self._clock = clock
        self._parts: Parts | None = None
        self._front: Front | None = None
        self.last_status: dict[str, Any] = {}
        self._http: HttpServer | None = None
        self._stops: list[Any] = []  # what was started, in that order
        self._log = structlog.get_logger(component="edge").bind(gateway=config.gateway_id)

    async def start(self) -> None:
        """Begin to serve devices.

        Raises:
            StartError: a port cannot be had, or the data folder cannot be used.
        """
        config, clock = self._config, self._clock
        journal = await self._open_journal()  # 1. the journal: readings of earlier runs are safe
        self._stops.append(journal.close)
        exchanges = JournalExchanges(journal)
        sent = UplinkJournal(journal)
        repair = await self._start_clock_repair(journal, sent)  # it is told of each commit
        self._stops.append(self._take_last_status)
        uplink = self._make_uplink(journal, sent)  # 2. the way out of it
        self._stops.append(uplink.stop)
        capture = Capture(journal, config.capture, config.journal, clock)  # 3. the way into it
        self._stops.append(capture.close)
        front = await self._start_broker(capture, exchanges)  # 4. broker and sessions, no port yet
        self._stops.append(front.stop)
        forecaster = Forecaster(journal, uplink, config.uplink, clock)
        wear = Wear(config.journal, clock, capture.set_window_s, lambda: journal.stats().readings)
        for watcher in (forecaster, wear):
            await watcher.start()
            self._stops.append(watcher.stop)
        self._parts = Parts(
            config.gateway_id, journal, capture, front.broker, uplink, forecaster, wear
        )
        self._parts.repair = repair
        self.metrics = edge_metrics(self._parts)
        await self._start_commands(front.broker, journal, sent, uplink, repair)
        await uplink.start()  # 5. out: not before it has whom to ask what the cloud holds
        await self._serve_http()  # 6. metrics and health
        try:  # 7. devices
            self.port = await front.listen()
        except FrontError as error:
            raise StartError(str(error)) from None
        self._front = front
        self._log.info("edge_started", mqtt_port=self.port, http_port=self.http_port)
        tell_absent(self._log)

    async def stop(self) -> None:
        """End in the reverse order; what is not acknowledged stays in the journal.

        1. HTTP ends. 2. The broker reads no more, sends the last acknowledgements and ends the
        connections; their wills are captured. 3. Capture commits what it has taken. 4. The uplink
        waits for its answers. 5. Clock repair notes what it knows, and the journal is closed.
        """
        while self._stops:
            try:
                await self._stops.pop()()
            except Exception:  # noqa: BLE001 - one part's fault must not leave the journal open
                self._log.exception("stop_failed")
        if self._parts is not None:
            self._log.info("edge_stopped")
        self._parts = None

    def show_in(self, metrics: Metrics) -> None:
        """Add the gateway's figures to another service's metrics, `tidegate up`'s node's."""
        assert self._parts is not None
        add_gateway_metrics(metrics, self._parts)

    async def reload(self, config: EdgeConfig) -> Reloaded:
        """Take what can be changed while it runs: access, limits, listeners, certificates, and
        where the uplink goes.

        Clients that are still allowed notice nothing.
        """
        assert self._front is not None
        assert self._parts is not None
        result = sort_keys(changed_keys(self._config, config), _reloadable)
        try:
            await self._front.reload(config.front)
        except FrontError as error:
            result.problem = str(error)
        self._parts.uplink.reconfigure(config.uplink)
        self._config = replace(
            self._config,
            host=config.host,
            port=config.port,
            broker=config.broker,
            access=config.access,
            listeners=config.listeners,
            uplink=replace(
                self._config.uplink,
                **{key: getattr(config.uplink, key) for key in RELOADABLE_KEYS},
            ),
        )
        return result

    def status(self) -> dict[str, Any]:
        """Return the state of every part, as JSON has it; empty while not running."""
        return edge_status(self._parts) if self._parts is not None else {}

    async def _take_last_status(self) -> None:
        """Keep the figures of the end: all is committed, and what was on its way answered."""
        self.last_status = self.status()

    async def _open_journal(self) -> Journal:
        path = self._config.data / "edge" / "journal.db"
        try:
            await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
            return await Journal.open(
                path, self._config.journal, self._clock, gateway=self._config.gateway_id
            )
        except JournalError as error:
            raise StartError(f"journal: {error}") from None
        except OSError as error:
            raise StartError(
                f"data folder {self._config.data}: {error.strerror or error}; "
                "choose another with --data"
            ) from None

    async def _start_broker(self, capture: Capture, exchanges: JournalExchanges) -> Front:
        store = SqliteSessionStore(self._config.data / "edge" / "sessions.db", clock=self._clock)
        front = Front(
            self._config.front,
            capture=capture,
            store=store,
            clock=self._clock,
            exchanges=exchanges,
        )
        try:
            await front.start()
        except SessionStoreError as error:
            raise StartError(f"sessions: {error}") from None
        except FrontError as error:
            raise StartError(str(error)) from None
        capture.on_much = front.broker.mark_captured
        return front

    async def _start_commands(
        self,
        broker: Broker,
        journal: Journal,
        sent: UplinkJournal,
        uplink: Uplink,
        repair: ClockRepair | None,
    ) -> None:
        """Begin to take what comes down: commands for devices' sessions, and the true time."""

        async def meet(welcome: Welcome) -> None:
            uplink.told(welcome.time_us)
            if welcome.fork is None:
                await (journal.admitted() if welcome.run else journal.meet(welcome.assigned))
                if repair is not None and journal.origin is not None:
                    await repair.parted(journal.origin, journal.epoch)
                changed = sent.met()  # last: when one of those fails, all is done again
            else:
                changed = await journal.part(welcome.epoch, welcome.fork)
            if changed:
                uplink.restart("the journal goes on in an epoch of its own")
            uplink.met(welcome.assigned)

        def hello() -> Hello:
            return Hello(journal.epoch, journal.last_seq, tuple(journal.runs), journal.origin)

        commands = Commands(
            CommandStore(self._config.data / "edge" / "commands.db"),
            self._config.commands,
            self._clock,
            hello,
            repair,
            meet,
        )
        try:
            await commands.start(broker)
        except CommandStoreError as error:
            raise StartError(f"commands: {error}") from None
        self._stops.append(commands.stop)
        uplink.attach(commands)
        assert self._parts is not None
        self._parts.commands = commands

    async def _start_clock_repair(
        self, journal: Journal, sent: UplinkJournal
    ) -> ClockRepair | None:
        if not self._config.clock.repair:
            return None
        path = self._config.data / "edge" / "clock.db"
        repair = ClockRepair(
            path,
            self._config.clock,
            self._clock,
            lambda: (journal.epoch, journal.last_seq),
            sent.owns,
        )
        try:
            await repair.start(journal.origin)
        except ClockRepairError as error:
            raise StartError(f"clock: {error}") from None
        self._stops.append(repair.stop)
        journal.on_commit(repair.committed)
        return repair

    def _make_uplink(self, journal: Journal, sent: UplinkJournal) -> Uplink:
        config = self._config

        def backlog() -> tuple[int, float]:
            lanes = journal.stats().lanes.values()
            return sum(lane.readings for lane in lanes), max(lane.oldest_age_s for lane in lanes)

        def purpose() -> str:
            """Return what tells this gateway's connections from those of another of its name."""
            parting, origin = journal.parting, journal.origin
            if parting is None and origin is None:
                return ""
            return f"-{journal.epoch if parting is None else parting.epoch:016x}"

        return Uplink(
            config.uplink,
            config.gateway_id,
            sent,
            DeviceIds(config.devices),
            self._clock,
            backlog=backlog,
            budget_path=config.data / "edge" / "uplink.json",
            snapshot_path=config.data / "edge" / "context.snapshot",
            purpose=purpose,
        )

    async def _serve_http(self) -> None:
        config = self._config.http
        if not config.enabled:
            return
        assert self.metrics is not None
        routes = telemetry_routes(
            self.metrics, health=lambda: (), ready=self._not_ready, status=self.status
        )
        http = HttpServer(routes, host=config.host, port=config.port)
        await http.start()
        self._stops.append(http.stop)
        self.http_port = http.port

    def _not_ready(self) -> Sequence[str]:
        """Return why devices cannot be served now; the cloud's absence is no reason."""
        if not self.port:
            return ("starting",)
        trouble = self._parts.capture.trouble() if self._parts is not None else ""
        return (trouble,) if trouble else ()


def _reloadable(key: str) -> bool:
    table, _, name = key.partition(".")
    if table == "uplink":
        return name in RELOADABLE_KEYS
    return table in ("access", "broker", "listeners", "host", "port")
