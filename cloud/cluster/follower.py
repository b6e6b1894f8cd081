"""Follows a stream from a sequence on: every message once, in order, without a consumer.

The stream republishes what it stores to a core subject (`republish` in cloud/cluster/layout.py);
that brings a message as soon as it is committed. What core NATS dropped shows as a gap in the
sequence and is read from the stream, as is everything at start and whatever a poll finds. There is
no state at the servers, so nothing has to be made again when one dies.

Invariants: `deliver` sees rising sequences; a sequence is passed over only when the stream itself
says that it holds no message there (overwritten, purged or expired).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from cloud.cluster.connection import (
    GONE,
    ApiError,
    ClusterError,
    Connection,
    NoResponders,
    Unanswered,
)
from runtime.logs import limited

if TYPE_CHECKING:
    from nats.aio.msg import Msg

__all__ = ["Follower", "Message", "message_of"]

log = structlog.get_logger(component="cluster")

_BATCH = 500
_BATCH_BYTES = 4 << 20
_AHEAD_MAX = 4096  # republished messages kept while a gap is read
# A leader that was deposed and does not know it, or is new and has not applied all, answers from
# the past: so of a stream that was not made anew it must be said for long.
_BEHIND_MAX = 3
_BEHIND_S = 60.0
_RETRY_S = 0.1
_LOG_EVERY_S = 10.0


@dataclass(slots=True, frozen=True)
class Message:
    """One message of a stream."""

    subject: str
    seq: int
    data: bytes
    headers: dict[str, str]


class Follower:
    """One stream being followed.

    Args:
        connection: To the cluster.
        stream: Its name.
        live: The core subject its messages are republished to, a wildcard.
        deliver: Called with each message; must not raise.
        poll_s: How often the stream is asked for what no republish announced.
        altered: Called with a line when the stream is not the one it was: shorter, or emptied.
        described: Called with the stream's metadata at the start and with each look, and before
            sequences are passed over; must not raise.
        begins: Called, when a look finds that all there is was delivered, with the sequence before
            which the stream holds nothing any more; must not raise.
        gone: Called when a look finds that there is no such stream; must not raise.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        live: str,
        deliver: Callable[[Message], None],
        *,
        poll_s: float = 1.0,
        altered: Callable[[str], None] = lambda _line: None,
        described: Callable[[Mapping[str, str]], None] | None = None,
        begins: Callable[[int], None] = lambda _seq: None,
        gone: Callable[[], None] = lambda: None,
    ) -> None:
        self.stream = stream
        self._connection = connection
        self._live = live
        self._deliver = deliver
        self._poll_s = poll_s
        self._altered = altered
        self._described = described
        self._begins = begins
        self._gone = gone
        self._next_seq = 1
        self._behind = 0  # times in a row that the stream said it ends before what we have read
        self._behind_since_s = 0.0
        self._created = ""  # when the stream was made, as it said last when it was not behind
        self._ahead: dict[int, Message] = {}
        self._wake = asyncio.Event()
        self._reached: list[tuple[int, asyncio.Future[None]]] = []
        self._subscription: Any = None
        self._task: asyncio.Task[None] | None = None

    @property
    def next_seq(self) -> int:
        """The lowest sequence not delivered yet."""
        return self._next_seq

    async def start(self, first_seq: int = 1) -> None:
        """Deliver everything from `first_seq` to the present end, then go on in the background.

        Raises:
            ClusterError: the stream cannot be read.
        """
        self._next_seq = first_seq
        self._subscription = await self._connection.subscribe(self._live, self._republished)
        loop = asyncio.get_running_loop()
        give_up_at_s = 0.0
        reached = -1
        while True:
            if self._next_seq > reached:  # it got on: who is read for long is not given up
                reached, give_up_at_s = self._next_seq, loop.time() + self._connection.patience_s
            try:
                await self._connection.flush()
                await self._load()
                break
            except (NoResponders, Unanswered):  # between two leaders
                if loop.time() > give_up_at_s and self._next_seq == reached:
                    raise
            await asyncio.sleep(_RETRY_S)
        self._connection.on_line(self._on_line)
        self._task = asyncio.create_task(self._work(), name=f"follow-{self.stream}")

    async def _load(self) -> None:
        info = await self._look()
        self._created = str(info.get("created"))
        last = int(info["state"]["last_seq"])
        while self._next_seq <= last:
            if not await self._fill(last):
                await asyncio.sleep(_RETRY_S)  # the replica that answered lags

    async def stop(self) -> None:
        """End; harmless when not started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._subscription is not None:
            with contextlib.suppress(Exception):  # a line that is gone unsubscribes by itself
                await self._subscription.unsubscribe()
            self._subscription = None
        for _, future in self._reached:
            if not future.done():
                future.set_exception(ClusterError(f"{self.stream}: no longer followed"))

    async def reach(self, seq: int) -> None:
        """Return once everything up to `seq` was delivered."""
        if seq < self._next_seq:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reached.append((seq, future))
        self._wake.set()
        try:
            await future
        finally:
            self._reached = [one for one in self._reached if one[1] is not future]

    # ---- what comes ------------------------------------------------------------------------------

    async def _republished(self, message: Msg) -> None:
        headers = message.headers or {}
        seq = int(headers.get("Nats-Sequence", 0))
        if seq < self._next_seq:
            return
        if len(self._ahead) < _AHEAD_MAX:
            self._ahead[seq] = message_of(message)
        self._advance()
        if self._ahead:
            self._wake.set()  # a gap: read what is missing

    def _advance(self) -> None:
        while self._next_seq in self._ahead:
            self._take(self._ahead.pop(self._next_seq))

    def _take(self, message: Message) -> None:
        self._next_seq = message.seq + 1
        self._deliver(message)
        self._tell()

    def _skip_to(self, seq: int) -> None:
        """Pass over sequences the stream says are empty."""
        self._next_seq = seq
        for old in [one for one in self._ahead if one < seq]:
            del self._ahead[old]
        self._advance()
        self._tell()

    def _tell(self) -> None:
        for seq, future in self._reached:
            if seq < self._next_seq and not future.done():
                future.set_result(None)

    def _on_line(self, up: bool) -> None:
        if up:
            self._wake.set()

    async def _work(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._wake.wait()
            self._wake.clear()
            try:
                behind = await self._catch_up()
            except ClusterError as error:
                limited(log, ("follow", self.stream), _LOG_EVERY_S).warning(
                    "stream_not_followed", stream=self.stream, error=str(error)
                )
                behind = True
            if behind:
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    async def _catch_up(self) -> bool:
        """Read what is known to be missing; return True when some is missing still."""
        wanted = max((seq for seq, future in self._reached if not future.done()), default=0)
        gap = min(self._ahead, default=0) - 1
        if max(wanted, gap) >= self._next_seq:
            await self._fill(max(wanted, gap))
            return max(wanted, gap) >= self._next_seq and bool(wanted >= self._next_seq or gap)
        reached = self._next_seq - 1  # before the question: it goes on meanwhile
        info = await self._look()
        last = int(info["state"]["last_seq"])
        if last < reached:
            self._fell_behind(reached, last, str(info.get("created")))
            return False
        self._behind = 0
        self._created = str(info.get("created"))  # made again, it went on
        if self._next_seq > last:
            self._begins(int(info["state"]["first_seq"]))
        # else what was replaced since may lie past `last`: it is not seen, but not gone either
        while self._next_seq <= last:
            if not await self._fill(last):
                return True
        return False

    async def _look(self) -> dict[str, Any]:
        try:
            info = await self._connection.api(f"STREAM.INFO.{self.stream}")
        except ApiError as error:
            if error.err_code == GONE:
                self._gone()
            raise
        if self._described is not None:
            self._described(info["config"].get("metadata") or {})
        return info

    def _fell_behind(self, reached: int, last: int, created: str) -> None:
        """Judge an answer by which the stream ends before what was read from it."""
        now_s = asyncio.get_running_loop().time()
        if not self._behind:
            self._behind_since_s = now_s
        self._behind += 1
        replaced = created != self._created
        if self._behind >= _BEHIND_MAX and (replaced or now_s - self._behind_since_s >= _BEHIND_S):
            self._altered(
                f"{self.stream}: its last sequence went back from {reached} to {last}:"
                " it was replaced or restored"
            )

    async def _fill(self, up_to: int) -> bool:
        """Read on from the next sequence; return False when nothing could be learnt."""
        start = self._next_seq
        found = await self._connection.direct_get(
            self.stream, {"seq": start, "batch": _BATCH, "max_bytes": _BATCH_BYTES}
        )
        for message in map(message_of, found):
            if message.seq > self._next_seq and self._described is not None:
                await self._look()  # why, its metadata may say
            if message.seq >= self._next_seq:
                self._take(message)
        self._advance()
        if self._next_seq > start or found:
            return True
        return await self._skip_empty(up_to)

    async def _skip_empty(self, up_to: int) -> bool:
        """Nothing lies at or past the next sequence, says a replica: ask the leader."""
        start = self._next_seq
        try:
            said = await self._connection.api(
                f"STREAM.MSG.GET.{self.stream}", {"seq": start, "next_by_subj": ">"}
            )
        except ApiError as error:
            if error.err_code != 10037:
                raise
            state = (await self._look())["state"]
            if int(state["last_seq"]) < up_to or self._next_seq > start:
                return False
            self._skip_to(up_to + 1)
            return True
        seq = int(said["message"]["seq"])
        if seq > start and self._described is not None:
            await self._look()  # why, its metadata may say
        if seq > start and self._next_seq == start:
            self._skip_to(seq)
            return True
        return self._next_seq > start  # it is there: the next try reaches a better replica


def message_of(message: Msg) -> Message:
    """Return a republished or directly read message."""
    headers = dict(message.headers or {})
    return Message(
        headers.get("Nats-Subject", ""),
        int(headers.get("Nats-Sequence", 0)),
        message.data,
        headers,
    )
