"""The ledger against a model: whatever crashes, moves or is put back, it tells the truth.

The parts and their truth are in tests/kit/ledger_site.py; what happens to them is Hypothesis's
choice here. A crash leaves the files as the system has them at that moment; power cuts that take
what was not synced are in test_ledger_power.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.kit.ledger_site import LIMITS, LedgerSite, Traffic

T = TypeVar("T")
GATEWAYS = st.sampled_from(["gw-1", "gw-2"])
DEVICES = st.sampled_from(["d1", "d2", "d3"])
TEN_YEARS_S = 10 * 365 * 86_400
TRAFFIC = st.lists(
    st.tuples(
        GATEWAYS,
        DEVICES,
        st.integers(1, 9),  # readings
        st.booleans(),  # urgent
        st.sampled_from(["keep", "send", "answer lost"]),
    ),
    min_size=1,
    max_size=5,
)
CARDS = st.sampled_from(sorted(LIMITS))


class LedgerModel(RuleBasedStateMachine):
    """Devices, gateways, cards, a node and its sinks."""

    def __init__(self) -> None:
        super().__init__()
        self.site = LedgerSite(Path(tempfile.mkdtemp(prefix="ledger-model-")))
        self.loop = asyncio.Runner()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(work)

    @initialize(limits=st.tuples(CARDS, CARDS))
    def begin(self, limits: tuple[str, str]) -> None:
        self.do(self.site.start_cloud())
        for gateway, limit in zip(("gw-1", "gw-2"), limits, strict=True):
            self.do(self.site.insert_card(gateway, limit))

    def teardown(self) -> None:
        try:
            if self.site.cards:
                self.do(self.site.settle())
                self.do(self.site.compare())
        finally:
            if self.site.cards:
                self.do(self.site.close())
            self.loop.close()
            shutil.rmtree(self.site.folder)

    @rule(traffic=TRAFFIC)
    def restart_cloud(self, traffic: Traffic) -> None:
        self.do(self.site.carry(traffic))
        self.do(self.site.stop_cloud())
        self.do(self.site.start_cloud())

    @rule(traffic=TRAFFIC, since=TRAFFIC)
    def roll_storage_back(self, traffic: Traffic, since: Traffic) -> None:
        self.do(self.site.carry(traffic))
        self.do(self.site.roll_storage_back(since))

    @rule(modulus=st.integers(2, 5), traffic=TRAFFIC)
    def delete_rows_and_replay(self, traffic: Traffic, modulus: int) -> None:
        self.do(self.site.carry(traffic))
        self.do(self.site.delete_rows_and_replay(modulus))

    @rule(gateway=GATEWAYS, traffic=TRAFFIC, boots=st.booleans())
    def restart_gateway(self, traffic: Traffic, gateway: str, boots: bool) -> None:
        self.do(self.site.carry(traffic))
        self.do(self.site.restart_gateway(gateway, boots=boots))

    @rule(gateway=GATEWAYS, traffic=TRAFFIC)
    def crash_gateway(self, traffic: Traffic, gateway: str) -> None:
        self.do(self.site.carry(traffic))
        self.do(self.site.crash_gateway(gateway))

    @rule(gateway=GATEWAYS, traffic=TRAFFIC, limit=CARDS)
    def change_card(self, traffic: Traffic, gateway: str, limit: str) -> None:
        self.do(self.site.carry(traffic))
        self.do(self.site.change_card(gateway, limit))

    @rule(gateway=GATEWAYS, traffic=TRAFFIC, since=TRAFFIC)
    def put_card_back(self, gateway: str, traffic: Traffic, since: Traffic) -> None:
        self.do(self.site.carry(traffic))
        self.do(self.site.put_card_back(gateway, since))

    @rule(
        gateway=GATEWAYS,
        seconds=st.sampled_from([-TEN_YEARS_S, -3600, 20, TEN_YEARS_S]),
        traffic=TRAFFIC,
    )
    def jump_clock(self, traffic: Traffic, gateway: str, seconds: int) -> None:
        self.do(self.site.carry(traffic))
        self.site.jump_clock(gateway, seconds)


LedgerModel.TestCase.settings = settings(
    max_examples=int(os.environ.get("TIDEGATE_LEDGER_EXAMPLES", "14")),
    stateful_step_count=7,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLedgerModel = LedgerModel.TestCase
