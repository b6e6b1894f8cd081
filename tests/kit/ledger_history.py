"""A process with gateways and a node that go through a seeded history: to be recorded and cut off.

    python -m tests.kit.ledger_history '{"folder": "...", "seed": 1, "steps": 20}'

It prints one line an event, each with one write: `try PAYLOAD` before a reading is offered,
`ack GATEWAY EPOCH SEQ PAYLOAD` once its device has a PUBACK, `end` after an orderly end. The
gateways' journals lie in FOLDER/gw-1 and FOLDER/gw-2, the node's files in FOLDER/cloud.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import structlog

from tests.kit.ledger_site import LedgerSite

__all__ = ["GATEWAYS", "History"]

GATEWAYS = {"gw-1": "none", "gw-2": "one-of"}  # with the limits of their lanes


@dataclass
class History:
    """What the process goes through."""

    folder: str
    seed: int
    steps: int = 12


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def run(history: History) -> None:
    rng = random.Random(history.seed)
    site = LedgerSite(Path(history.folder))
    site.on_try = lambda payload: say(f"try {payload.decode()}")
    site.on_ack = lambda gateway, epoch, seq, payload: say(
        f"ack {gateway} {epoch} {seq} {payload.decode()}"
    )
    await site.start_cloud()
    for gateway, limit in GATEWAYS.items():
        await site.insert(gateway, site.folder / gateway, limit)
    for _ in range(history.steps):
        gateway = rng.choice(list(GATEWAYS))
        traffic = [
            (rng.choice(list(GATEWAYS)), f"d{rng.randint(1, 3)}", rng.randint(1, 9),
             rng.random() < 0.3, rng.choice(["keep", "send", "answer lost"]))
            for _ in range(rng.randint(1, 4))
        ]  # fmt: skip
        await site.carry(traffic)
        what = rng.random()
        if what < 0.15:
            await site.restart_gateway(gateway)
        elif what < 0.25:
            await site.stop_cloud()
            await site.start_cloud()
        elif what < 0.4:
            site.jump_clock(gateway, rng.choice([-1, 1]) * 10 * 365 * 86_400)
        elif what < 0.6:
            await site.cards[gateway].journal.maintain()
            await site.cards[gateway].journal.flush()
    await site.close()
    say("end")


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(run(History(**json.loads(sys.argv[1]))))
