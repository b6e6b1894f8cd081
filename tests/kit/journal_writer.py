"""A process that captures numbered readings and says which are safe: to be killed, or traced.

    python -m tests.kit.journal_writer '{"path": "...", "readings": 100}'

It prints one line an event, each with one write: `try N` before reading N is offered, `ack N` once
it is settled as durable, `refuse N CODE`, `trim SEQ` before a trim, `end` after an orderly close.
Readings are numbered from `first`; the payload of N is `N:` and filling.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from edge.capture import Capture
from edge.config import CaptureConfig, JournalConfig, LaneConfig
from edge.contract import Lane
from edge.journal import Journal
from mqtt.broker.seams import ClientInfo, PublishRun
from runtime.clock import SystemClock
from tests.kit.journals import publish_frame

__all__ = ["Plan", "number_of"]


@dataclass
class Plan:
    """What the process does."""

    path: str
    readings: int = 100
    first: int = 1
    sessions: int = 1  # how often the journal is opened and closed, the readings shared out
    seed: int = 1
    size_max: int = 2000
    urgent: float = 0.0  # share of readings in the urgent lane
    trim: float = 0.0  # chance of a trim after an answer
    repeat: int = 1  # how often a reading stands in its run, each time with a seq of its own
    give_up: bool = False  # a refused reading is not offered again
    durability: str = "power-loss"
    window_ms: float = 0
    live: dict[str, Any] = field(default_factory=dict)  # LaneConfig


def number_of(payload: bytes) -> int:
    """Return the number of a reading."""
    return int(payload.split(b":", 1)[0])


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


class Writer:
    """Offers readings a few at a time and waits for the answers."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.client = ClientInfo("writer", 4)
        self.answered = asyncio.Event()
        self.open: set[int] = set()
        self.again: list[int] = []
        self.patience_s = 2.0

    async def session(self, numbers: Sequence[int]) -> None:
        plan = self.plan
        config = JournalConfig(
            durability=plan.durability,
            commit_window_ms=plan.window_ms,
            disk_reserve_bytes=0,
            live=LaneConfig(**plan.live),
        )
        journal = await Journal.open(Path(plan.path) / "journal.db", config, SystemClock())
        try:
            capture = Capture(journal, CaptureConfig(), config, SystemClock())
            try:
                await self.offer_all(journal, capture, list(numbers))
            finally:
                await capture.close()
        finally:
            await journal.close()

    async def offer_all(self, journal: Journal, capture: Capture, numbers: list[int]) -> None:
        while numbers or self.open:
            burst = self.rng.randint(1, 8)
            some, numbers = numbers[:burst], numbers[burst:]
            for number in some:
                self.offer(capture, number)
            self.answered.clear()
            while self.open and (not numbers or self.rng.random() < 0.8):
                await self.answered.wait()
                self.answered.clear()
            await asyncio.sleep(0)
            if self.rng.random() < self.plan.trim:
                seq = self.rng.randint(0, journal.last_seq)
                say(f"trim {seq}")
                await journal.trim(Lane.LIVE, seq)
                if self.rng.random() < 0.5:
                    await journal.maintain()
                    await journal.flush()
            if self.again:
                await self.relief(capture)
                numbers = ([] if self.plan.give_up else self.again) + numbers
                self.again = []

    async def relief(self, capture: Capture) -> None:
        """Wait until readings are taken again; once that has not come, no more."""
        relieved = asyncio.Event()
        capture.when_relieved(relieved.set)
        try:
            async with asyncio.timeout(self.patience_s):
                await relieved.wait()
        except TimeoutError:
            self.patience_s = 0

    def offer(self, capture: Capture, number: int) -> None:
        payload = b"%d:" % number + b"." * self.rng.randint(0, self.plan.size_max)
        lane = Lane.URGENT if self.rng.random() < self.plan.urgent else Lane.LIVE
        count = self.plan.repeat
        frames = publish_frame("devices/d/v", payload) * count

        def settled(run: PublishRun, code: int | Sequence[int]) -> None:
            self.open.discard(number)
            self.answered.set()
            if code:
                self.again.append(number)
            say(f"refuse {number} {code}" if code else f"ack {number}")

        say(f"try {number}")
        code = capture.take(PublishRun(self.client, lane, frames, count, 1, settled))
        if code:
            self.again.append(number)
            say(f"refuse {number} {code}")
        else:
            self.open.add(number)


async def main(plan: Plan) -> None:
    """Run all sessions."""
    writer = Writer(plan)
    numbers = range(plan.first, plan.first + plan.readings)
    cut = -(-len(numbers) // plan.sessions)
    for start in range(0, len(numbers), cut):
        await writer.session(numbers[start : start + cut])
    say("end")


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(main(Plan(**json.loads(sys.argv[1]))))
