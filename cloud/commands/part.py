"""Commands of a node: from a publish to an outcome, over gateways that come, go and swap devices.

    publish ──▶ commands.db ──PUBACK──▶ publisher
                    │ the gateway that last carried the device
                    ▼
    tidegate/v1/down/{gateway} ──▶ held there ──▶ the device's session, QoS 1 or 2
                    ▲                                    │ acknowledged
    commands.db ◀── tidegate/v1/ctl/{gateway} ◀──────────┘
        └──▶ tidegate/v1/outcome/{device}, the response topic, GET /api/v1/commands

Invariants:
- A publisher is acknowledged once its command is in the file; a gateway, once its word is.
- A command id is one command, whoever sends it how often.
- A command is sent until its gateway says that it has it; what is final never changes again.
- Without an outcome are at most `commands.waiting_max`; more are refused, not dropped.

docs/commands.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog
from fastapi import APIRouter

from bridge.commands import (
    CTL_PREFIX,
    DELIVERED,
    DOWN_PREFIX,
    EXPIRED,
    FINAL,
    HELD,
    ID_BYTES_MAX,
    NO_DEVICE,
    NO_EXPIRY,
    Command,
    Correction,
    Hello,
    Message,
    Outcome,
    Recall,
    Welcome,
    open_message,
    seal_message,
)
from bridge.devices import DeviceIds
from bridge.errors import BatchError
from cloud.commands.api import command_routes
from cloud.commands.carriers import CarriersSink
from cloud.commands.store import WAITING, CommandRefused, CommandRow, CommandStore
from cloud.config import CloudConfig
from cloud.corrections import CorrectionLog
from cloud.database import DatabaseError
from cloud.parts import CloudNode
from cloud.query_time import iso
from cloud.sinks.contract import Sink, SinkUnavailable
from cloud.stream.contract import StreamError
from mqtt.broker.access.rules import speaks_for
from mqtt.broker.broker import Outgoing
from mqtt.broker.seams import PublishRun
from mqtt.errors import MqttError
from mqtt.frames import parse_publishes
from mqtt.packets import PUBLISH
from mqtt.primitives import encode_variable_integer
from mqtt.properties import (
    CORRELATION_DATA,
    MESSAGE_EXPIRY_INTERVAL,
    RESPONSE_TOPIC,
    TOPIC_ALIAS,
    USER_PROPERTY,
    Properties,
    decode_properties,
    encode_property_block,
)
from mqtt.reason_codes import ReasonCode
from runtime.logs import limited
from runtime.service import StartError

__all__ = ["OUTCOME_PREFIX", "CommandsPart"]

log = structlog.get_logger(component="commands")

OUTCOME_PREFIX = "tidegate/v1/outcome/"
ID_PROPERTY = "tidegate-command-id"
REFUSED = "refused"
_LOOK_S = 1.0
_FORGET_S = 60.0
_LOG_EVERY_S = 10.0
_RETRY_S = 0.5


class CommandsPart:
    """Commands, plugged into a node (cloud/parts.py)."""

    def __init__(self, config: CloudConfig) -> None:
        """Prepare; nothing is opened before the node starts its sinks."""
        self._config = config.commands
        self._node_id = config.node_id
        self._ids = DeviceIds(config.commands.topics)
        self._store = CommandStore(config.data / "cloud" / "commands.db")
        self._corrections = CorrectionLog(config.data / "cloud" / "corrections.db")
        # told of each correction that storage has applied
        self.on_corrected: Callable[[str, Correction], Awaitable[None]] = _nothing
        self._carriers = CarriersSink(self._store, self._on_moved)
        self._open: dict[str, CommandRow] = {}  # without an outcome, oldest first
        self._sent: dict[str, tuple[str, float]] = {}  # by id: gateway, loop time
        self._ready: set[str] = set()  # gateways that said hello and still listen
        self._recalls: set[tuple[str, str]] = set()  # (gateway, id) not confirmed
        self._runs: deque[PublishRun] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._node: CloudNode | None = None
        self.counts: dict[str, int] = {}  # outcomes by state since the start

    # ---- a part of a node ------------------------------------------------------------------------

    def sinks(self, node: CloudNode) -> Sequence[Sink]:  # noqa: ARG002 - the protocol's
        """Return the sink that follows which gateway carries which device."""
        return [self._carriers] if self._config.enabled else []

    def router(self) -> APIRouter | None:
        """Return the API's paths; None without commands."""
        if not self._config.enabled:
            return None
        return command_routes(self, self._config.payload_bytes_max)

    async def start(self, node: CloudNode) -> None:
        """Take commands, and what gateways say, from now on.

        Raises:
            StartError: corrections.db cannot be used.
        """
        self._node = node
        try:
            await self._corrections.open()
            await self._correct_storage(node)
        except DatabaseError as error:
            await self._corrections.close()
            raise StartError(f"corrections: {error}") from None
        if self._config.enabled:
            await self._resume(node)
        node.capture.commands = self
        self._task = asyncio.create_task(self._work(), name="commands")

    async def _correct_storage(self, node: CloudNode) -> None:
        """Give storage all corrections there are: one put back from a backup lacks the newest."""
        if node.storage is None:
            return
        for gateway, correction in await self._corrections.all():
            try:
                await node.storage.correct(gateway, correction)
            except SinkUnavailable as error:
                raise DatabaseError(str(error)) from error

    async def _resume(self, node: CloudNode) -> None:
        for row in await self._store.unfinished():
            self._open[row.command_id] = row
        self._recalls = set(await self._store.recalls())
        node.metrics.gauge(
            "tidegate_commands_waiting", "Commands without an outcome.",
            lambda: float(len(self._open)),
        )  # fmt: skip
        node.metrics.counter(
            "tidegate_commands_outcomes",
            "Commands by outcome.",
            lambda: {(state,): float(count) for state, count in self.counts.items()},
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
        self._task = None
        await self._corrections.close()

    # ---- the capture's side ----------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """True while no more commands can be kept."""
        return len(self._open) >= self._config.waiting_max or self._stopping

    def take(self, run: PublishRun) -> None:
        """Take commands, or a gateway's words; settled once they are in the file."""
        self._runs.append(run)
        self._wake.set()

    # ---- the API's side --------------------------------------------------------------------------

    async def submit(
        self, topic: str, payload: bytes, *, qos: int, expiry_s: int | None, command_id: str
    ) -> CommandRow:
        """Take a command that came by HTTP; durable on return.

        Raises:
            CommandRefused: it is not taken, and why.
            DatabaseError: the file cannot be written.
        """
        if self.full:
            raise CommandRefused(ReasonCode.QUOTA_EXCEEDED, "too many commands wait; see waiting")
        properties: Properties = {}
        if command_id:
            properties[USER_PROPERTY] = [(ID_PROPERTY, command_id)]
        if expiry_s is not None:
            properties[MESSAGE_EXPIRY_INTERVAL] = expiry_s
        row = self._row(topic, payload, qos, properties)
        (fresh,) = await self._store.add([row])
        if not fresh:
            known = await self._store.find(row.command_id)
            return known or row
        self._open[row.command_id] = row
        self._wake.set()
        return row

    async def find(self, command_id: str) -> CommandRow | None:
        """Return one command; raises DatabaseError."""
        return await self._store.find(command_id)

    async def newest(self, device: str | None, state: str | None, limit: int) -> list[CommandRow]:
        """Return commands, newest first; raises DatabaseError."""
        return await self._store.newest(device, state, limit)

    # ---- the loop --------------------------------------------------------------------------------

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        forget_at_s = loop.time()
        while not self._stopping or self._runs:
            if not self._runs:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._wake.wait()
            self._wake.clear()
            try:
                while self._runs:
                    await self._handle(self._runs[0])
                    self._runs.popleft()
                if self._config.enabled:
                    await self._look()
                if self._config.enabled and loop.time() >= forget_at_s:
                    forget_at_s = loop.time() + _FORGET_S
                    kept_us = round(self._config.kept_s * 1e6)
                    await self._store.forget(self._now_us() - kept_us)
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
            publishes = parse_publishes(run.frames, run.client.protocol_version)
        except MqttError as error:
            log.warning("unreadable_run", client_id=run.client.client_id, error=str(error))
            run.settled(run, ReasonCode.UNSPECIFIED_ERROR)
            self._node.capture.release(len(run.frames))
            return
        codes: list[int] = []
        rows: list[CommandRow] = []
        for first, topic, _, block, payload in publishes:
            name = topic.decode()
            if name.startswith(CTL_PREFIX):
                gateway = name[len(CTL_PREFIX) :]
                if speaks_for(gateway, run.client):
                    codes.append(await self._hear(gateway, payload))
                else:
                    codes.append(ReasonCode.NOT_AUTHORIZED)
                    limited(log, ("stranger", gateway), _LOG_EVERY_S).warning(
                        "control_refused", gateway=gateway, client_id=run.client.client_id,
                        error="not a client of that gateway",
                    )  # fmt: skip
                continue
            try:
                rows.append(self._row(name, payload, first >> 1 & 3, _properties(block)))
                codes.append(0)
            except CommandRefused as error:
                limited(log, "refused", _LOG_EVERY_S).warning("command_refused", error=str(error))
                codes.append(error.code)
                if run.client.protocol_version < 5:  # it could only ever send it again
                    codes[-1] = 0
                    await self._publish_outcome(self._refused(name, str(error)))
        fresh = await self._store.add(rows) if rows else []
        for row, is_new in zip(rows, fresh, strict=True):
            if is_new:
                self._open[row.command_id] = row
        run.settled(run, codes if any(codes) else 0)
        self._node.capture.release(len(run.frames))

    def _row(self, topic: str, payload: bytes, qos: int, properties: Properties) -> CommandRow:
        """Return a command as it is kept; raises CommandRefused."""
        device = self._ids.device(topic, "")
        if not device:
            raise CommandRefused(
                ReasonCode.TOPIC_NAME_INVALID, f"'{topic}' names no device by commands.topics"
            )
        most = self._config.payload_bytes_max
        if len(payload) > most:
            raise CommandRefused(
                ReasonCode.QUOTA_EXCEEDED,
                f"'{topic}': {len(payload)} bytes, commands.payload_bytes_max is {most}",
            )
        users: list[tuple[str, str]] = properties.get(USER_PROPERTY, [])
        command_id = next((text for name, text in users if name == ID_PROPERTY), None)
        if command_id is None:
            command_id = secrets.token_hex(8)
            users = [*users, (ID_PROPERTY, command_id)]
        if not 0 < len(command_id.encode()) <= ID_BYTES_MAX:
            raise CommandRefused(
                ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
                f"'{topic}': a command id has 1 to {ID_BYTES_MAX} bytes",
            )
        kept: Properties = {**properties, USER_PROPERTY: users}
        expiry_s = kept.pop(MESSAGE_EXPIRY_INTERVAL, self._config.expiry_s)
        kept.pop(TOPIC_ALIAS, None)
        now_us = self._now_us()
        return CommandRow(
            command_id, device, topic, payload, max(1, qos), encode_property_block(kept, PUBLISH),
            now_us, now_us + round(expiry_s * 1e6), WAITING, "", "", now_us,
            kept.get(RESPONSE_TOPIC, ""),
        )  # fmt: skip

    def _refused(self, topic: str, detail: str) -> CommandRow:
        now_us = self._now_us()
        device = self._ids.device(topic, "") or "unknown"
        return CommandRow("", device, topic, b"", 1, b"", now_us, now_us, REFUSED, "", detail,
                          now_us, "")  # fmt: skip

    # ---- what gateways say -----------------------------------------------------------------------

    async def _hear(self, gateway: str, payload: bytes) -> int:
        """Take a gateway's word; return the reason code that answers it."""
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
            await self._welcome(gateway, message)
        elif isinstance(message, Outcome):
            if self._config.enabled:
                await self._take_outcome(gateway, message)
        elif isinstance(message, Correction):
            await self._correct(gateway, message)
        else:
            return ReasonCode.PAYLOAD_FORMAT_INVALID
        return 0

    async def _welcome(self, gateway: str, hello: Hello) -> None:
        """A gateway listens: tell it what is known of its journal; all it lacks goes out again."""
        assert self._node is not None
        held = await self._node.stream.held(gateway, hello.epoch)
        highest = held[-1][1] if held else 0
        if highest > hello.last_seq:
            log.error("journal_is_older", gateway=gateway, epoch=f"{hello.epoch:016x}",
                      last_seq=hello.last_seq, held_seq=highest)  # fmt: skip
        self._ready.add(gateway)
        self._sent = {one: sent for one, sent in self._sent.items() if sent[0] != gateway}
        await self._send(gateway, Welcome(hello.epoch, highest, self._now_us()))
        for target, command_id in self._recalls:
            if target == gateway:
                await self._send(gateway, Recall(command_id))

    async def _correct(self, gateway: str, correction: Correction) -> None:
        """Have storage correct the times of readings; durable on return.

        One for readings that nobody here has seen is kept all the same: they may yet come.
        """
        assert self._node is not None
        if not await self._node.stream.held(gateway, correction.epoch):
            log.warning("correction_of_unknown_epoch", gateway=gateway,
                        epoch=f"{correction.epoch:016x}", first_seq=correction.first_seq,
                        last_seq=correction.last_seq)  # fmt: skip
        await self._corrections.add(gateway, correction)
        storage = self._node.storage
        if storage is None:
            return
        try:
            rows = await storage.correct(gateway, correction)
        except SinkUnavailable as error:
            raise DatabaseError(str(error)) from error
        log.info("times_corrected", gateway=gateway, first_seq=correction.first_seq,
                 last_seq=correction.last_seq, seconds=correction.delta_us / 1e6,
                 rows=rows)  # fmt: skip
        if rows:
            await self.on_corrected(gateway, correction)

    async def _take_outcome(self, gateway: str, outcome: Outcome) -> None:
        command_id = outcome.command_id
        if outcome.state != HELD and (gateway, command_id) in self._recalls:
            await self._store.recalled(gateway, command_id)
            self._recalls.discard((gateway, command_id))
        row = self._open.get(command_id)
        if row is None or row.state in FINAL:
            return  # it is settled, or nobody here knows it
        elsewhere = self._carriers.carriers.get(row.device) not in (None, gateway)
        if outcome.state in (DELIVERED, EXPIRED) or (outcome.state == NO_DEVICE and not elsewhere):
            if row.gateway not in ("", gateway):  # another has it as well
                await self._recall(row.gateway, command_id)
            row.gateway = gateway
            await self._finish(row, outcome.state, outcome.detail)
        elif outcome.state == HELD:
            if row.gateway == gateway:
                row.state, row.changed_us = HELD, self._now_us()
                await self._store.save([row])
            else:
                await self._recall(gateway, command_id)
        elif row.gateway == gateway:  # recalled there, or the device is elsewhere now
            row.state, row.changed_us = WAITING, self._now_us()
            self._sent.pop(command_id, None)
            await self._store.save([row])

    def _on_moved(self, _devices: Sequence[str]) -> None:
        self._wake.set()

    # ---- what is due -----------------------------------------------------------------------------

    async def _look(self) -> None:
        """Send, send again, move, expire and tell whatever is due."""
        now_us = self._now_us()
        held_us = round(self._config.kept_s * 1e6)
        for row in list(self._open.values()):
            if row.state not in (WAITING, HELD):
                await self._tell(row)
            elif row.state == HELD and row.expires_us + held_us > now_us:
                await self._follow_device(row)
            elif row.expires_us <= now_us:
                await self._finish(row, EXPIRED, f"not delivered by {iso(row.expires_us)}")
            else:
                await self._dispatch(row, now_us)
        assert self._node is not None
        if not self.full:
            self._node.capture.relieve()

    async def _follow_device(self, row: CommandRow) -> None:
        """Move a command that a gateway holds for a device which another one carries now."""
        carrier = self._carriers.carriers.get(row.device, row.gateway)
        if carrier == row.gateway:
            return
        before, row.gateway, row.state = row.gateway, carrier, WAITING
        row.changed_us = self._now_us()
        self._sent.pop(row.command_id, None)
        await self._recall(before, row.command_id, row)

    async def _recall(self, gateway: str, command_id: str, row: CommandRow | None = None) -> None:
        self._recalls.add((gateway, command_id))
        await self._store.save([row] if row is not None else [], [(gateway, command_id)])
        await self._send(gateway, Recall(command_id))

    async def _dispatch(self, row: CommandRow, now_us: int) -> None:
        """Send a waiting command if its gateway listens and has not just been sent it."""
        assert self._node is not None
        gateway = self._carriers.carriers.get(row.device)
        if gateway is None:
            await self._finish(row, NO_DEVICE, "no gateway has ever carried it")
            return
        if gateway == self._node_id:  # connected here: routed when it was published
            known = self._node.broker.has_subscribers(row.topic)
            detail = "by this node's own broker, not confirmed" if known else "nobody subscribes"
            row.gateway = gateway
            await self._finish(row, DELIVERED if known else NO_DEVICE, detail)
            return
        now_s = asyncio.get_running_loop().time()
        sent = self._sent.get(row.command_id)
        if sent and sent[0] == gateway and now_s - sent[1] < self._config.retry_s:
            return
        if gateway not in self._ready:
            return
        if row.gateway != gateway:
            row.gateway = gateway
            await self._store.save([row])
        left_s = max(1, min(NO_EXPIRY - 1, round((row.expires_us - now_us) / 1e6)))
        command = Command(row.command_id, row.device, row.topic, row.payload, row.qos,
                          row.properties, left_s)  # fmt: skip
        self._sent[row.command_id] = (gateway, now_s)
        await self._send(gateway, command)

    async def _send(self, gateway: str, message: Message) -> None:
        """Send something down, if the gateway listens."""
        assert self._node is not None
        if gateway not in self._ready:
            return
        topic = DOWN_PREFIX + gateway
        if not await self._node.broker.publish_many([Outgoing(topic, seal_message(message), 1)]):
            self._ready.discard(gateway)

    async def _finish(self, row: CommandRow, state: str, detail: str) -> None:
        row.state, row.detail, row.changed_us, row.told = state, detail, self._now_us(), 0
        self._sent.pop(row.command_id, None)
        self.counts[state] = self.counts.get(state, 0) + 1
        await self._store.save([row])
        await self._tell(row)

    async def _tell(self, row: CommandRow) -> None:
        """Publish an outcome, and note that it was."""
        await self._publish_outcome(row)
        row.told = 1
        await self._store.save([row])
        self._open.pop(row.command_id, None)

    async def _publish_outcome(self, row: CommandRow) -> None:
        assert self._node is not None
        said = {
            "id": row.command_id,
            "device": row.device,
            "topic": row.topic,
            "outcome": row.state,
            "gateway": row.gateway,
            "detail": row.detail,
            "time": iso(row.changed_us),
        }
        payload = json.dumps(said).encode()
        messages = [Outgoing(OUTCOME_PREFIX + row.device, payload, 1)]
        if row.response_topic:
            messages.append(Outgoing(row.response_topic, payload, 1, properties=_correlation(row)))
        for message in messages:
            try:
                await self._node.broker.publish_many([message])
            except MqttError as error:  # a response topic that is none
                log.warning("outcome_not_told", topic=message.topic_name, error=str(error))
        log.info("command_outcome", **said)


async def _nothing(_gateway: str, _correction: Correction) -> None:
    return None


def _properties(block: bytes) -> Properties:
    """Return the properties of a publish; raises CommandRefused when they cannot be read."""
    if not block:
        return {}
    data = encode_variable_integer(len(block)) + block
    try:
        return decode_properties(data, 0, len(data), PUBLISH)[0]
    except MqttError as error:
        raise CommandRefused(error.reason_code, str(error)) from None


def _correlation(row: CommandRow) -> bytes:
    """Return the correlation data of the command, as a property block for its answer."""
    kept = _properties(row.properties)
    return encode_property_block(
        {key: kept[key] for key in (CORRELATION_DATA,) if key in kept}, PUBLISH
    )
