"""Copies of a gateway's card that run beside each other: verbs for tests.

What is checked is read from a node's storage: every reading that was acknowledged is there once.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from cloud.node import Node
from edge.service import EdgeService
from tests.kit.cloud import query
from tests.kit.sites import client_at, until

__all__ = ["NOBODY", "all_stored_once", "capture", "copy", "rows", "until_sent", "until_stored"]

NOBODY = 9  # a port where nobody listens
_numbers = count(1)


async def capture(gateway: EdgeService, who: str, many: int = 3) -> list[str]:
    """Publish readings; each is acknowledged when this returns."""
    payloads = [f"{next(_numbers):04} {who}" for _ in range(many)]
    async with client_at(gateway.port, "d1") as (client, _):
        for payload in payloads:
            await client.publish("devices/d1/value", payload.encode(), 1)
    return payloads


def copy(card: Path, *copies: Path) -> None:
    """Copy a card as it lies there, its gateway running or not."""
    for one in copies:
        shutil.copytree(card, one, ignore=shutil.ignore_patterns("*.lock", "process.json"))


def rows(node: Node) -> list[tuple[Any, ...]]:
    """Return epoch, seq and payload of what a node has stored."""
    path = node.config.data / "cloud" / "storage.db"
    return query(path, "SELECT epoch, seq, payload FROM readings")


async def until_stored(payloads: Sequence[str], node: Node) -> None:
    """Wait until as many readings are stored as there are payloads."""
    await until("stored", lambda: len(rows(node)) >= len(set(payloads)), timeout_s=60)


async def until_sent(gateway: EdgeService) -> None:
    """Wait until nothing waits at a gateway."""

    def sent() -> bool:
        lanes = gateway.status()["journal"]["lanes"].values()
        return not any(lane["readings"] for lane in lanes)

    await until("sent", sent, timeout_s=60)


def all_stored_once(stored: Sequence[tuple[Any, ...]], payloads: Sequence[str]) -> None:
    """Assert that payloads are stored, once, and those of each epoch in the order of their seqs."""
    assert Counter(payload for *_, payload in stored) == Counter(set(payloads))
    by_epoch: dict[int, list[str]] = {}
    for epoch, _, payload in sorted(stored):
        by_epoch.setdefault(epoch, []).append(payload)
    assert all(found == sorted(found) for found in by_epoch.values()), by_epoch
