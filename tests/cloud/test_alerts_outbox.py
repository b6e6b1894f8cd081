"""Messages reach MQTT and webhooks at least once, in order, through failures and restarts."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cloud.alerts import outbox as outbox_module
from cloud.alerts.config import WebhookConfig
from cloud.alerts.outbox import MQTT, MqttTarget, Outbox, Target, WebhookTarget
from cloud.alerts.store import AlertStore, Changes, Message
from runtime.clock import SystemClock
from tests.kit.webhooks import WebhookServer, until

HOOK = "webhook:pager"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
async def server() -> AsyncIterator[WebhookServer]:
    server = WebhookServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[AlertStore]:
    store = await AlertStore.open(tmp_path / "alerts.db", history_max=100, outbox_max=5)
    yield store
    await store.close()


def message(number: int, *, target: str = HOOK, thread: str = "a") -> Message:
    body = b'{"number": %d}' % number
    return Message(target, f"id-{number}", thread, f"alerts/{number}", body, 0)


async def put(store: AlertStore, *messages: Message) -> int:
    return await store.commit(Changes(outbox=list(messages)), 1)


@asynccontextmanager
async def delivering(store: AlertStore, **targets: Target) -> AsyncIterator[Outbox]:
    named = {MQTT if name == "mqtt" else f"webhook:{name}": t for name, t in targets.items()}
    outbox = Outbox(store, named, SystemClock(), random.Random(1))
    task = asyncio.create_task(outbox.run())
    try:
        yield outbox
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await outbox.close()


def pager(server: WebhookServer, **keys: object) -> WebhookTarget:
    return WebhookTarget(WebhookConfig(name="pager", url=server.url, **keys))  # type: ignore[arg-type]


async def settled(store: AlertStore) -> None:
    async with asyncio.timeout(60):
        while await store.queued():
            await asyncio.sleep(0.005)


def numbers(server: WebhookServer) -> list[int]:
    return [one.body["number"] for one in server.received]


@pytest.mark.parametrize("broken", ["next_due_us", "due", "settle"])
async def test_a_store_that_fails_for_a_while_ends_no_delivery_and_doubles_none(
    server: WebhookServer, store: AlertStore, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    real = getattr(store, broken)
    left = 3

    async def fails_at_first(*args: object) -> object:
        nonlocal left
        left -= 1
        if left >= 0:
            raise sqlite3.OperationalError("database or disk is full")
        return await real(*args)

    monkeypatch.setattr(store, broken, fails_at_first)
    await put(store, message(1), message(2))
    async with delivering(store, pager=pager(server)):
        await settled(store)
    assert numbers(server) == [1, 2]


async def test_webhook_gets_id_token_and_body(server: WebhookServer, store: AlertStore) -> None:
    await put(store, message(1))
    async with delivering(store, pager=pager(server, token="s3cret")) as outbox:
        await settled(store)
    (one,) = server.received
    assert one.body == {"number": 1}
    assert one.headers["idempotency-key"] == "id-1"
    assert one.headers["authorization"] == "Bearer s3cret"
    assert one.headers["content-type"] == "application/json"
    assert outbox.stats.delivered == {HOOK: 1}


async def test_failures_are_tried_again_with_the_same_id(
    server: WebhookServer, store: AlertStore
) -> None:
    server.answers = [(500, ""), (0, ""), (429, ""), (503, "Retry-After: 0\r\n")]
    await put(store, message(1))
    async with delivering(store, pager=pager(server)) as outbox:
        await settled(store)
    assert [one.headers["idempotency-key"] for one in server.received] == ["id-1"] * 5
    assert (outbox.stats.failed, outbox.stats.delivered) == ({HOOK: 4}, {HOOK: 1})


async def test_refused_message_is_dropped_and_the_next_one_goes(
    server: WebhookServer, store: AlertStore
) -> None:
    server.answers = [(400, "")]
    await put(store, message(1), message(2))
    async with delivering(store, pager=pager(server)) as outbox:
        await settled(store)
    assert numbers(server) == [1, 2]
    assert outbox.stats.dropped == {HOOK: 1}


async def test_one_alert_keeps_its_order_and_others_pass_it(
    server: WebhookServer, store: AlertStore
) -> None:
    class Picky(WebhookTarget):
        """Takes nothing of thread a until something of b got through."""

        def __init__(self) -> None:
            super().__init__(WebhookConfig(name="pager", url=server.url))
            self.passed = False

        async def deliver(self, message: Message) -> None:
            if message.thread == "a" and not self.passed:
                raise RuntimeError("not now")
            await super().deliver(message)
            self.passed = self.passed or message.thread == "b"

    await put(store, message(1), message(2), message(3, thread="b"))
    async with delivering(store, pager=Picky()):
        await settled(store)
    assert numbers(server) == [3, 1, 2]


async def test_restart_sends_what_was_not_taken(tmp_path: Path) -> None:
    server = WebhookServer()
    await server.start()
    server.answers = [(500, "")] * 1_000
    path = tmp_path / "alerts.db"
    store = await AlertStore.open(path, history_max=100, outbox_max=5)
    await put(store, message(1))
    async with delivering(store, pager=pager(server)):
        await until(lambda: server.received)
    await store.close()

    server.answers, server.received = [], []
    store = await AlertStore.open(path, history_max=100, outbox_max=5)
    assert await store.discard_others([HOOK]) == 0
    async with delivering(store, pager=pager(server)):
        await settled(store)
    await store.close()
    await server.stop()
    assert [one.headers["idempotency-key"] for one in server.received] == ["id-1"]


async def test_a_target_that_hangs_holds_up_no_other(
    server: WebhookServer, store: AlertStore
) -> None:
    published: list[str] = []

    class Hanging(MqttTarget):
        async def deliver(self, message: Message) -> None:
            await asyncio.Event().wait()

    async def publish(topic: str, _payload: bytes) -> None:
        published.append(topic)

    await put(store, message(1), message(2, target=MQTT))
    async with delivering(store, pager=Hanging(publish), mqtt=MqttTarget(publish)):
        await until(lambda: published)
    assert published == ["alerts/2"]


async def test_new_messages_wake_it(server: WebhookServer, store: AlertStore) -> None:
    async with delivering(store, pager=pager(server)) as outbox:
        await asyncio.sleep(0)
        await put(store, message(1))
        outbox.wake()
        await settled(store)
    assert numbers(server) == [1]


async def test_outbox_is_bounded_and_keeps_the_newest(store: AlertStore) -> None:
    assert await put(store, *(message(n) for n in range(4))) == 0
    assert await put(store, *(message(n) for n in range(4, 9))) == 4
    due = []
    while one := await store.due(HOOK, 0, 10):
        due += [queued.message.message_id for queued in one]
        await store.settle([queued.id for queued in one], [])
    assert due == [f"id-{n}" for n in range(4, 9)]


async def test_a_message_twice_is_one(store: AlertStore) -> None:
    await put(store, message(1))
    await put(store, message(1), message(1, target=MQTT))
    assert await store.queued() == {HOOK: 1, MQTT: 1}


async def test_messages_for_a_removed_webhook_are_dropped(store: AlertStore) -> None:
    await put(store, message(1), message(2, target=MQTT))
    assert await store.discard_others([MQTT]) == 1
    assert await store.queued() == {MQTT: 1}


async def test_unreachable_webhook_backs_off(store: AlertStore) -> None:
    server = WebhookServer()
    await server.start()
    await server.stop()  # nobody listens there now
    await put(store, message(1))
    async with delivering(store, pager=pager(server)) as outbox:
        await until(lambda: outbox.stats.failed.get(HOOK, 0) >= 3)
        assert outbox._pause_s(0) <= 0.01
        assert outbox._pause_s(30) <= outbox_module.PAUSE_MAX_S
    assert await store.queued() == {HOOK: 1}
