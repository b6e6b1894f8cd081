"""The session store by itself: what is put comes back, whatever is undone, refused or damaged."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mqtt.broker.changes import (
    UNSENT,
    Change,
    DeliveryEnded,
    DeliveryReleased,
    DeliverySaved,
    InboundEnded,
    InboundRecovered,
    InboundSaved,
    Marked,
    MessageEnded,
    MessageSaved,
    OfferEnded,
    OfferSaved,
    OfferTaken,
    RetainedEnded,
    RetainedSaved,
    SessionEnded,
    SessionSaved,
    StoredState,
    SubscriptionEnded,
    SubscriptionSaved,
)
from mqtt.broker.session_store import SessionStoreError, SqliteSessionStore
from runtime.clock import ManualClock

SESSION = SessionSaved("c", 5, 3600, 0, b"will", b"gone", b"\x01\x01", 5, 10, -1)
SUBSCRIPTION = SubscriptionSaved("c", "a/+", 13, 42)
MESSAGE = MessageSaved(7, b"a/b", b"\x00\xff", b"", 2, 1, 123, "p")
DELIVERY = DeliverySaved("c", 1, 7, 2, 0, b"\x0b\x2a", "$share/g/a")
RETAINED = RetainedSaved(b"r", b"1", b"", 1, 0, None)


async def durable(store: SqliteSessionStore) -> None:
    """Wait until all that was put is on disk."""
    done = asyncio.Event()
    store.when_durable(done.set)
    async with asyncio.timeout(60):
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
    InboundRecovered("c", 10, 0xFFFF_FFFF),
    Marked(7, 40),
    Marked(7, 41),
]


async def test_everything_comes_back(tmp_path: Path) -> None:
    state = await kept(tmp_path / "s.db", EVERYTHING)
    assert state == StoredState(
        [SESSION],
        [SUBSCRIPTION],
        [MESSAGE],
        [DELIVERY],
        [InboundSaved("c", 9)],
        [RETAINED],
        [InboundRecovered("c", 10, 0xFFFF_FFFF)],
        Marked(7, 41),
    )


@pytest.mark.parametrize("together", [True, False], ids=["one group", "two groups"])
async def test_everything_can_be_undone(tmp_path: Path, together: bool) -> None:
    undone: list[Change] = [
        SubscriptionEnded("c", "a/+"),
        DeliveryReleased("c", 1),
        DeliveryEnded("c", 1),
        MessageEnded(7),
        InboundEnded("c", 9),
        InboundEnded("c", 10),
        RetainedEnded(b"r"),
    ]
    groups = [EVERYTHING + undone] if together else [EVERYTHING, undone]
    assert await kept(tmp_path / "s.db", *groups) == StoredState([SESSION], mark=Marked(7, 41))


@pytest.mark.parametrize(("version", "lacks"), [(1, "recovered mark offers"), (2, "offers")])
async def test_a_file_of_an_older_version_is_taken_over(
    tmp_path: Path, version: int, lacks: str
) -> None:
    path = tmp_path / "s.db"
    await kept(path, EVERYTHING)
    with sqlite3.connect(path) as database:
        drop = "".join(f"DROP TABLE {name};" for name in lacks.split())
        database.executescript(f"{drop} PRAGMA user_version = {version};")
    database.close()
    state = await kept(path, [Marked(7, 50), OfferSaved("a", "c", 3, 1)])
    assert (state.sessions, state.mark) == ([SESSION], Marked(7, 50))
    assert bool(state.recovered) is (version == 2)
    assert state.offers == [OfferSaved("a", "c", 3, 1)]


async def test_an_offer_stays_with_its_delivery_or_its_acknowledgement(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    (delivery,) = (one for one in EVERYTHING if isinstance(one, DeliverySaved))
    offer = OfferSaved("a", delivery.client_id, delivery.packet_id)
    orphan = OfferSaved("b", delivery.client_id, 999)  # its delivery was not written any more
    state = await kept(path, [*EVERYTHING, offer, orphan])
    assert state.offers == [offer]
    ended = DeliveryEnded(delivery.client_id, delivery.packet_id)
    assert (await kept(path, [OfferTaken("a"), ended])).offers == [offer._replace(taken=1)]
    assert (await kept(path, [OfferEnded("a")])).offers == []


async def test_a_session_takes_all_that_is_its_own_along(tmp_path: Path) -> None:
    other = SUBSCRIPTION._replace(client_id="d")
    state = await kept(tmp_path / "s.db", [*EVERYTHING, other], [SessionEnded("c")])
    assert (state.sessions, state.deliveries, state.inbound, state.messages) == ([], [], [], [])
    assert state.recovered == []
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


@pytest.mark.parametrize("count", [1, 39, 40, 41, 137])
async def test_many_rows_of_a_kind_come_back(tmp_path: Path, count: int) -> None:
    retained: list[Change] = [
        RetainedSaved(b"t/%03d" % (index % 100), b"%d" % index, b"", 1, 0, None)
        for index in range(count)
    ]
    deliveries: list[Change] = [MESSAGE, SESSION]
    deliveries += [
        DeliverySaved("c", 1 + index * 7 % count, 7, 1, 0, b"", "", UNSENT)
        for index in range(count)
    ]
    state = await kept(tmp_path / "s.db", retained, retained[::-1], deliveries)
    assert {row.topic: row.payload for row in state.retained} == {
        b"t/%03d" % index: b"%d" % index for index in range(min(count, 100))
    }
    assert [row.packet_id for row in state.deliveries] == [
        1 + index * 7 % count for index in range(count)
    ]


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
    async with asyncio.timeout(60):
        while not store.saturated():
            await asyncio.sleep(0.005)
    store.put(RETAINED)
    store.when_durable(lambda: called.append("second"))
    store.when_relieved(relieved.set)
    assert called == []
    other.execute("ROLLBACK")
    other.close()
    async with asyncio.timeout(60):
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
    async with asyncio.timeout(60):
        await relieved.wait()
    assert not store.saturated()
    await store.close()


async def test_a_fault_in_one_answer_does_not_end_the_store(tmp_path: Path) -> None:
    store = SqliteSessionStore(tmp_path / "s.db")
    await store.open()
    for ask in (store.when_durable, store.when_relieved):
        done = asyncio.Event()
        store.put(SESSION)
        ask([].pop)
        ask(done.set)
        async with asyncio.timeout(60):
            await done.wait()
    await store.close()
    again = SqliteSessionStore(tmp_path / "s.db")
    assert len((await again.open()).sessions) == 1
    await again.close()


@pytest.mark.parametrize("theirs", ["foreign", "newer", "garbage"])
async def test_somebody_elses_file_is_refused_in_one_line_and_not_touched(
    tmp_path: Path, theirs: str
) -> None:
    path = tmp_path / "s.db"
    if theirs == "garbage":
        path.write_bytes(b"no database at all" * 1000)
    elif theirs == "foreign":
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE theirs (x)")
        database.close()
    else:
        await kept(path)
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
    before = path.read_bytes()
    with pytest.raises(SessionStoreError, match=r"s\.db: cannot be used") as caught:
        await SqliteSessionStore(path).open()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.glob("*damaged*")) == []


# -- damage -----------------------------------------------------------------------------------

MANY = 400


async def filled(path: Path) -> None:
    """Write a store of many pages."""
    changes: list[Change] = []
    for n in range(MANY):
        client_id = f"client-{n:04d}"
        changes += [
            SESSION._replace(client_id=client_id, will_payload=bytes(200)),
            SUBSCRIPTION._replace(client_id=client_id),
            MESSAGE._replace(message_id=n + 1, payload=bytes(300)),
            DELIVERY._replace(client_id=client_id, message_id=n + 1),
            InboundSaved(client_id, 9),
            RETAINED._replace(topic=b"r/%d" % n, payload=bytes(200)),
        ]
    await kept(path, changes)


def damage(path: Path, *pages: int) -> bytes:
    """Overwrite pages of 4096 bytes, counted from 0; return what the file is then."""
    data = bytearray(path.read_bytes())
    for page in pages:
        data[page * 4096 : (page + 1) * 4096] = b"\xa5" * 4096
    path.write_bytes(data)
    return bytes(data)


async def reopened(path: Path) -> tuple[StoredState, SqliteSessionStore]:
    """Open, write something, and return what was found."""
    store = SqliteSessionStore(path, clock=ManualClock())
    state = await store.open()
    store.put(SESSION)
    await durable(store)
    await store.close()
    return state, store


@pytest.mark.parametrize("what", ["garbage", "zeros", "first page"])
async def test_a_file_without_its_head_is_moved_aside(tmp_path: Path, what: str) -> None:
    path = tmp_path / "s.db"
    await filled(path)
    content = {
        "garbage": random.Random(1).randbytes(5 * 4096),
        "zeros": bytes(path.stat().st_size),
        "first page": bytes(4096) + path.read_bytes()[4096:],
    }[what]
    path.write_bytes(content)
    with capture_logs() as logs:
        state, store = await reopened(path)
    assert (state, store.salvages) == (StoredState(), 1)
    (line,) = [line for line in logs if line["event"] == "mqtt_session_store_damaged"]
    assert Path(line["moved_to"]).read_bytes() == content
    assert len(line["tables_incomplete"]) == 9
    again = await kept(path)
    assert again.sessions == [SESSION]


async def test_what_can_be_read_of_a_damaged_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await filled(path)
    whole = path.read_bytes()
    worse = 0
    for page in range(2, len(whole) // 4096, 4):
        path.write_bytes(whole)
        damage(path, page)
        state, store = await reopened(path)
        tables = (
            state.sessions,
            state.subscriptions,
            state.messages,
            state.deliveries,
            state.inbound,
            state.retained,
        )
        counts = [len(rows) for rows in tables]
        worse += store.salvages
        # one page costs one table its rows on it, or, where it says where others are, all of them
        assert sum(count < MANY for count in counts) <= 1 + store.salvages
        assert all(session.will_payload == bytes(200) for session in state.sessions)
        assert len(list(tmp_path.glob("s.db.damaged-*"))) <= 3
    assert worse > 5


async def test_damage_that_is_met_in_use_holds_nobody_up_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await filled(path)
    store = SqliteSessionStore(path, clock=ManualClock())
    await store.open()
    damage(path, *range(2, path.stat().st_size // 4096))
    late: list[Change] = [SESSION._replace(client_id="new")]
    late += [RETAINED._replace(topic=b"%d" % n) for n in range(50)]
    for change in late:
        store.put(change)
    await durable(store)
    assert store.salvages == 1
    await store.close()
    state = await kept(path)
    assert late[0] in state.sessions
    assert len([row for row in state.retained if b"/" not in row.topic]) == 50


@pytest.mark.parametrize("step", ["half built", "built", "log moved", "file moved"])
async def test_a_crash_while_a_damaged_file_is_replaced(tmp_path: Path, step: str) -> None:
    path, new = tmp_path / "s.db", tmp_path / "s.db.new"
    await kept(tmp_path / "other.db", EVERYTHING)
    await filled(path)
    (tmp_path / "other.db").rename(new)
    damaged = damage(path, *range(2, 20))
    if step == "half built":
        with sqlite3.connect(new) as database:
            database.execute("PRAGMA application_id = 0")
        database.close()
    else:
        Path(f"{path}-wal").write_bytes(b"a log of the damaged file")
    if step in ("log moved", "file moved"):
        Path(f"{path}-wal").rename(f"{path}.damaged-1-wal")
    if step == "file moved":
        path.rename(f"{path}.damaged-1")
    state, store = await reopened(path)
    assert not new.exists()
    assert any(p.read_bytes() == damaged for p in tmp_path.glob("s.db.damaged-*[0-9]"))
    if step == "half built":
        assert store.salvages == 1
    else:
        assert (state.sessions, state.subscriptions) == ([SESSION], [SUBSCRIPTION])
