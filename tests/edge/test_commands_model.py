"""Commands at a gateway against a model: whatever comes, goes, crashes or jumps, each ends once.

A real store and the real machine, with devices, a link and clocks of the test's own. A crash leaves
the file as it is at that moment, with what the device had acknowledged and nobody had noted yet.
Devices with a session that lasts get every command exactly once (QoS 2: the same packet again is no
other command); those without get it at most once more a crash that came just then.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from bridge.commands import (
    DELIVERED,
    EXPIRED,
    HELD,
    NO_DEVICE,
    NO_EXPIRY,
    Command,
    Hello,
    Outcome,
    open_message,
    seal_message,
)
from edge.command_store import CommandStore
from edge.config import CommandsConfig
from runtime.clock import ManualClock
from tests.kit.command_devices import LASTING, CountedCommands, Devices

DEVICES = st.sampled_from(["d1", "d2"])
IDS = st.sampled_from(["a", "b", "c", "d", "e"])
TEN_YEARS_US = 10 * 365 * 86_400_000_000
WAIT_S = 5.0


class CommandsModel(RuleBasedStateMachine):
    """A gateway's commands, its devices, and a cloud that sends and hears."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="commands-model-"))
        self.path = self.folder / "0" / "commands.db"
        self.crashes = 0
        self.clock = ManualClock()
        self.devices = Devices()
        self.linked = False
        self.sent: dict[str, str] = {}  # device by id
        self.heard: dict[str, str] = {}  # last state by id
        self.acks: Counter[str] = Counter()
        self.unsure: Counter[str] = Counter()  # acknowledged, and a crash before it was noted
        self.packets: set[str] = set()  # acknowledged, which the session store did not know
        self.faults: list[str] = []  # said while nobody could be told that it is wrong

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run(work)

    # ---- the machine and its link

    async def start(self) -> None:
        self.commands = CountedCommands(
            CommandStore(self.path), CommandsConfig(wait_s=WAIT_S), self.clock, lambda: Hello(7, 1)
        )
        await self.commands.start(self.devices)
        if self.linked:
            self.commands.linked(self)

    async def settle(self) -> None:
        """Let it look at everything a few times."""
        for _ in range(3):
            await self.commands.look()
        assert not self.faults

    def say(self, payload: bytes, answered: Callable[[int], None]) -> bool:
        message = open_message(payload)
        if isinstance(message, Outcome):
            before = self.heard.get(message.command_id)
            if before not in (None, HELD, message.state):  # what is final never changes
                self.faults.append(f"{message.command_id}: {before}, then {message.state}")
            self.heard[message.command_id] = message.state
        elif not isinstance(message, Hello):
            self.faults.append(repr(message))
        answered(0)
        return True

    # ---- what happens

    @initialize(here=st.sets(DEVICES))
    def begin(self, here: set[str]) -> None:
        self.devices.known |= here
        self.devices.here |= here
        self.do(self.start())

    @rule(command_id=IDS, device=DEVICES, left_s=st.sampled_from([3, 60, NO_EXPIRY]))
    def send(self, command_id: str, device: str, left_s: int) -> None:
        """The cloud sends a command, perhaps one more time."""
        device = self.sent.setdefault(command_id, device)
        topic, payload = f"devices/{device}/cmd", command_id.encode()
        message = Command(command_id, device, topic, payload, 1, b"", left_s)
        assert self.commands.received(seal_message(message))
        self.do(self.settle())

    @rule(command_id=IDS, stored=st.booleans())
    def send_and_crash(self, command_id: str, stored: bool) -> None:
        """The process dies while a device has it, or has just acknowledged it."""
        self.send(command_id, LASTING, NO_EXPIRY)
        self.crash(LASTING, stored)

    @rule(device=DEVICES, here=st.booleans())
    def come_or_go(self, device: str, here: bool) -> None:
        self.devices.known.add(device)
        (self.devices.here.add if here else self.devices.here.discard)(device)
        self.do(self.settle())

    @rule(device=DEVICES)
    def session_ends(self, device: str) -> None:
        """Its session is dropped with what it was offered."""
        self.devices.known.discard(device)
        self.devices.here.discard(device)
        self.devices.end(device)
        if device == LASTING:  # another session does not know what this one had
            self.unsure.update(self.packets)
            self.packets.clear()
        self.do(self.settle())

    @rule(device=DEVICES)
    def acknowledge(self, device: str) -> None:
        self.answer(device)
        self.do(self.settle())

    def answer(self, device: str, *, stored: bool = True) -> list[str]:
        if device not in self.devices.here:
            return []
        taken = self.devices.take(device, stored=stored)
        for command_id in taken:
            # QoS 2: what comes as a packet that was acknowledged before is not taken again
            self.acks[command_id] += command_id not in self.packets
            if device == LASTING and not stored:
                self.packets.add(command_id)
        return taken

    @rule(device=DEVICES, stored=st.booleans())
    def crash(self, device: str, stored: bool) -> None:
        """The process dies just after a device has acknowledged, before that is noted.

        The session store has the acknowledgement already, or not yet.
        """
        taken = self.answer(device, stored=stored)
        if device != LASTING:
            self.unsure.update(taken)
        self.crashes += 1
        after = self.folder / str(self.crashes)
        shutil.copytree(self.path.parent, after)
        kept = dict(self.devices.kept)
        self.commands.unlinked()  # the dead say nothing
        self.do(self.commands.stop())
        self.path = after / "commands.db"
        self.devices.offered.clear()
        self.devices.kept = kept
        self.do(self.start())
        self.do(self.settle())

    @rule()
    def restart(self) -> None:
        self.do(self.commands.stop())
        self.devices.offered.clear()  # those without a session that lasts are gone
        self.do(self.start())
        self.do(self.settle())

    @rule()
    def link(self) -> None:
        if self.linked:
            self.commands.unlinked()
        else:
            self.commands.linked(self)
        self.linked = not self.linked
        self.do(self.settle())

    @rule(seconds=st.sampled_from([1.0, 4.0, 100.0]), years=st.sampled_from([-1, 0, 1]))
    def time_passes(self, seconds: float, years: int) -> None:
        self.clock.advance(seconds)
        self.clock.set_wall(max(0, self.clock.wall_us() + years * TEN_YEARS_US))
        self.do(self.settle())

    # ---- the truth

    def teardown(self) -> None:
        try:
            if self.commands.turns:
                self.finish()
        finally:
            self.do(self.commands.stop())
            self.loop.close()
            shutil.rmtree(self.folder)

    def finish(self) -> None:
        """Everything is there and answers: each command has one outcome, and it is true."""
        if not self.linked:
            self.link()
        for device in ("d1", "d2"):
            self.come_or_go(device, True)
            self.acknowledge(device)
        assert self.commands.held == 0
        for command_id in self.sent:
            state, acks = self.heard[command_id], self.acks[command_id]
            unsure = self.unsure[command_id]
            assert state in (DELIVERED, EXPIRED, NO_DEVICE)
            if state == DELIVERED:
                assert 1 <= acks <= 1 + unsure, "once, and once more for each such crash"
            else:
                assert acks <= unsure


CommandsModel.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestCommandsModel = CommandsModel.TestCase
