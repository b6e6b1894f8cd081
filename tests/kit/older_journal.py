"""A process with a journal put back from a copy, until it meets the cloud: to be recorded.

    python -m tests.kit.older_journal '{"path": "...", "image": "...", "held_seq": 9}'

It puts the files of `image` into `path`, captures readings in as many sessions as it is told, and
in the last one hears that the cloud holds `held_seq`. It prints one line an event, each with one
write: `put`, `try PAYLOAD`, `ack PAYLOAD` once a reading is durable, `meet` before the cloud's word
is heard, `met` after it, `end`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge.contract import Lane
from edge.journal import Journal
from runtime.clock import SystemClock
from tests.kit.journal_files import body_of, journal_config

__all__ = ["OlderJournal"]

READINGS_A_COMMIT = 2


@dataclass
class OlderJournal:
    """What the process does."""

    path: str
    image: str
    held_seq: int
    sessions: int = 2
    commits: int = 3  # a session and lane


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def capture(journal: Journal, name: str) -> None:
    """Commit some readings and say so."""
    payloads = [f"{name}-{n}" for n in range(READINGS_A_COMMIT)]
    for payload in payloads:
        say(f"try {payload}")
    lane = Lane.URGENT if name.startswith("urgent") else Lane.LIVE
    body = body_of([payload.encode() for payload in payloads])
    await journal.append([(lane, len(payloads), body)])
    for payload in payloads:
        say(f"ack {payload}")


def put_back(image: Path, path: Path) -> None:
    """Put the files of a copy in place: on the disk, with their names, when this returns."""
    for file in sorted(image.iterdir()):
        descriptor = os.open(path / file.name, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, file.read_bytes())
        os.fsync(descriptor)
        os.close(descriptor)
    folder = os.open(path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


async def run(plan: OlderJournal) -> None:
    """Do all of it."""
    path = Path(plan.path)
    put_back(Path(plan.image), path)
    say("put")
    for session in range(plan.sessions):
        journal = await Journal.open(path / "journal.db", journal_config(), SystemClock())
        for n in range(plan.commits):
            await capture(journal, f"live-{session}-{n}")
            await capture(journal, f"urgent-{session}-{n}")
        if session == plan.sessions - 1:
            say("meet")
            await journal.meet(plan.held_seq)
            say("met")
            await capture(journal, "live-met")
        await journal.close()
    say("end")


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(run(OlderJournal(**json.loads(sys.argv[1]))))
