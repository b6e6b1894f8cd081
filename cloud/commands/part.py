"""Commands of a node: from a publish to an outcome, over gateways that come, go and swap devices.

    publish ──▶ store ──PUBACK──▶ publisher
                  │ the gateway that last carried the device
                  ▼
    tidegate/v1/down/{gateway} ──▶ held there ──▶ the device's session, QoS 1 or 2
                  ▲                                    │ acknowledged
    store ◀── tidegate/v1/ctl/{gateway} ◀──────────────┘
        └──▶ tidegate/v1/outcome/{device}, the response topic, GET /api/v1/commands

The store is commands.db on a node that is alone, buckets that all nodes share in a cluster
(cloud/cluster/commands.py); what is done with it is the same.

Invariants:
- A publisher is acknowledged once its command is in the store; a gateway, once its word is.
- A command id is one command, whoever sends it how often.
- Without an outcome are at most `commands.waiting_max`; more are refused, not dropped.

docs/commands.md.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Collection, Sequence
from functools import partial

import structlog
from fastapi import APIRouter

from bridge.commands import Correction, Hello, Outcome, open_message
from bridge.errors import BatchError
from cloud.cluster.commands import ClusterCommandStore
from cloud.cluster.connection import ClusterError
from cloud.cluster.control import Control
from cloud.cluster.corrections import ClusterCorrections
from cloud.commands.api import command_routes
from cloud.commands.carriers import CarriersSink
from cloud.commands.clocks import Clocks, Shown
from cloud.commands.contract import CommandRefused, CommandRow, CommandStore
from cloud.commands.dispatch import Dispatch
from cloud.commands.hellos import Hellos
from cloud.commands.intake import ID_PROPERTY, Intake, TakenRun
from cloud.commands.outcomes import publish_outcome
from cloud.commands.store import SqliteCommandStore
from cloud.config import CloudConfig
from cloud.corrections import CorrectionKeeper, CorrectionLog
from cloud.database import DatabaseError
from cloud.parts import CloudNode
from cloud.sinks.contract import Sink
from cloud.stream.contract import StreamError
from cloud.stream.jetstream.engine import JetStreamStream
from mqtt.broker.access.rules import speaks_for
from mqtt.broker.broker import Outgoing
from mqtt.broker.seams import PublishRun
from mqtt.errors import MqttError
from mqtt.properties import MESSAGE_EXPIRY_INTERVAL, USER_PROPERTY, Properties
from mqtt.reason_codes import ReasonCode
from runtime.logs import limited
from runtime.service import StartError

__all__ = ["CommandsPart"]

log = structlog.get_logger(component="commands")

_LOOK_S = 1.0
_FORGET_S = 60.0
_LOG_EVERY_S = 10.0
_RETRY_S = 0.5
_APPLY_S = 0.1


class CommandsPart:
    """Commands, plugged into a node (cloud/parts.py)."""

    def __init__(self, config: CloudConfig) -> None:
        """Prepare; nothing is opened before the node starts its sinks."""
        self._config = config.commands
        self._folder = config.data / "cloud"
        self._node_id = config.node_id
        self.on_corrected: Shown = _nothing  # told of each correction that storage has
        self._control: Control | None = None  # of a cluster
        self._store: CommandStore
        self._keeper: CorrectionKeeper
        self._carriers: CarriersSink
        self._clocks: Clocks
        self._dispatch: Dispatch
        self._intake: Intake
        self._hellos: Hellos
        self._runs: deque[PublishRun] = deque()
        self._head: TakenRun | None = None  # what the first of them says, once it was read
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._node: CloudNode | None = None

    # ---- a part of a node ------------------------------------------------------------------------

    def sinks(self, node: CloudNode) -> Sequence[Sink]:
        """Return the sink that follows which gateway carries which device."""
        if isinstance(node.stream, JetStreamStream):
            connection, layout = node.stream.connection, node.stream.layout
            control = self.control(node.stream)
            self._store = ClusterCommandStore(
                connection, layout, control, self._node_id, self._config.kept_s
            )
            self._keeper = ClusterCorrections(control)
        else:
            self._store = SqliteCommandStore(self._folder / "commands.db", self._node_id)
            self._keeper = CorrectionLog(self._folder / "corrections.db")
        self._carriers = CarriersSink(self._store, self._on_moved)
        self._intake = Intake(self._config, node.clock)
        self._dispatch = Dispatch(
            self._config, self._store, self._carriers, node.broker, node.clock, self._wake.set
        )
        return [self._carriers] if self._config.enabled else []

    def control(self, stream: JetStreamStream) -> Control:
        """Return the bucket of what a cluster's nodes have to know; this part starts and ends it.

        Other parts may have kinds of keys of their own in it (`Control.on`).
        """
        if self._control is None:
            self._control = Control(stream.connection, stream.layout)
        return self._control

    def router(self) -> APIRouter | None:
        """Return the API's paths; None without commands."""
        if not self._config.enabled:
            return None
        return command_routes(self, self._config.payload_bytes_max)

    async def start(self, node: CloudNode) -> None:
        """Take commands, and what gateways say, from now on.

        Raises:
            StartError: what is kept cannot be used.
        """
        self._node = node
        self._hellos = Hellos(node, self._dispatch)
        self._clocks = Clocks(
            self._keeper, node.stream, node.storage, self.on_corrected, self._wake.set
        )
        try:
            if self._control is not None:
                await self._control.start()
            await self._clocks.start()
            if self._config.enabled:
                await self._dispatch.resume()
                self._register(node)
        except (ClusterError, DatabaseError) as error:
            await self._release()
            raise StartError(f"commands: {error}") from None
        node.capture.commands = self
        self._task = asyncio.create_task(self._work(), name="commands")

    def _register(self, node: CloudNode) -> None:
        node.metrics.gauge(
            "tidegate_commands_waiting", "Commands without an outcome.",
            lambda: float(len(self._dispatch.open)),
        )  # fmt: skip
        node.metrics.counter(
            "tidegate_commands_outcomes",
            "Commands by outcome, as noted by this node.",
            lambda: {(state,): float(count) for state, count in self._dispatch.counts.items()},
            ("outcome",),
        )

    async def stop(self) -> None:
        """Settle what was taken and end; harmless when not started."""
        if self._task is None:
            return
        self._stopping = True
        assert self._node is not None
        self._node.capture.commands = None
        self._wake.set()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._hellos.stop()
        self._task = None
        await self._release()

    async def _release(self) -> None:
        await self._clocks.stop()
        if self._control is not None:
            await self._control.stop()

    # ---- the capture's side ----------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """True while no more commands can be kept."""
        return len(self._dispatch.open) >= self._config.waiting_max or self._stopping

    def take(self, run: PublishRun) -> None:
        """Take commands, or a gateway's words; settled once they are in the store."""
        self._runs.append(run)
        self._wake.set()

    # ---- the API's side --------------------------------------------------------------------------

    async def submit(
        self, topic: str, payload: bytes, *, qos: int, expiry_s: int | None, command_id: str
    ) -> CommandRow:
        """Take a command that came by HTTP; durable on return.

        As with one that is published, whoever is connected to the cloud itself gets it at once.

        Raises:
            CommandRefused: it is not taken, and why.
            DatabaseError: the store cannot be written.
        """
        assert self._node is not None
        if self.full:
            raise CommandRefused(ReasonCode.QUOTA_EXCEEDED, "too many commands wait; see waiting")
        properties: Properties = {}
        if command_id:
            properties[USER_PROPERTY] = [(ID_PROPERTY, command_id)]
        if expiry_s is not None:
            properties[MESSAGE_EXPIRY_INTERVAL] = expiry_s
        row, body = self._intake.command(topic, payload, qos, properties)
        ((row, fresh),) = await self._store.add([(row, body)])
        if fresh:
            message = Outgoing(topic, payload, row.qos, False, body.properties, expiry_s)
            await self._node.broker.publish_many([message])
        self._dispatch.take([row])
        return row

    async def find(self, command_id: str) -> CommandRow | None:
        """Return one command; raises DatabaseError."""
        return await self._store.find(command_id)

    async def newest(
        self, device: str | None, state: str | None, limit: int
    ) -> Sequence[CommandRow]:
        """Return commands, newest first; raises DatabaseError."""
        return await self._store.newest(device, state, limit)

    # ---- the loop --------------------------------------------------------------------------------

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        forget_at_s = loop.time()
        look_at_s = loop.time()
        while not self._stopping or self._runs:
            if not self._runs:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(look_at_s):
                        await self._wake.wait()
            self._wake.clear()
            try:
                while self._runs:
                    await self._handle(self._runs[0])
                    self._runs.popleft()
                    self._head = None
                everywhere = loop.time() >= look_at_s
                if everywhere:
                    look_at_s = loop.time() + _LOOK_S
                if self._config.enabled:
                    await self._dispatch.look(everywhere=everywhere)
                    if self._node is not None and not self.full:
                        self._node.capture.relieve()
                if self._config.enabled and loop.time() >= forget_at_s:
                    forget_at_s = loop.time() + _FORGET_S
                    kept_us = round(self._config.kept_s * 1e6)
                    await self._store.forget(self._now_us() - kept_us)
                # last, and some at a time: commands do not wait for storage
                await self._clocks.apply_heard(for_s=_APPLY_S)
            except (DatabaseError, StreamError) as error:
                limited(log, "commands", _LOG_EVERY_S).error("commands_failed", error=str(error))
                await self._rest()
            except Exception:  # noqa: BLE001 - the task's root: what failed is tried again
                limited(log, "commands_broke", _LOG_EVERY_S).exception("commands_broke")
                await self._rest()

    async def _rest(self) -> None:
        """Pause after a failure; when stopping, what could not be kept stays unanswered."""
        if self._stopping:
            self._runs.clear()
        else:
            await asyncio.sleep(_RETRY_S)

    def _now_us(self) -> int:
        assert self._node is not None
        return self._node.clock.wall_us()

    async def _handle(self, run: PublishRun) -> None:
        """Take one run: commands of a publisher, or words of a gateway."""
        assert self._node is not None
        try:
            taken = self._head = self._head or self._intake.read(run)
        except MqttError as error:
            log.warning("unreadable_run", client_id=run.client.client_id, error=str(error))
            run.settled(run, ReasonCode.UNSPECIFIED_ERROR)
            self._node.capture.release(len(run.frames))
            return
        hellos: list[tuple[str, Hello]] = []
        for place, gateway, payload in taken.words:
            if speaks_for(gateway, run.client):
                taken.codes[place] = await self._hear(gateway, payload, hellos)
            else:
                taken.codes[place] = ReasonCode.NOT_AUTHORIZED
                limited(log, ("stranger", gateway), _LOG_EVERY_S).warning(
                    "control_refused", gateway=gateway, client_id=run.client.client_id,
                    error="not a client of that gateway",
                )  # fmt: skip
        await self._answer_refused(run, taken)
        codes = taken.codes
        if taken.commands:
            try:
                added = await self._store.add(taken.commands)
            except CommandRefused as error:  # no room: it may be sent again
                limited(log, "full", _LOG_EVERY_S).warning("command_refused", error=str(error))
                codes = [code or error.code for code in codes]
            else:
                self._dispatch.take(row for row, _ in added)
        if hellos:
            self._hellos.take(hellos, run.time_us, partial(self._settle, run, codes))
        else:
            self._settle(run, codes)

    def _settle(self, run: PublishRun, codes: Sequence[int]) -> None:
        assert self._node is not None
        run.settled(run, codes if any(codes) else 0)
        self._node.capture.release(len(run.frames))

    async def _answer_refused(self, run: PublishRun, taken: TakenRun) -> None:
        """Say why commands are refused; a 3.1.1 publisher hears it by an outcome."""
        assert self._node is not None
        for place, topic, error in taken.refused:
            limited(log, "refused", _LOG_EVERY_S).warning("command_refused", error=str(error))
            if run.client.protocol_version >= 5:
                continue
            taken.codes[place] = 0  # with another it could only ever send it again
            if not taken.refusals_told:
                row = self._intake.refusal(topic, str(error))
                await publish_outcome(self._node.broker, row, None)
        taken.refusals_told = True

    # ---- what gateways say -----------------------------------------------------------------------

    async def _hear(self, gateway: str, payload: bytes, hellos: list[tuple[str, Hello]]) -> int:
        """Take a gateway's word, but for a hello; return the reason code that answers it."""
        if not gateway or "/" in gateway:
            return ReasonCode.TOPIC_NAME_INVALID
        try:
            message = open_message(payload)
        except BatchError as error:
            limited(log, ("word", gateway), _LOG_EVERY_S).warning(
                "control_refused", gateway=gateway, error=str(error)
            )
            return ReasonCode.PAYLOAD_FORMAT_INVALID
        if isinstance(message, Hello):
            hellos.append((gateway, message))
        elif isinstance(message, Outcome):
            if self._config.enabled:
                await self._dispatch.hear(gateway, message)
        elif isinstance(message, Correction):
            await self._clocks.take(gateway, message)
        else:
            return ReasonCode.PAYLOAD_FORMAT_INVALID
        return 0

    def _on_moved(self, devices: Collection[str]) -> None:
        self._dispatch.moved(devices)


def _nothing(gateway: str, correction: Correction, *, known: bool) -> None:  # noqa: ARG001
    return None
