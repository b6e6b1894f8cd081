"""Commands from the cloud to devices against a model: whatever dies, moves, is cut or jumps.

Each command ends once, and what is told of it is what happened: delivered, exactly once where the
session lasts, or never seen by the device. Parts and truth are in tests/kit/command_site.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.kit.command_devices import LASTING
from tests.kit.command_site import DEVICES as NAMES
from tests.kit.command_site import CommandSite

GATEWAYS = st.sampled_from(["gw-1", "gw-2"])
DEVICES = st.sampled_from(NAMES)
IDS = st.sampled_from(["a", "b", "c", "d"])
ROUNDS = st.integers(0, 3)  # how far things get before the next event
TEN_YEARS_US = 10 * 365 * 86_400_000_000


class CommandsModel(RuleBasedStateMachine):
    """A cloud, two gateways, two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.site = CommandSite(Path(tempfile.mkdtemp(prefix="commands-site-")))
        self.loop = asyncio.Runner()
        self.begun = False

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run(work)

    @initialize(
        here=st.sets(DEVICES), sent=st.lists(DEVICES, min_size=1, max_size=3), rounds=ROUNDS
    )
    def begin(self, here: set[str], sent: list[str], rounds: int) -> None:
        """Something is on its way from the start."""
        self.do(self.site.start())
        self.begun = True
        self.site.gateways["gw-1"].devices.here |= here
        for number, device in enumerate(sent):
            self.do(self.site.send(f"first-{number}", device, 100_000))
        self.do(self.site.settle(rounds))

    @rule(command_id=IDS, device=DEVICES, expiry_s=st.sampled_from([5, 100_000]), rounds=ROUNDS)
    def send(self, command_id: str, device: str, expiry_s: int, rounds: int) -> None:
        self.do(self.site.send(command_id, device, expiry_s))
        self.do(self.site.settle(rounds))

    @rule(gateway=GATEWAYS, device=DEVICES, here=st.booleans(), rounds=ROUNDS)
    def come_or_go(self, gateway: str, device: str, here: bool, rounds: int) -> None:
        devices = self.site.gateways[gateway].devices
        devices.known.add(device)
        (devices.here.add if here else devices.here.discard)(device)
        self.do(self.site.settle(rounds))

    @rule(device=DEVICES, gateway=GATEWAYS, rounds=ROUNDS)
    def move(self, device: str, gateway: str, rounds: int) -> None:
        """It connects at another gateway and publishes there; its session here stays behind."""
        for one in self.site.gateways.values():
            one.devices.here.discard(device)
        devices = self.site.gateways[gateway].devices
        devices.known.add(device)
        devices.here.add(device)
        self.do(self.site.carry(device, gateway))
        self.do(self.site.settle(rounds))

    @rule(gateway=GATEWAYS, device=DEVICES, rounds=ROUNDS)
    def acknowledge(self, gateway: str, device: str, rounds: int) -> None:
        self.site.acknowledge(gateway, device)
        self.do(self.site.settle(rounds))

    @rule(gateway=GATEWAYS, device=DEVICES, rounds=ROUNDS)
    def end_session(self, gateway: str, device: str, rounds: int) -> None:
        self.site.end_session(gateway, device)
        self.do(self.site.settle(rounds))

    @rule(gateway=GATEWAYS, device=DEVICES, stored=st.booleans())
    def crash_gateway(self, gateway: str, device: str, stored: bool) -> None:
        """It dies just after a device has acknowledged; its session store has that, or not yet."""
        self.site.acknowledge(gateway, device, stored=stored and device == LASTING)
        one = self.site.gateways[gateway]
        self.do(one.restart(self.site.fresh_folder(), crashed=True))
        one.link(up=one.linked)

    @rule(gateway=GATEWAYS)
    def restart_gateway(self, gateway: str) -> None:
        one = self.site.gateways[gateway]
        self.do(one.restart(one.folder))
        one.link(up=one.linked)

    @rule(gateway=GATEWAYS, rounds=ROUNDS)
    def change_card(self, gateway: str, rounds: int) -> None:
        self.do(self.site.change_card(gateway))
        self.do(self.site.settle(rounds))

    @rule()
    def crash_cloud(self) -> None:
        self.do(self.site.crash_cloud())

    @rule(gateway=GATEWAYS, up=st.booleans(), rounds=ROUNDS)
    def link(self, gateway: str, up: bool, rounds: int) -> None:
        """The link goes, with all that is on it, or comes."""
        self.site.gateways[gateway].link(up=up)
        self.do(self.site.settle(rounds))

    @rule(gateway=GATEWAYS, years=st.sampled_from([-1, 1]))
    def jump_clock(self, gateway: str, years: int) -> None:
        clock = self.site.gateways[gateway].clock
        clock.set_wall(max(0, clock.wall_us() + years * TEN_YEARS_US))

    def teardown(self) -> None:
        try:
            if self.begun:
                self.do(self.site.finish())
                self.site.compare()
        finally:
            if self.begun:
                self.do(self.site.close())
            self.loop.close()
            shutil.rmtree(self.site.folder)


CommandsModel.TestCase.settings = settings(
    max_examples=int(os.environ.get("TIDEGATE_COMMANDS_EXAMPLES", "12")),
    stateful_step_count=14,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestCommandsModel = CommandsModel.TestCase
