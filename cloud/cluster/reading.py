"""Reading whole streams; calls that are repeated while leaders change, or made many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from cloud.cluster.connection import (
    ApiError,
    ClusterError,
    Connection,
    NoResponders,
    Unanswered,
    Unreachable,
)
from cloud.cluster.follower import Message, message_of

__all__ = ["all_at_once", "insist", "read_everything", "read_subject"]

T = TypeVar("T")

NOT_YET = frozenset({10005, 10008, 10009, 10074, 10158, 10164})
_PAUSE_S = 0.1
_BATCH = 500
_BATCH_BYTES = 4 << 20
_NO_MESSAGE = 10037
_AT_ONCE = 64  # calls under way


async def insist(call: Callable[[], Awaitable[T]], *, timeout_s: float = 15.0) -> T:
    """Return what `call` returns, repeating it while nobody answers for up to `timeout_s`.

    Only for calls that may be done twice.

    Raises:
        ClusterError: no answer in time, or an answer that says no.
    """
    cause: ClusterError | None = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await call()
                except ApiError as error:
                    if error.err_code not in NOT_YET:
                        raise
                    cause = error
                except (NoResponders, Unanswered, Unreachable) as error:
                    cause = error
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        said = f": {cause}" if cause is not None else ""
        raise Unanswered(f"no answer in {timeout_s:g} s{said}") from None


async def all_at_once(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Return what all calls return, some under way at a time; the first failure after all ended."""
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(call: Callable[[], Awaitable[T]]) -> T:
        async with turn:
            return await call()

    found = await asyncio.gather(*(one(call) for call in calls), return_exceptions=True)
    for outcome in found:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in found if not isinstance(outcome, BaseException)]


async def read_everything(connection: Connection, stream: str) -> list[Message]:
    """Return every message a stream holds now, oldest first, as its leader counts them.

    Raises:
        ClusterError: it cannot be read.
    """
    for _ in range(50):
        state = (await insist(lambda: connection.api(f"STREAM.INFO.{stream}")))["state"]
        wanted, last = int(state["messages"]), int(state["last_seq"])
        found: list[Message] = []
        seq = max(1, int(state["first_seq"]))
        while wanted and seq <= last:
            asked = {"seq": seq, "batch": _BATCH, "max_bytes": _BATCH_BYTES}
            batch = await insist(lambda asked=asked: connection.direct_get(stream, asked))  # type: ignore[misc]
            found += map(message_of, batch)
            if not batch:
                break
            seq = found[-1].seq + 1
        if len(found) >= wanted:
            return found
        await asyncio.sleep(_PAUSE_S)  # the replica that answered lags, or it changes meanwhile
    raise Unanswered(f"{stream}: its replicas do not agree")


async def read_subject(
    connection: Connection, stream: str, subject: str, after: int, until: int, limit: int = 0
) -> list[Message]:
    """Return what a stream holds of a subject, which may have wildcards, in (after, until].

    As its leader has it at the end of the call: a replica that lags is asked again.

    Args:
        connection: To the cluster.
        stream: Its name.
        subject: Whole, as the stream has it.
        after: Sequence before the first wanted.
        until: Last sequence wanted.
        limit: At most so many; 0: all.

    Raises:
        ClusterError: it cannot be read.
    """
    found: list[Message] = []
    while after < until and not (limit and len(found) >= limit):
        batch = min(_BATCH, limit - len(found)) if limit else _BATCH
        body = {"seq": after + 1, "next_by_subj": subject, "batch": batch}
        messages = await connection.direct_get(stream, body)
        if not messages and not await _has_more(connection, stream, subject, after, until):
            return found
        for message in map(message_of, messages):
            after = message.seq
            if after <= until:
                found.append(message)
        if not messages:  # the replica that answered lags
            await asyncio.sleep(_PAUSE_S)
    return found


async def _has_more(
    connection: Connection, stream: str, subject: str, after: int, until: int
) -> bool:
    """Ask the leader whether there is a message in (after, until]."""
    body = {"seq": after + 1, "next_by_subj": subject}
    try:
        said = await connection.api(f"STREAM.MSG.GET.{stream}", body)
    except ApiError as error:
        if error.err_code == _NO_MESSAGE:
            return False
        raise
    return int(said["message"]["seq"]) <= until
