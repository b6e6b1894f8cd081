"""The ledger of a running node as figures: totals a gateway, for `/metrics` and `status`.

Balanced anew every `ledger.interval_s`, from the ranges kept along with the rows; a thorough count
is what `tidegate audit` is for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
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
from runtime.background import Background
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
_MANY_EPOCHS = 32  # more than cards are replaced, and clones made
_MANY_EVERY_S = 86_400.0


class LedgerPart:
    """Keeps the last balance of a node (cloud/parts.py)."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._last: Balance | None = None
        self._background: Background | None = None

    def sinks(self, node: CloudNode) -> Sequence[Sink]:  # noqa: ARG002 - the protocol's
        """Return none."""
        return ()

    async def start(self, node: CloudNode) -> None:
        """Balance now and then."""
        for name, text in _FIGURES.items():
            node.metrics.gauge(
                f"tidegate_ledger_{name}", text, partial(self._totals, name), ("gateway",)
            )
        node.metrics.gauge(
            "tidegate_ledger_epochs", "Journals that the gateway has had.", self._epochs,
            ("gateway",),
        )  # fmt: skip
        self._background = Background(partial(self._work, node), "ledger")
        self._background.start()

    async def stop(self) -> None:
        """End; harmless when not started."""
        if self._background is not None:
            await self._background.stop()

    def figures(self) -> dict[str, Any]:
        """Return totals and gaps a gateway, as `status` shows them; empty before the first."""
        if self._last is None:
            return {}
        shown: dict[str, Any] = {}
        for source in self._last.sources:
            of_gateway = shown.setdefault(
                source.gateway or "(unknown gateway)", dict.fromkeys((*_FIGURES, "epochs"), 0)
            )
            for name in _FIGURES:
                of_gateway[name] += getattr(source, name)
            of_gateway["epochs"] += 1
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

    def _epochs(self) -> Mapping[tuple[str, ...], float]:
        sources = self._last.sources if self._last is not None else ()
        return Counter((one.gateway,) for one in sources)

    def _tell_of_many(self) -> None:
        for (gateway,), count in self._epochs().items():
            if count > _MANY_EPOCHS:
                limited(log, ("epochs", gateway), _MANY_EVERY_S).warning(
                    "gateway_has_many_epochs", gateway=gateway, epochs=int(count),
                    hint="its data folder is made anew, or put back from an image, at each start:"
                    " keep it on a disk that lasts; each epoch stays an account of the ledger",
                )  # fmt: skip

    async def _work(self, node: CloudNode) -> None:
        while True:
            try:
                self._last = await node.balance()
                self._tell_of_many()
            except (DatabaseError, StreamError) as error:
                limited(log, "balance", _LOG_EVERY_S).warning("not_balanced", error=str(error))
            except Exception:  # noqa: BLE001 - the task's root: the next may be balanced
                limited(log, "balance_failed", _LOG_EVERY_S).exception("balance_failed")
            await asyncio.sleep(self._interval_s)
