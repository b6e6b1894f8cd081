"""What a node shows of its ledger between two audits."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from cloud.ledger import Balance
from cloud.ledger_account import SourceBalance
from cloud.ledger_part import LedgerPart
from runtime.metrics import Metrics


def account(gateway: str, epoch: int) -> SourceBalance:
    return SourceBalance(gateway, epoch, 10, 10, 9, 0, 0, 0, 1, (), (), (), (), (), ())


@pytest.mark.parametrize(("epochs", "warned"), [(32, []), (33, ["restored"])])
async def test_a_gateway_whose_journal_is_made_anew_at_each_start_shows(
    epochs: int, warned: list[str]
) -> None:
    sources = [account(f"restored-{epochs}", epoch) for epoch in range(epochs)]
    asked, asked_again = asyncio.Event(), asyncio.Event()
    metrics = Metrics()

    async def balance() -> Balance:
        (asked_again if asked.is_set() else asked).set()
        return Balance((*sources, account("gw", 1)))

    part = LedgerPart(0.0)
    with capture_logs() as logs:
        await part.start(cast("Any", SimpleNamespace(metrics=metrics, balance=balance)))
        async with asyncio.timeout(60):
            await asked_again.wait()  # the first answer was taken
        await part.stop()
    shown = part.figures()["gateways"]
    assert {name: one["epochs"] for name, one in shown.items()} == {
        f"restored-{epochs}": epochs,
        "gw": 1,
    }
    assert f'tidegate_ledger_epochs{{gateway="restored-{epochs}"}} {epochs}.0' in (
        metrics.render()[0].decode()
    )
    said = [one["gateway"] for one in logs if one["event"] == "gateway_has_many_epochs"]
    assert said == [f"{name}-{epochs}" for name in warned]


async def test_a_balance_that_fails_is_not_the_last() -> None:
    again = asyncio.Event()
    outcomes = [ValueError("of a bug"), Balance((account("gw", 1),))]

    async def balance() -> Balance:
        if not outcomes:
            again.set()
            await asyncio.Event().wait()
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    part = LedgerPart(0.0)
    with capture_logs() as logs:
        await part.start(cast("Any", SimpleNamespace(metrics=Metrics(), balance=balance)))
        await again.wait()
        await part.stop()
    assert [one["event"] for one in logs] == ["balance_failed"]
    assert list(part.figures()["gateways"]) == ["gw"]
