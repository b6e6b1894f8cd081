"""The session store by itself: what is put comes back, whatever is undone, refused or damaged."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from mqtt.broker.changes import (
    Change,
    DeliveryEnded,
    DeliveryReleased,
    DeliverySaved,
    InboundEnded,
    InboundSaved,
    MessageEnded,
    MessageSaved,
    RetainedEnded,
    RetainedSaved,
    SessionEnded,
    SessionSaved,
    StoredState,
    SubscriptionEnded,
    SubscriptionSaved,
)
from mqtt.broker.session_store import SessionStoreError, SqliteSessionStore

SESSION = SessionSaved("c", 5, 3600, 0, b"will", b"gone", b"\x01\x01", 5, 10, -1)
SUBSCRIPTION = SubscriptionSaved("c", "a/+", 13, 42)
MESSAGE = MessageSaved(7, b"a/b", b"\x00\xff", b"", 2, 1, 123, "p")
DELIVERY = DeliverySaved("c", 1, 7, 2, 0, b"\x0b\x2a", "$share/g/a")
RETAINED = RetainedSaved(b"r", b"1", b"", 1, 0, None)


async def durable(store: SqliteSessionStore) -> None:
    """Wait until all that was put is on disk."""
    done = asyncio.Event()
    store.when_durable(done.set)
    async with asyncio.timeout(10):
        await done.wait()


async def kept(path: Path, *groups: list[Change]) -> StoredState:
    """Put groups of changes, each made durable, and return what a new store finds."""
    store = SqliteSessionStore(path)
    await store.open()
    for group in groups:
        for change in group:
            store.put(change)
        await durable(store)
    await store.close()
    store = SqliteSessionStore(path)
    state = await store.open()
    await store.close()
    return state


EVERYTHING: list[Change] = [
    SESSION,
    SUBSCRIPTION,
    MESSAGE,
    DELIVERY,
    InboundSaved("c", 9),
    RETAINED,
]


async def test_everything_comes_back(tmp_path: Path) -> None:
    state = await kept(tmp_path / "s.db", EVERYTHING)
    assert state == StoredState(
        [SESSION], [SUBSCRIPTION], [MESSAGE], [DELIVERY], [InboundSaved("c", 9)], [RETAINED]
    )


@pytest.mark.parametrize("together", [True, False], ids=["one group", "two groups"])
async def test_everything_can_be_undone(tmp_path: Path, together: bool) -> None:
    undone: list[Change] = [
        SubscriptionEnded("c", "a/+"),
        DeliveryReleased("c", 1),
        DeliveryEnded("c", 1),
        MessageEnded(7),
        InboundEnded("c", 9),
        RetainedEnded(b"r"),
    ]
    groups = [EVERYTHING + undone] if together else [EVERYTHING, undone]
    assert await kept(tmp_path / "s.db", *groups) == StoredState([SESSION])


async def test_a_session_takes_all_that_is_its_own_along(tmp_path: Path) -> None:
    other = SUBSCRIPTION._replace(client_id="d")
    state = await kept(tmp_path / "s.db", [*EVERYTHING, other], [SessionEnded("c")])
    assert (state.sessions, state.deliveries, state.inbound, state.messages) == ([], [], [], [])
    assert state.subscriptions == [other]


async def test_deliveries_come_back_in_the_order_they_were_put(tmp_path: Path) -> None:
    ids = [5, 9, 1, 65535, 3]
    changes: list[Change] = [MESSAGE, *(DELIVERY._replace(packet_id=i) for i in ids)]
    changes += [DeliveryEnded("c", 9), DELIVERY._replace(packet_id=9), DeliveryReleased("c", 3)]
    state = await kept(tmp_path / "s.db", changes)
    assert [(d.packet_id, d.progress) for d in state.deliveries] == [
        (5, 0),
        (1, 0),
        (65535, 0),
        (3, 1),
        (9, 0),
    ]


async def test_what_is_made_and_ended_in_one_group_is_never_written(tmp_path: Path) -> None:
    store = SqliteSessionStore(tmp_path / "s.db")
    await store.open()
    for _ in range(100):
        store.put(MESSAGE)
        store.put(DELIVERY)
        store.put(DeliveryEnded("c", 1))
        store.put(MessageEnded(7))
    assert store._waiting == {}
    await store.close()
    assert store.commits == 0


async def test_changes_that_gather_share_a_commit(tmp_path: Path) -> None:
    store = SqliteSessionStore(tmp_path / "s.db")
    await store.open()
    for index in range(1000):
        store.put(SUBSCRIPTION._replace(topic_filter=str(index)))
    await durable(store)
    assert store.commits == 1
    await store.close()


async def test_a_disk_that_fails_holds_everything_back_until_it_works(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = SqliteSessionStore(path)
    await store.open()
    store.put(SUBSCRIPTION)
    await durable(store)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # nobody else can write
    await store._database.hop(lambda c: c.execute("PRAGMA busy_timeout = 0"))
    called: list[str] = []
    relieved = asyncio.Event()
    store.put(SESSION)
    store.when_durable(lambda: called.append("first"))
    async with asyncio.timeout(10):
        while not store.saturated():
            await asyncio.sleep(0.005)
    store.put(RETAINED)
    store.when_durable(lambda: called.append("second"))
    store.when_relieved(relieved.set)
    assert called == []
    other.execute("ROLLBACK")
    other.close()
    async with asyncio.timeout(10):
        await relieved.wait()
    assert called == ["first", "second"]
    await store.close()
    state = await kept(path)
    assert (state.sessions, state.retained) == ([SESSION], [RETAINED])


async def test_too_much_waiting_saturates(tmp_path: Path) -> None:
    store = SqliteSessionStore(tmp_path / "s.db", waiting_bytes_max=1000)
    await store.open()
    assert not store.saturated()
    relieved = asyncio.Event()
    store.put(RETAINED._replace(payload=b"x" * 2000))
    assert store.saturated()
    store.when_relieved(relieved.set)
    async with asyncio.timeout(10):
        await relieved.wait()
    assert not store.saturated()
    await store.close()


@pytest.mark.parametrize("damage", ["foreign", "newer", "garbage"])
async def test_a_file_that_is_no_session_store_is_refused_in_one_line(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "s.db"
    if damage == "garbage":
        path.write_bytes(b"no database at all" * 1000)
    elif damage == "foreign":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE theirs (x)")
        database.close()
    else:
        await kept(path)
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
    with pytest.raises(SessionStoreError, match=r"s\.db: cannot be used") as caught:
        await SqliteSessionStore(path).open()
    assert "\n" not in str(caught.value)
