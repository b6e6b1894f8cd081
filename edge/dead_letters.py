"""Batches the cloud refused, set aside in the journal: looked at, sent once more, thrown away.

This opens `journal.db` beside a gateway that runs or without one. It reads, and deletes single rows
of `dead_letters`, nothing else: no part of a running gateway keeps those rows in memory. Sending
goes the normal way, as a batch of the uplink's format to the gateway's own topic, in a connection
and a context of its own, so the readings keep gateway, epoch and seq and storage takes each once.

docs/ledger.md, Dead letters; docs/journal-format.md section 2.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bridge.batch import Batch, Decoder, Encoder
from bridge.envelope import LinkLane
from bridge.errors import BatchError, LinkError
from edge.config import EdgeConfig
from edge.database import connect_file
from edge.journal_owner import read_owner
from edge.journal_schema import APPLICATION_ID, error_of
from edge.uplink_config import Endpoint
from edge.uplink_dialler import Dialler

__all__ = ["DeadLetter", "DeadLetterError", "JournalDeadLetters", "send_again"]

T = TypeVar("T")
_ANSWER_S = 30.0


class DeadLetterError(Exception):
    """A dead letter that is not there or cannot be dealt with; `str()` is one line."""


@dataclass(slots=True, frozen=True)
class DeadLetter:
    """Readings set aside at the gateway."""

    number: int
    lane: str
    first_seq: int
    last_seq: int
    cause: str
    time_us: int
    body: bytes

    def batch(self) -> Batch:
        """Return the readings.

        Raises:
            DeadLetterError: the body is not of readings: it was damaged on the disk.
        """
        try:
            return Decoder(None).decode(self.body)
        except BatchError as error:
            raise DeadLetterError(
                f"edge:{self.number} holds no readings that can be sent ({error}); show it, or "
                "discard it"
            ) from None


class JournalDeadLetters:
    """The dead letters of one journal file.

    Args:
        path: `DIR/edge/journal.db`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    async def letters(self) -> list[DeadLetter]:
        """Return all of them, oldest first."""
        sql = (
            "SELECT id, lane, first_seq, last_seq, cause, time_us, body FROM dead_letters"
            " ORDER BY id"
        )
        rows = await self._run("ro", lambda connection: connection.execute(sql).fetchall())
        return [DeadLetter(row[0], LinkLane(row[1]).name.lower(), *row[2:]) for row in rows]

    async def owner(self) -> str:
        """Return the id of the gateway whose they are; empty when the journal does not say."""
        return await self._run("ro", read_owner)

    async def forget(self, letter: DeadLetter) -> None:
        """Delete a letter: it was sent, or nobody wants it; its tombstone stays what it was."""

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("DELETE FROM dead_letters WHERE id = ?", (letter.number,))

        await self._run("rw", delete)

    async def _run(self, mode: str, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            if not self.path.exists():
                raise DeadLetterError(f"{self.path}: no such file; is that a gateway's --data?")
            try:
                with closing(connect_file(self.path, mode)) as connection:
                    (found,) = connection.execute("PRAGMA application_id").fetchone()
                    if found != APPLICATION_ID:
                        raise DeadLetterError(f"{self.path}: not a Tidegate journal")
                    return work(connection)
            except sqlite3.Error as error:
                raise DeadLetterError(str(error_of(self.path, 0, error))) from None

        return await asyncio.to_thread(run)


async def send_again(config: EdgeConfig, letter: DeadLetter) -> None:
    """Send a letter's readings to the cloud; they are durable there on return.

    Raises:
        DeadLetterError: it cannot be sent, no cloud is in reach, or the cloud refuses it again.
    """
    batch = letter.batch()
    if not config.uplink.endpoints:
        raise DeadLetterError("no uplink.endpoints are configured; give the gateway's -c FILE")
    encoder = Encoder(config.gateway_id, batch.epoch, resolution_us=batch.resolution_us, level=1)
    payload = encoder.encode(batch.readings, lane=batch.lane, historical=True)
    failure = ""
    for url in config.uplink.endpoints:
        try:
            await _deliver(config, Endpoint.parse(url), payload)
        except LinkError as error:
            failure = str(error)
        else:
            return
    raise DeadLetterError(f"edge:{letter.number} is still dead: {failure}")


async def _deliver(config: EdgeConfig, endpoint: Endpoint, payload: bytes) -> None:
    """Send one batch on a connection of its own; raises LinkError unless it becomes durable."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[tuple[int, str]] = loop.create_future()

    def on_puback(_packet_id: int, reason_code: int, reason: str) -> None:
        if not answered.done():
            answered.set_result((reason_code, reason))

    def on_lost() -> None:
        if not answered.done():
            answered.set_exception(LinkError(f"{endpoint}: the connection was lost"))
            answered.exception()

    dialler = Dialler(config.uplink, config.gateway_id, purpose="-redrive")
    connection = dialler.connection(endpoint, on_puback, on_lost)
    await connection.dial()
    try:
        connection.publish(payload)
        async with asyncio.timeout(_ANSWER_S):
            code, reason = await answered
    except TimeoutError:
        raise LinkError(f"{endpoint}: no answer within {_ANSWER_S:g} s") from None
    finally:
        await connection.close()
    if code:
        raise LinkError(f"{endpoint}: refused with 0x{code:02x} {reason}".rstrip())
