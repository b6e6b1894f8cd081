"""A cloud that keeps commands, gateways that hold them, devices that get them; no network.

The parts are the real ones with their real files; between them stand queues from which a test
takes what is lost. The truth is what devices were given and what was told of each command, noted as
it happened. What may come twice is noted as well: docs/commands.md.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bridge.commands import (
    CTL_PREFIX,
    DELIVERED,
    DOWN_PREFIX,
    FINAL,
    Hello,
    Outcome,
    Welcome,
    open_message,
)
from bridge.partition import partition_of
from cloud.commands.carriers import CarriersSink
from cloud.commands.config import CommandsConfig as CloudCommandsConfig
from cloud.commands.contract import CommandRefused
from cloud.commands.dispatch import Dispatch
from cloud.commands.intake import ID_PROPERTY, Intake
from cloud.commands.outcomes import OUTCOME_PREFIX
from cloud.commands.store import SqliteCommandStore
from edge.command_store import CommandStore
from edge.config import CommandsConfig
from mqtt.broker.broker import Outgoing
from mqtt.properties import MESSAGE_EXPIRY_INTERVAL, USER_PROPERTY
from runtime.clock import ManualClock
from tests.kit.command_devices import LASTING, CountedCommands, Devices

__all__ = ["CommandSite", "Gateway"]

DEVICES = (LASTING, "d2")
STREAM_EPOCH = 5


class Gateway:
    """One gateway: its file, its devices' sessions, its clock, and its way up."""

    def __init__(self, site: CommandSite, name: str) -> None:
        self.site = site
        self.name = name
        self.clock = ManualClock()
        self.devices = Devices()
        self.linked = False
        self.up: deque[tuple[bytes, Callable[[int], None]]] = deque()
        self.boots = 0

    async def start(self, folder: Path) -> None:
        """Start on the files in a folder."""
        self.folder = folder
        self.commands = CountedCommands(
            CommandStore(folder / "commands.db"),
            CommandsConfig(wait_s=5),
            self.clock,
            lambda: Hello(7, 1),
        )
        await self.commands.start(self.devices)
        if self.linked:
            self.commands.linked(self)

    def say(self, payload: bytes, answered: Callable[[int], None]) -> bool:
        """Take what the gateway says; it waits for the cloud to look."""
        self.up.append((payload, answered))
        return True

    def link(self, up: bool) -> None:
        """Connect, or cut the link with all that is on it."""
        if self.linked:
            self.commands.unlinked()
        self.linked = up
        self.up.clear()
        if up:
            self.commands.linked(self)

    async def turn(self) -> None:
        """Let it look at everything once."""
        await self.commands.look()

    async def restart(self, folder: Path, *, crashed: bool = False) -> None:
        """Stop, in order or not, and start on files in a folder; sessions that do not last end."""
        if crashed:
            shutil.copytree(self.folder, folder)
        kept = dict(self.devices.kept)
        await self.commands.stop()
        self.up.clear()
        self.devices.offered.clear()
        if crashed:
            self.devices.kept = kept
        await self.start(folder)


class CommandSite:
    """A cloud and two gateways below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()  # the cloud's: it is right
        self.gateways = {name: Gateway(self, name) for name in ("gw-1", "gw-2")}
        self.carried = dict.fromkeys(DEVICES, "gw-1")
        self.sent: dict[str, str] = {}  # device by id
        self.got: Counter[str] = Counter()
        self.told: dict[str, set[str]] = {}
        self.excused: set[str] = set()  # may come twice: their session or card was lost
        self._lost: dict[str, set[str]] = {}  # by gateway: acknowledged, its store does not know
        self._made = 0

    def fresh_folder(self) -> Path:
        """Return the name of a folder that is not there."""
        self._made += 1
        return self.folder / f"files-{self._made}"

    async def start(self) -> None:
        """Start everything; devices are at the first gateway."""
        await self.start_cloud(self.fresh_folder())
        for gateway in self.gateways.values():
            await gateway.start(self.fresh_folder())
            gateway.link(up=True)
        for device in DEVICES:
            self.gateways["gw-1"].devices.known.add(device)
            await self.carry(device, "gw-1")

    # ---- the cloud

    async def start_cloud(self, folder: Path) -> None:
        """Start the cloud on the files in a folder."""
        self.cloud_folder = folder
        config = CloudCommandsConfig(retry_s=1, kept_s=1e9)
        self.store = SqliteCommandStore(folder / "commands.db", "cloud")
        self.carriers = CarriersSink(self.store, self._on_moved)
        broker: Any = self
        self.dispatch = Dispatch(
            config, self.store, self.carriers, broker, self.clock, lambda: None
        )
        self.intake = Intake(config, self.clock)
        await self.carriers.open(STREAM_EPOCH)
        await self.carriers.cursors()
        await self.dispatch.resume()

    def _on_moved(self, devices: Collection[str]) -> None:
        self.dispatch.moved(devices)

    async def crash_cloud(self) -> None:
        """The node dies, with every connection; the next one has its files."""
        after = self.fresh_folder()
        shutil.copytree(self.cloud_folder, after)
        await self.carriers.close()
        await self.start_cloud(after)
        for gateway in self.gateways.values():
            if gateway.linked:
                gateway.link(up=True)

    def has_subscribers(self, topic_name: str, *, here: bool = False) -> bool:
        """Be the node's broker: gateways that are linked listen."""
        gateway = self.gateways.get(topic_name.removeprefix(DOWN_PREFIX))
        return here and gateway is not None and gateway.linked

    async def publish_many(self, messages: Iterable[Outgoing]) -> int:
        """Be the node's broker: what goes down, and what is told."""
        for message in messages:
            name = message.topic_name
            if name.startswith(OUTCOME_PREFIX):
                said = json.loads(message.payload)
                self.told.setdefault(said["id"], set()).add(said["outcome"])
            else:
                assert self.gateways[name.removeprefix(DOWN_PREFIX)].commands.received(
                    message.payload
                )
        return 1

    async def send(self, command_id: str, device: str, expiry_s: int) -> None:
        """An operator sends a command, perhaps one more time, and is acknowledged."""
        device = self.sent.setdefault(command_id, device)
        properties = {
            USER_PROPERTY: [(ID_PROPERTY, command_id)],
            MESSAGE_EXPIRY_INTERVAL: expiry_s,
        }
        topic, payload = f"devices/{device}/cmd/x", command_id.encode()
        try:
            row, body = self.intake.command(topic, payload, 2, properties)
        except CommandRefused as error:
            raise AssertionError(str(error)) from error
        ((row, _),) = await self.store.add([(row, body)])
        self.dispatch.take([row])

    async def carry(self, device: str, name: str) -> None:
        """A device publishes at a gateway: that one carries it from now on."""
        if self.carried[device] != name:
            self.excused.update(one for one, whose in self.sent.items() if whose == device)
        self.carried[device] = name
        partition = partition_of(device)
        entry: Any = SimpleNamespace(
            entry=SimpleNamespace(gateway=name, partition=partition),
            readings=SimpleNamespace(source_index=[0], sources=[("t", device)]),
            historical=False,
        )
        await self.carriers.write([entry], {partition: 1})

    # ---- devices

    def acknowledge(self, name: str, device: str, *, stored: bool = True) -> None:
        """A device that is here acknowledges what it was offered."""
        gateway = self.gateways[name]
        if device not in gateway.devices.here:
            return
        known = self._lost.setdefault(name, set())
        for command_id in gateway.devices.take(device, stored=stored):
            self.got[command_id] += command_id not in known
            if not stored:
                # QoS 2 in a session that lasts: the same packet comes again; else another one
                (known if device == LASTING else self.excused).add(command_id)

    def end_session(self, name: str, device: str) -> None:
        """A session ends, and all it knew."""
        gateway = self.gateways[name]
        gateway.devices.known.discard(device)
        gateway.devices.here.discard(device)
        gateway.devices.end(device)
        if device == LASTING:
            self.excused |= self._lost.pop(name, set())

    async def change_card(self, name: str) -> None:
        """A gateway is replaced: files and sessions are gone."""
        gateway = self.gateways[name]
        self.excused |= self.sent.keys()
        gateway.devices.kept.clear()
        gateway.devices.offered.clear()
        await gateway.restart(self.fresh_folder())
        gateway.link(up=gateway.linked)

    # ---- time

    async def settle(self, rounds: int = 4) -> None:
        """Let everybody look `rounds` times, a second each."""
        for _ in range(rounds):
            self.clock.advance(1)
            for gateway in self.gateways.values():
                gateway.clock.advance(1)
            await self.dispatch.look(everywhere=True)
            for gateway in self.gateways.values():
                await gateway.turn()
                while gateway.up:
                    payload, answered = gateway.up.popleft()
                    await self._hear(gateway.name, payload)
                    answered(0)

    async def _hear(self, name: str, payload: bytes) -> None:
        message = open_message(payload)
        if isinstance(message, Hello):
            await self.dispatch.greeted(name, Welcome(message.epoch, 0, self.clock.wall_us()))
        else:
            assert isinstance(message, Outcome), f"{CTL_PREFIX}{name}: {message}"
            await self.dispatch.hear(name, message)

    # ---- the truth

    async def finish(self) -> None:
        """Everything is there and answers until nothing is open any more."""
        for gateway in self.gateways.values():
            if not gateway.linked:
                gateway.link(up=True)
        for device, name in self.carried.items():
            self.gateways[name].devices.known.add(device)
            self.gateways[name].devices.here.add(device)
        for _ in range(12):
            await self.settle(2)
            for name, gateway in self.gateways.items():
                for device in sorted(gateway.devices.here):
                    self.acknowledge(name, device)
            if not self.dispatch.open and not any(g.commands.held for g in self.gateways.values()):
                break
            self.clock.advance(60)
            for gateway in self.gateways.values():
                gateway.clock.advance(60)

    def compare(self) -> None:
        """Each command has one outcome that was told, and it is what happened."""
        for command_id in self.sent:
            assert command_id in self.told, f"{command_id}: nothing was told"
            (outcome,) = self.told[command_id]
            assert outcome in FINAL
            count = self.got[command_id]
            excused = command_id in self.excused
            if outcome == DELIVERED:
                assert count == 1 or (excused and count >= 1), f"{command_id}: {count} times"
            else:
                assert count == 0 or excused, f"{command_id}: {outcome}, but it came"

    async def close(self) -> None:
        """Stop everything."""
        for gateway in self.gateways.values():
            await gateway.commands.stop()
        await self.carriers.close()
