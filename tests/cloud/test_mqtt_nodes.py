"""Brokers of one cluster: every kind of delivery from one node to another, over memory."""

from __future__ import annotations

import asyncio

import pytest

from cloud.cluster.mqtt_wire import encode
from mqtt.broker.broker import Outgoing
from mqtt.broker.config import BrokerConfig
from mqtt.packets import (
    Connect,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsubscribe,
)
from mqtt.properties import (
    CONTENT_TYPE,
    CORRELATION_DATA,
    MESSAGE_EXPIRY_INTERVAL,
    RESPONSE_TOPIC,
    SESSION_EXPIRY_INTERVAL,
    SUBSCRIPTION_IDENTIFIER,
    USER_PROPERTY,
)
from runtime.clock import ManualClock
from tests.kit.brokers import WireClient
from tests.kit.fabric import MemoryEngine
from tests.kit.mqtt_nodes import mqtt_nodes, publish, received, start_node, until

LASTING = {SESSION_EXPIRY_INTERVAL: 3600}


async def payloads(client: WireClient) -> list[bytes]:
    """Return the payloads of what comes until a PINGREQ is answered, all acknowledged."""
    found = []
    for packet in await client.settled():
        assert isinstance(packet, Publish), packet
        found.append(packet.payload)
        if packet.qos == 1:
            client.send(Puback(packet.packet_id))
    return found


async def published(client: WireClient) -> list[Publish]:
    """Return the PUBLISH packets that come until a PINGREQ is answered."""
    return [packet for packet in await client.settled() if isinstance(packet, Publish)]


# -- one message ------------------------------------------------------------------------------


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("lasting", [False, True])
async def test_a_message_reaches_a_subscriber_of_another_node_once(qos: int, lasting: bool) -> None:
    async with mqtt_nodes(3) as (one, two, three):
        properties = LASTING if lasting else None
        subscriber = await two.connect("s", properties=properties)
        await subscriber.subscribe("a/#", "a/+", qos=2)
        here = await one.connect("here", properties=properties)
        await here.subscribe("a/b", qos=2)
        idle = await three.connect("idle", properties=properties)
        await idle.subscribe("b/#")
        publisher = await one.connect("p")

        assert await publish(publisher, "a/b", b"x", qos) == 0

        for client in (subscriber, here):
            packet = await received(client)
            assert (packet.topic_name, packet.payload, packet.qos) == ("a/b", b"x", qos)
            assert await client.settled() == []
        assert await idle.settled() == []


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("lasting", [False, True])
async def test_version_5_properties_arrive_as_they_were(qos: int, lasting: bool) -> None:
    async with mqtt_nodes(2, clock=ManualClock()) as (one, two):
        subscriber = await two.connect("s", properties=LASTING if lasting else None)
        await subscriber.subscribe(
            Subscription("a/#", 1, retain_as_published=True),
            properties={SUBSCRIPTION_IDENTIFIER: [7]},
        )
        await subscriber.subscribe(
            Subscription("a/b", 1), properties={SUBSCRIPTION_IDENTIFIER: [9]}
        )
        publisher = await one.connect("p")
        properties = {
            CONTENT_TYPE: "text/plain",
            RESPONSE_TOPIC: "answers/1",
            CORRELATION_DATA: b"\0\1",
            USER_PROPERTY: [("k", "1"), ("k", "2")],
            MESSAGE_EXPIRY_INTERVAL: 100,
        }
        await publish(publisher, "a/b", b"x", qos, retain=True, properties=properties)

        packet = await received(subscriber)

        assert packet.retain
        identifiers = packet.properties.pop(SUBSCRIPTION_IDENTIFIER)
        assert sorted(identifiers) == [7, 9]
        assert packet.properties.pop(MESSAGE_EXPIRY_INTERVAL) == 100
        properties.pop(MESSAGE_EXPIRY_INTERVAL)
        assert packet.properties == properties


async def test_no_local_holds_for_a_client_that_has_moved() -> None:
    async with mqtt_nodes(2) as (one, two):
        client = await one.connect("c", properties=LASTING)
        await client.subscribe(Subscription("a/#", 1, no_local=True))
        await publish(client, "a/b", b"own", 1)
        moved = await two.connect("c", clean_start=False, properties=LASTING, session_present=True)
        other = await one.connect("o")
        await publish(other, "a/b", b"other", 1)
        assert (await received(moved)).payload == b"other"


async def test_messages_travel_only_where_they_are_wanted() -> None:
    async with mqtt_nodes(3) as (one, two, three):
        subscriber = await two.connect("s")
        await subscriber.subscribe("a/#")
        publisher = await one.connect("p")
        for topic in ("a/1", "b/1"):
            await publish(publisher, topic, b"x")
        await received(subscriber)
        sent = [subject for subject in one.fabric.sent if subject.startswith("to.")]
        assert sent == [f"to.{two.instance}"]

        subscriber.send(Unsubscribe(3, ["a/#"]))
        await subscriber.settled()
        await until(lambda: all(n.cluster.reach("a/1") is None for n in (one, three)))


async def test_a_publish_after_suback_always_comes() -> None:
    async with mqtt_nodes(3) as nodes:
        publishers = [await node.connect() for node in nodes]
        for number in range(30):
            subscriber = await nodes[number % 3].connect()
            topic = f"t/{number}"
            await subscriber.subscribe(topic)
            await publish(publishers[(number + 1) % 3], topic, b"x")
            assert (await received(subscriber)).payload == b"x"


async def test_order_from_one_publisher_is_kept() -> None:
    async with mqtt_nodes(2) as (one, two):
        lasting = await two.connect("l", properties=LASTING)
        clean = await two.connect("c")
        for client in (lasting, clean):
            await client.subscribe("a/#")
        publisher = await one.connect("p")
        publisher.send(*(Publish("a/b", b"%d" % n, 1, packet_id=n + 1) for n in range(300)))
        for client in (lasting, clean):
            assert [(await received(client)).payload for _ in range(300)] == [
                b"%d" % n for n in range(300)
            ]


# -- durable before it is acknowledged --------------------------------------------------------


async def test_without_quorum_nothing_that_must_be_durable_is_acknowledged() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as (one, two):
        lasting = await two.connect("l", properties=LASTING)
        await lasting.subscribe("a/#")
        here = await one.connect("h")
        await here.subscribe("q0")
        publisher = await one.connect("p")

        engine.has_quorum = False
        publisher.send(Publish("a/b", b"x", 1, packet_id=5))
        publisher.send(Publish("q0", b"local"))
        assert (await received(here)).payload == b"local"
        assert await publisher.settled() == []
        assert await lasting.settled() == []

        engine.has_quorum = True
        assert await publisher.receive(Puback) == Puback(5)
        assert (await received(lasting)).payload == b"x"
        assert await lasting.settled() == []


async def test_a_session_that_lasts_is_answered_when_its_record_is_durable() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(1, engine) as (one,):
        engine.has_quorum = False
        client = await one.open()
        client.send(Connect("c", properties=LASTING))
        plain = await one.connect("plain")  # needs nothing durable
        assert await plain.settled() == []
        engine.has_quorum = True
        packet = await client.next()
        assert packet is not None
        assert len([key for key in engine.writes if key.startswith("s.")]) == 1


# -- sessions that move -----------------------------------------------------------------------


async def test_a_client_that_connects_elsewhere_is_taken_over_with_its_queue() -> None:
    async with mqtt_nodes(3) as (one, two, three):
        first = await one.connect("c", properties=LASTING)
        await first.subscribe("a/#", qos=1)
        publisher = await three.connect("p")
        await publish(publisher, "a/1", b"unacknowledged", 1)
        before = await first.receive(Publish)

        second = await two.connect("c", clean_start=False, properties=LASTING, session_present=True)

        assert (await first.receive(Disconnect)).reason_code == 0x8E
        again = await received(second)
        assert (again.payload, again.dup) == (b"unacknowledged", True)
        assert again.packet_id == before.packet_id
        await publish(publisher, "a/2", b"later", 1)
        assert (await received(second)).payload == b"later"
        assert "c" not in one.cluster.records.held


async def test_clean_sessions_are_where_their_client_was_last() -> None:
    async with mqtt_nodes(2) as (one, two):
        first = await one.connect("c")
        await two.connect("c")
        assert (await first.receive(Disconnect)).reason_code == 0x8E


async def test_a_clean_start_elsewhere_ends_the_session_everywhere() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as (one, two):
        first = await one.connect("c", properties=LASTING)
        await first.subscribe("a/#")
        await two.connect("c", clean_start=True)
        assert (await first.receive(Disconnect)).reason_code == 0x8E
        await until(lambda: one.cluster.reach("a/1") is None and two.cluster.reach("a/1") is None)
        assert not [key for key in engine.states if key.startswith("s.")]


async def test_the_queue_of_a_client_that_is_away_outlives_its_node() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(3, engine) as (one, two, three):
        client = await one.connect("c", properties=LASTING)
        await client.subscribe("a/#", qos=2)
        publisher = await three.connect("p")
        await publish(publisher, "a/1", b"1", 1)
        await one.gone(client)
        await publish(publisher, "a/2", b"2", 1)
        await one.die(engine)
        await publish(publisher, "a/3", b"3", 2)

        back = await two.connect("c", clean_start=False, properties=LASTING, session_present=True)
        found = [await received(back) for _ in range(3)]
        assert [(p.payload, p.qos) for p in found] == [(b"1", 1), (b"2", 1), (b"3", 2)]
        assert await back.settled() == []


async def test_an_owner_that_was_cut_off_can_neither_store_nor_go_on() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(3, engine) as (one, two, three):
        old = await one.connect("c", properties=LASTING)
        await old.subscribe("a/#", qos=1)
        one.fabric.cut()
        publisher = await three.connect("p")
        await publish(publisher, "a/1", b"1", 1)

        new = await two.connect("c", clean_start=False, properties=LASTING, session_present=True)
        assert (await received(new)).payload == b"1"
        await new.settled()
        old.send(Subscribe(9, [Subscription("b/#", 1)]))
        one.fabric.heal()

        # it hears of the record before anything else, or its write is refused: it ends either way
        while (packet := await old.next()) is not None:
            assert not (isinstance(packet, Publish) and packet.dup)
        assert "c" not in one.cluster.records.held
        await publish(publisher, "a/2", b"2", 1)
        assert (await received(new)).payload == b"2"
        await publish(publisher, "b/1", b"never subscribed", 1)
        assert await new.settled() == []


async def test_qos_2_goes_on_under_the_same_identifier_after_the_node_died() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(3, engine) as (one, two, three):
        client = await one.connect("c", properties=LASTING)
        await client.subscribe("a/#", qos=2)
        publisher = await three.connect("p")
        await publish(publisher, "a/1", b"released", 2)
        await publish(publisher, "a/2", b"sent", 2)
        first = await client.receive(Publish)
        second = await client.receive(Publish)
        client.send(Pubrec(first.packet_id))
        assert await client.receive(Pubrel) == Pubrel(first.packet_id)
        await one.die(engine)

        back = await two.connect("c", clean_start=False, properties=LASTING, session_present=True)
        assert await back.receive(Pubrel) == Pubrel(first.packet_id)
        back.send(Pubcomp(first.packet_id))
        again = await received(back)
        assert (again.payload, again.packet_id, again.dup) == (b"sent", second.packet_id, True)
        assert await back.settled() == []


async def test_a_qos_2_publish_that_was_received_is_not_taken_twice() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(3, engine) as (one, two, three):
        subscriber = await three.connect("s", properties=LASTING)
        await subscriber.subscribe("a/#", qos=2)
        publisher = await one.connect("p", properties=LASTING)
        publisher.send(Publish("a/1", b"once", 2, packet_id=5))
        assert (await publisher.receive(Pubrec)).packet_id == 5
        await one.die(engine)

        back = await two.connect("p", clean_start=False, properties=LASTING, session_present=True)
        back.send(Publish("a/1", b"once", 2, dup=True, packet_id=5))
        assert (await back.receive(Pubrec)).packet_id == 5
        back.send(Pubrel(5))
        assert await back.receive(Pubcomp) == Pubcomp(5)
        assert (await received(subscriber)).payload == b"once"
        assert await subscriber.settled() == []


async def test_one_record_write_a_connect_and_a_subscribe() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as (one, _two):
        await one.connect("plain")
        engine.writes.clear()
        client = await one.connect("c", properties=LASTING)
        assert len(engine.writes) == 1
        await client.subscribe(*(f"t/{n}" for n in range(50)))
        assert len(engine.writes) == 2


# -- shared subscriptions ---------------------------------------------------------------------


@pytest.mark.parametrize("qos", [0, 1])
async def test_one_member_of_a_group_gets_each_message(qos: int) -> None:
    async with mqtt_nodes(3) as nodes:
        members = []
        for number, node in enumerate([*nodes, nodes[0]]):
            client = await node.connect(f"m{number}", properties=LASTING if number == 2 else None)
            await client.subscribe("$share/g/a/#", qos=1)
            members.append(client)
        publisher = await nodes[1].connect("p")
        for number in range(40):
            await publish(publisher, "a/b", b"%d" % number, qos)
        await publisher.settled()
        await until(lambda: sum(sum(n.broker.stats().messages_sent) for n in nodes) == 40)
        found = [await payloads(member) for member in members]
        assert sorted(p for each in found for p in each) == sorted(b"%d" % n for n in range(40))
        assert all(len(each) >= 5 for each in found), found


async def test_what_a_member_has_not_acknowledged_goes_to_another_node() -> None:
    async with mqtt_nodes(2) as (one, two):
        leaver = await one.connect("leaver")
        await leaver.subscribe("$share/g/a/#", qos=1)
        publisher = await two.connect("p")
        await publish(publisher, "a/b", b"x", 1)
        assert (await leaver.receive(Publish)).payload == b"x"
        stayer = await two.connect("stayer")
        await stayer.subscribe("$share/g/a/#", qos=1)
        await one.gone(leaver)
        assert (await received(stayer)).payload == b"x"
        await stayer.settled()
        assert not one.cluster.shares.waiting
        assert not two.cluster.shares.waiting


async def test_what_a_dead_node_s_members_had_goes_to_others() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(3, engine) as (one, two, three):
        member = await one.connect("m")
        await member.subscribe("$share/g/a/#", qos=1)
        publisher = await three.connect("p")
        for number in range(5):
            assert await publish(publisher, "a/b", b"%d" % number, 1) == 0
        other = await two.connect("o")
        await other.subscribe("$share/g/a/#", qos=1)
        await one.die(engine)
        assert sorted([(await received(other)).payload for _ in range(5)]) == [
            b"%d" % number for number in range(5)
        ]


async def test_messages_wait_for_a_lasting_member_when_nobody_is_connected() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as (one, two):
        member = await one.connect("m", properties=LASTING)
        await member.subscribe("$share/g/a/#", qos=1)
        publisher = await two.connect("p")
        await publish(publisher, "a/b", b"1", 1)
        assert (await member.receive(Publish)).payload == b"1"
        await one.gone(member)
        await publish(publisher, "a/b", b"2", 1)
        back = await two.connect("m", clean_start=False, properties=LASTING, session_present=True)
        found = [await received(back) for _ in range(2)]
        assert sorted(packet.payload for packet in found) == [b"1", b"2"]
        assert await back.settled() == []


async def test_what_a_member_that_is_alone_has_not_acknowledged_stays_with_it() -> None:
    async with mqtt_nodes(1) as (one,):
        member = await one.connect("m", properties=LASTING)
        await member.subscribe("$share/g/a/#", qos=1)
        await one.gone(member)
        publisher = await one.connect("p")
        await publish(publisher, "a/b", b"x", 1)  # waits for it
        for dup in (False, True):
            member = await one.connect(
                "m", clean_start=False, properties=LASTING, session_present=True
            )
            packet = await member.receive(Publish)
            assert (packet.payload, packet.dup) == (b"x", dup)
            await one.gone(member)
        assert one.cluster.shares.moved == 0


async def test_a_node_that_starts_between_two_leaders_joins_once_there_is_one() -> None:
    engine = MemoryEngine()
    engine.has_quorum = False
    starting = asyncio.create_task(start_node(engine, "n0"))
    await until(lambda: bool(engine.nodes) and engine.nodes[0].failed > 0)
    assert not starting.done()
    engine.has_quorum = True
    node = await starting
    assert node.instance in node.cluster.presence.there
    await node.broker.stop()


# -- QoS 2 from a publisher whose node dies ---------------------------------------------------


async def exchange(client: WireClient, payload: bytes, packet_id: int = 7) -> None:
    """Publish with QoS 2, all the way."""
    client.send(Publish("a/1", payload, 2, packet_id=packet_id))
    assert (await client.receive(Pubrec)).reason_code < 0x80
    client.send(Pubrel(packet_id))
    await client.receive(Pubcomp)


@pytest.mark.parametrize("appended", [True, False])
@pytest.mark.parametrize("lasting", [True, False])
@pytest.mark.parametrize("dies", [True, False])
async def test_a_qos_2_publish_that_is_sent_again_to_another_node_comes_once(
    appended: bool, lasting: bool, dies: bool
) -> None:
    """Its node has put it into the log, or not, and died before the record had its identifier."""
    engine = MemoryEngine()
    async with mqtt_nodes(3, engine) as (one, two, three):
        subscriber = await three.connect("s", properties=LASTING if lasting else None)
        await subscriber.subscribe("a/#", qos=2)
        publisher = await one.connect("p", properties=LASTING)
        await exchange(publisher, b"same")  # the identifier was used before, for the same
        assert (await received(subscriber)).payload == b"same"
        ended = engine.last_seq
        if appended:
            let_on = one.fabric.hold_puts("s.")
        else:
            engine.log_bytes_max = 1
        publisher.send(Publish("a/1", b"same", 2, packet_id=7))
        if appended:
            await until(lambda: engine.last_seq > ended and one.fabric.held_puts > 0)
        else:
            await until(lambda: one.fabric.refused > 0)
        if dies:
            await one.die(engine)
        else:
            publisher.abort()
        engine.log_bytes_max = 0
        if appended:
            let_on.set()
        again = await two.connect("p", clean_start=False, properties=LASTING, session_present=True)
        again.send(Publish("a/1", b"same", 2, True, packet_id=7))
        assert (await again.receive(Pubrec)).reason_code < 0x80
        again.send(Pubrel(7))
        await again.receive(Pubcomp)
        assert (await received(subscriber)).payload == b"same"
        await exchange(again, b"last", 8)
        assert (await received(subscriber)).payload == b"last"
        assert await subscriber.settled() == []
        assert len(two.cluster.arrivals) == 0


# -- retained ---------------------------------------------------------------------------------


async def test_retained_messages_are_on_every_node_also_a_later_one() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as (one, two):
        publisher = await one.connect("p")
        for topic in ("a/1", "a/2", "b/1"):
            await publish(publisher, topic, topic.encode(), 1, retain=True)
        await publish(publisher, "a/2", b"", 1, retain=True)
        three = await start_node(engine, "three")
        for node in (one, two, three):
            client = await node.connect()
            await client.subscribe("+/#")
            found = {(p.topic_name, p.retain) for p in await published(client)}
            assert found == {("a/1", True), ("b/1", True)}
        for client in three.clients:
            await client.close()
        await three.broker.stop()


@pytest.mark.parametrize("known_before", [False, True])
async def test_what_is_retained_elsewhere_and_still_on_its_way_is_waited_for(
    known_before: bool,
) -> None:
    async with mqtt_nodes(2) as (one, two):
        publisher = await one.connect("p")
        if known_before:
            await publish(publisher, "a/0", b"old", 1, retain=True)
        two.fabric.be_late(True)
        await publish(publisher, "a/1", b"kept", 1, retain=True)
        subscriber = await two.connect("s")
        await subscriber.subscribe("a/+", qos=1)
        expected = [b"old", b"kept"] if known_before else [b"kept"]
        assert sorted(await payloads(subscriber)) == sorted(expected)


@pytest.mark.parametrize("removed", [False, True])
async def test_what_another_node_has_under_way_is_waited_for(removed: bool) -> None:
    """It was published before that node knew of the subscription: it does not come live."""
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as (one, two):
        publisher = await one.connect("p")
        if removed:
            await publish(publisher, "a/1", b"old", 1, retain=True)
        let_on = one.fabric.hold_puts("r.")
        await publish(publisher, "a/1", b"" if removed else b"kept", 0, retain=True)
        await until(lambda: not let_on.is_set() and one.fabric.held_puts > 0)
        subscriber = await two.connect("s")
        subscriber.send(Subscribe(1, [Subscription("a/+", 1)]))
        await until(lambda: two.cluster.peers.wanted("a/+") == 1)
        await publish(publisher, "b/x", b"", 1)  # the first node has heard of it by now
        await until(lambda: one.cluster.reach("a/1") is not None)
        let_on.set()
        found = [await subscriber.next()]
        found += await subscriber.settled()
        kinds = [type(one) for one in found]
        assert kinds == ([Suback] if removed else [Suback, Publish])


async def test_a_cluster_that_cannot_say_what_is_retained_lets_a_client_subscribe() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(1, engine) as (one,):
        subscriber = await one.connect("s")
        engine.has_quorum = False
        assert await subscriber.subscribe("a/+", qos=0) == [0]
        engine.has_quorum = True


async def test_two_writers_of_a_retained_message_leave_one_for_all() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(3, engine) as nodes:
        writers = [await node.connect() for node in nodes]
        for turn in range(20):
            for number, writer in enumerate(writers):
                payload = b"" if (turn + number) % 5 == 0 else b"%d-%d" % (turn, number)
                writer.send(Publish("r", payload, 1, retain=True, packet_id=turn + 1))
        for writer in writers:
            for _ in range(20):
                await writer.receive(Puback)
        kept = set()
        for node in nodes:
            tickets = node.cluster.tickets
            await until(lambda tickets=tickets: not tickets)  # type: ignore[misc]
            message = node.broker._core.router.retained.get("r")
            kept.add(message.payload if message is not None else b"")
        assert len(kept) == 1


async def test_the_broker_s_own_topics_stay_on_their_node() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as (one, two):
        client = await two.connect("c")
        await client.subscribe("$SYS/#")
        router = one.broker._core.router
        assert not router.receivers(router.routes[b"$SYS/broker/uptime"])


# -- the life of a node -----------------------------------------------------------------------


async def test_a_node_whose_lease_ran_out_begins_again() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as (one, two):
        client = await one.connect("c", properties=LASTING)
        await client.subscribe("a/#")
        before = one.instance
        engine.expire_lease(before)
        assert isinstance(await client.next(), Disconnect)
        await until(lambda: one.instance != before and one.instance in two.cluster.presence.there)
        back = await one.connect("c", clean_start=False, properties=LASTING, session_present=True)
        publisher = await two.connect("p")
        await publish(publisher, "a/b", b"x", 1)
        assert (await received(back)).payload == b"x"

        # a last word of what it was comes back to it: it is not taken for another node
        one.cluster.peers._received(encode(["beat", before, 0, 0]))
        here = await one.connect("h")
        await here.subscribe("q0")
        await publish(here, "q0", b"once")
        assert (await received(here)).payload == b"once"
        assert await here.settled() == []
        assert set(one.cluster.peers.known) == {two.instance}


async def test_the_log_keeps_only_what_somebody_needs() -> None:
    engine = MemoryEngine()
    async with mqtt_nodes(2, engine) as (one, two):
        away = await one.connect("away", properties=LASTING)
        here = await one.connect("here", properties=LASTING)
        for client in (away, here):
            await client.subscribe("a/#", qos=1)
        other = await two.connect("o")
        await other.subscribe("b/#", qos=1)
        await one.gone(away)
        publisher = await two.connect("p")
        for number in range(10):
            await publish(publisher, "a/b", b"%d" % number, 1)
            await received(here)
        publisher_one = await one.connect("q")
        for _ in range(3):
            await publish(publisher_one, "b/b", b"", 1)
        kept = len(engine.log)
        for node in (one, two):
            node.cluster.peers.beat()
        await other.settled()
        for node in (one, two):
            await node.cluster.house.tidy()
        assert not [entry for entry in engine.log if entry.subject.startswith("a.")][1:]
        assert len(engine.log) < kept
        back = await two.connect(
            "away", clean_start=False, properties=LASTING, session_present=True
        )
        assert [(await received(back)).payload for _ in range(10)] == [b"%d" % n for n in range(10)]


# -- more than fits into memory ---------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_waits_for_a_client_that_is_away_stays_in_the_log(elsewhere: bool) -> None:
    config = BrokerConfig(sys_interval_s=0, queue_messages_max=20)
    async with mqtt_nodes(2, config=config) as (one, two):
        client = await one.connect("c", properties=LASTING)
        await client.subscribe("a/#", qos=1)
        await one.gone(client)
        publisher = await two.connect("p")
        for start in range(0, 500, 100):
            numbers = range(start, start + 100)
            publisher.send(*(Publish("a/b", b"%d" % n, 1, packet_id=n + 1) for n in numbers))
            for _ in numbers:
                assert (await publisher.receive(Puback)).reason_code == 0
        assert one.broker.stats().queued_bytes == 0

        node = two if elsewhere else one
        back = await node.connect("c", clean_start=False, properties=LASTING, session_present=True)
        assert [(await received(back)).payload for _ in range(500)] == [
            b"%d" % n for n in range(500)
        ]
        await publish(publisher, "a/b", b"live", 1)
        assert (await received(back)).payload == b"live"
        await until(lambda: not one.cluster.stats().sessions_behind)
        assert node.broker.stats().drops == {}


async def test_a_client_that_takes_its_time_holds_up_nobody_and_loses_nothing() -> None:
    config = BrokerConfig(sys_interval_s=0, queue_messages_max=20)
    async with mqtt_nodes(2, config=config) as (one, two):
        slow = await one.connect("slow", properties=LASTING)
        await slow.subscribe("a/#", qos=1)
        publisher = await one.connect("p")
        for number in range(300):
            assert await publish(publisher, "a/b", b"%d" % number, 1) == 0
        assert len(one.broker._core.registry.sessions["slow"].outbound or ()) <= 10
        first = [await received(slow) for _ in range(50)]
        moved = await two.connect(
            "slow", clean_start=False, properties=LASTING, session_present=True
        )
        rest = [await received(moved) for _ in range(250)]
        assert [p.payload for p in [*first, *rest]] == [b"%d" % n for n in range(300)]
        assert await moved.settled() == []


@pytest.mark.parametrize("version", [4, 5])
async def test_what_the_cluster_cannot_carry_is_refused_and_stops_nothing(version: int) -> None:
    config = BrokerConfig(sys_interval_s=0, maximum_packet_size_bytes=4 << 20)
    async with mqtt_nodes(2, config=config) as (one, two):
        subscriber = await two.connect("s", properties=LASTING)
        await subscriber.subscribe("a/#", qos=1)
        publisher = await one.connect("p", version=version)
        publisher.send(Publish("a/b", bytes(2 << 20), 1, packet_id=1))
        if version == 5:
            assert (await publisher.receive(Puback)).reason_code == 0x97
        else:
            assert await publisher.closed()
        other = await one.connect("o")
        await publish(other, "a/b", b"small", 1)
        assert (await received(subscriber)).payload == b"small"
        assert await subscriber.settled() == []


async def test_a_session_that_grows_past_what_a_record_takes_ends_alone() -> None:
    config = BrokerConfig(sys_interval_s=0)
    async with mqtt_nodes(2, config=config) as (one, _two):
        client = await one.connect("c", properties=LASTING)
        filters = [Subscription("f" * 60_000 + f"/{number}", 1) for number in range(20)]
        for some in (filters[:10], filters[10:]):
            client.send(Subscribe(1, some))
        while not isinstance(packet := await client.next(), Disconnect):
            assert packet is not None
        other = await one.connect("o", properties=LASTING)
        await other.subscribe("a/#")


async def test_live_readings_reach_subscribers_of_every_node_once() -> None:
    async with mqtt_nodes(3) as nodes:
        subscribers = []
        for number, node in enumerate([*nodes, *nodes]):
            properties = LASTING if number % 2 else None
            client = await node.connect(f"s{number}", properties=properties)
            await client.subscribe("devices/+/t", "devices/#", qos=1)
            subscribers.append(client)
        broker = nodes[0].broker
        assert broker.has_subscribers("devices/1/t")
        readings = [Outgoing("devices/1/t", b"%d" % n, n % 2) for n in range(20)]
        assert await broker.publish_many(readings) == 20
        for client in subscribers:
            found = [(await received(client)).payload for _ in range(20)]
            assert sorted(found) == sorted(b"%d" % n for n in range(20))
            assert await client.settled() == []
