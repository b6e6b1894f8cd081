"""Delivers the messages of the outbox: to MQTT and to webhooks, at least once, in order.

A message stays in alerts.db until its target has taken it, so a restart sends again what was under
way: a webhook tells doubles by the `Idempotency-Key` header, the same `id` as in the body.

    POST <url>
    Content-Type: application/json      Idempotency-Key: <id>      Authorization: Bearer <token>

2xx is taken. 408, 425, 429, 5xx and no answer at all are tried again, with a pause that doubles
up to five minutes, or the one that Retry-After asks for. Any other answer will not get better by
repeating: the message is dropped, logged and counted. Messages of one alert go out in order; one
that fails does not hold up those of other alerts.

While alerts.db cannot be written, what was delivered cannot be crossed out: its target waits and
gets nothing twice.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog

from cloud.alerts.config import WebhookConfig
from cloud.alerts.store import AlertStore, Message, QueuedMessage
from runtime.clock import Clock
from runtime.logs import limited

if TYPE_CHECKING:
    import httpx

__all__ = ["MQTT", "MqttTarget", "Outbox", "OutboxStats", "Publish", "Target", "WebhookTarget"]

log = structlog.get_logger(component="alerts")

T = TypeVar("T")

MQTT = "mqtt"  # the target's name
FIRST_PAUSE_S = 1.0
PAUSE_MAX_S = 300.0
STORE_PAUSE_MAX_S = 30.0
AT_ONCE_MAX = 8  # messages under way
_FAR_US = 1 << 62
_TRY_AGAIN = frozenset({408, 425, 429})

# publishes retained at QoS 1: (topic name, payload)
Publish = Callable[[str, bytes], Awaitable[None]]


class UndeliverableError(Exception):
    """The target refused a message for good."""


class RetryLaterError(Exception):
    """The target takes nothing now."""

    def __init__(self, detail: str, after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.after_s = after_s


class Target(Protocol):
    """Somewhere messages go."""

    async def deliver(self, message: Message) -> None:
        """Return when the target has taken the message.

        Raises:
            UndeliverableError: it never will.
            Exception: try again later.
        """
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class MqttTarget:
    """Publishes retained messages through a function the node gives."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish

    async def deliver(self, message: Message) -> None:
        await self._publish(message.address, message.body)

    async def close(self) -> None:
        pass


class WebhookTarget:
    """Posts messages to one URL."""

    def __init__(
        self, config: WebhookConfig, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        import httpx  # noqa: PLC0415 - a tenth of a node's start, and most have no webhook

        headers = {"Content-Type": "application/json", "User-Agent": "tidegate"}
        if config.token:
            headers["Authorization"] = f"Bearer {config.token}"
        self._url = config.url
        self._failed = httpx.HTTPError
        self._client = httpx.AsyncClient(
            headers=headers, timeout=config.timeout_s, transport=transport, trust_env=False
        )

    async def deliver(self, message: Message) -> None:
        headers = {"Idempotency-Key": message.message_id}
        try:
            answer = await self._client.post(self._url, content=message.body, headers=headers)
        except self._failed as error:
            raise RetryLaterError(f"{type(error).__name__}: {error}") from error
        if answer.is_success:
            return
        detail = f"{self._url} answered {answer.status_code}"
        if answer.status_code in _TRY_AGAIN or answer.is_server_error:
            raise RetryLaterError(detail, _retry_after_s(answer))
        raise UndeliverableError(detail)

    async def close(self) -> None:
        await self._client.aclose()


@dataclass(slots=True)
class OutboxStats:
    """Messages by target."""

    delivered: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)  # attempts
    dropped: dict[str, int] = field(default_factory=dict)  # refused for good, or no such target


@dataclass(slots=True)
class _Health:
    """How a target is doing."""

    failures: int = 0  # since it last took something
    closed_until_us: int = 0  # nothing is tried before


class Outbox:
    """Takes messages that are due from the store and delivers them.

    Attributes:
        stats: What was delivered and what was not.
    """

    def __init__(
        self,
        store: AlertStore,
        targets: Mapping[str, Target],
        clock: Clock,
        rng: random.Random | None = None,
        settled: Callable[[Message], None] = lambda _message: None,
    ) -> None:
        self.stats = OutboxStats()
        self._settled = settled
        self._store = store
        self._targets = targets
        self._clock = clock
        self._rng = rng or random.Random()
        self._health = {name: _Health() for name in targets}
        self._wakes = {name: asyncio.Event() for name in targets}
        self._under_way = {name: asyncio.Lock() for name in targets}

    @asynccontextmanager
    async def quiet(self, timeout_s: float) -> AsyncIterator[bool]:
        """Let nothing be under way in the block; False: what was takes longer than `timeout_s`."""
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(timeout_s):
                    for lock in self._under_way.values():
                        await stack.enter_async_context(lock)
            except TimeoutError:
                yield False
            else:
                yield True

    def wake(self) -> None:
        """Look for due messages now: some were added."""
        for wake in self._wakes.values():
            wake.set()

    async def run(self) -> None:
        """Deliver until cancelled; what is under way then is delivered again after a restart."""
        async with asyncio.TaskGroup() as group:  # a slow target holds up nobody else
            for name in self._targets:
                group.create_task(self._serve(name), name=f"alerts-to-{name}")

    async def close(self) -> None:
        """Release the targets; `run` has ended."""
        for target in self._targets.values():
            await target.close()

    async def _serve(self, name: str) -> None:
        wake, health = self._wakes[name], self._health[name]
        while True:
            wake.clear()
            now_us = self._clock.wall_us()
            next_us = await self._insist(name, partial(self._store.next_due_us, name))
            due_us = _FAR_US if next_us is None else max(next_us, health.closed_until_us)
            if due_us > now_us:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min((due_us - now_us) / 1_000_000, PAUSE_MAX_S)):
                        await wake.wait()
            if health.closed_until_us <= self._clock.wall_us():
                due = partial(self._store.due, name, self._clock.wall_us(), AT_ONCE_MAX)
                async with self._under_way[name]:
                    await self._deliver(name, await self._insist(name, due))

    async def _insist(self, name: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Return what the store answers, however long its disk is full or fails."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await ask()
            except sqlite3.Error as error:
                limited(log, ("outbox_failed", name), 60.0).error(
                    "outbox_failed", target=name, error=f"alerts.db: {error}"
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, STORE_PAUSE_MAX_S)

    async def _deliver(self, name: str, due: Sequence[QueuedMessage]) -> None:
        if not due:
            return
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._attempt(queued.message)) for queued in due]
        done: list[int] = []
        again: list[tuple[int, int]] = []
        for queued, task in zip(due, tasks, strict=True):
            retry_after_s = task.result()
            if retry_after_s is None:
                done.append(queued.id)
                continue
            pause_s = max(self._pause_s(queued.attempts), retry_after_s)
            again.append((self._clock.wall_us() + round(pause_s * 1_000_000), queued.id))
        await self._insist(name, partial(self._store.settle, done, again))
        for queued, task in zip(due, tasks, strict=True):
            if task.result() is None:
                self._settled(queued.message)

    async def _attempt(self, message: Message) -> float | None:
        """Try once; None when the message is done with, else the least pause in seconds."""
        name = message.target
        health, stats = self._health[name], self.stats
        try:
            await self._targets[name].deliver(message)
        except UndeliverableError as error:
            _count(stats.dropped, name)
            log.error(  # noqa: TRY400 - the target's answer is all there is to know
                "message_refused", target=name, id=message.message_id, error=str(error)
            )
            return None
        except Exception as error:  # noqa: BLE001 - whatever a target raises: try again
            _count(stats.failed, name)
            after_s = error.after_s if isinstance(error, RetryLaterError) else 0.0
            pause_s = max(self._pause_s(health.failures), after_s)
            health.failures += 1
            health.closed_until_us = self._clock.wall_us() + round(pause_s * 1_000_000)
            limited(log, ("target_failed", name), 60.0).warning(
                "target_failed", target=name, failures=health.failures, error=str(error)
            )
            return after_s
        _count(stats.delivered, name)
        health.failures, health.closed_until_us = 0, 0
        return None

    def _pause_s(self, attempts: int) -> float:
        longest_s = min(PAUSE_MAX_S, FIRST_PAUSE_S * 2.0 ** min(attempts, 16))
        return longest_s * self._rng.uniform(0.5, 1.0)


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _retry_after_s(answer: httpx.Response) -> float:
    """Return the seconds Retry-After asks for; a date, which needs a clock in step, counts as 0."""
    text: str = answer.headers.get("Retry-After", "")
    return min(float(text), PAUSE_MAX_S) if text.isascii() and text.isdigit() else 0.0
