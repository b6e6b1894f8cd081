"""The ledger of a running node as figures: totals a gateway, for `/metrics` and `status`.

Balanced anew every `ledger.interval_s`, from the ranges kept along with the rows; a thorough count
is what `tidegate audit` is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import structlog

from cloud.database import DatabaseError
from cloud.ledger import Balance
from cloud.ledger_account import ranges_text
from cloud.parts import CloudNode
from cloud.sinks.contract import Sink
from cloud.stream.contract import StreamError
from runtime.logs import limited

__all__ = ["LedgerPart"]

log = structlog.get_logger(component="ledger")

_FIGURES = {
    "assigned": "Readings that the gateway has assigned a seq.",
    "held": "Readings the stream ever took.",
    "stored": "Readings stored.",
    "given_up": "Readings given up on record.",
    "dead_letters": "Readings that storage could not take.",
    "waiting_edge": "Readings seen waiting at the gateway.",
    "waiting_stream": "Readings that wait for storage.",
    "missing": "Readings that nothing accounts for.",
}
_LOG_EVERY_S = 60.0


class LedgerPart:
    """Keeps the last balance of a node (cloud/parts.py)."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._last: Balance | None = None
        self._task: asyncio.Task[None] | None = None

    def sinks(self, node: CloudNode) -> Sequence[Sink]:  # noqa: ARG002 - the protocol's
        """Return none."""
        return ()

    async def start(self, node: CloudNode) -> None:
        """Balance now and then."""
        for name, text in _FIGURES.items():
            node.metrics.gauge(
                f"tidegate_ledger_{name}", text, partial(self._totals, name), ("gateway",)
            )
        self._task = asyncio.create_task(self._work(node), name="ledger")

    async def stop(self) -> None:
        """End; harmless when not started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def figures(self) -> dict[str, Any]:
        """Return totals and gaps a gateway, as `status` shows them; empty before the first."""
        if self._last is None:
            return {}
        shown: dict[str, Any] = {}
        for source in self._last.sources:
            of_gateway = shown.setdefault(
                source.gateway or "(unknown gateway)", dict.fromkeys(_FIGURES, 0)
            )
            for name in _FIGURES:
                of_gateway[name] += getattr(source, name)
            gaps = (*source.lost, *source.absent, *(span for span, _ in source.unexplained))
            if gaps:
                text = f"epoch {source.epoch:016x} seq {ranges_text(sorted(gaps), 4)}"
                of_gateway["gaps"] = [*of_gateway.get("gaps", ()), text]
        return {"balanced": self._last.balanced, "gateways": shown}

    def _totals(self, name: str) -> Mapping[tuple[str, ...], float]:
        totals: dict[tuple[str, ...], float] = {}
        for source in self._last.sources if self._last is not None else ():
            key = (source.gateway,)
            totals[key] = totals.get(key, 0.0) + getattr(source, name)
        return totals

    async def _work(self, node: CloudNode) -> None:
        while True:
            try:
                self._last = await node.balance()
            except (DatabaseError, StreamError) as error:
                limited(log, "balance", _LOG_EVERY_S).warning("not_balanced", error=str(error))
            await asyncio.sleep(self._interval_s)
