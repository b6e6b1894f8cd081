"""Reading whole streams, and calls that are repeated while the cluster changes leaders."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cloud.cluster.connection import ApiError, ClusterError, Connection, NoResponders, Unanswered
from cloud.cluster.follower import Message, message_of

__all__ = ["insist", "read_everything"]

T = TypeVar("T")

NOT_YET = frozenset({10005, 10008, 10009, 10074, 10158, 10164})
_PAUSE_S = 0.1
_BATCH = 500
_BATCH_BYTES = 4 << 20


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
                except (NoResponders, Unanswered) as error:
                    cause = error
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        raise Unanswered(f"no answer in {timeout_s:g} s: {cause}") from None


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
