"""What a reload of access, or another user of a client id, takes away and leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from mqtt.broker.access.config import AccessConfig, PluginConfig, RuleConfig
from mqtt.broker.access.passwords import hash_password
from mqtt.broker.config import BrokerConfig
from mqtt.broker.front import FrontError
from mqtt.broker.net.config import ListenerConfig
from mqtt.packets import Connack, Connect, Disconnect, Puback, Publish, Will
from mqtt.properties import RECEIVE_MAXIMUM, SESSION_EXPIRY_INTERVAL, WILL_DELAY_INTERVAL
from mqtt.reason_codes import ReasonCode
from runtime.clock import ManualClock
from tests.kit.amqtt_plugins import SlowTopics
from tests.kit.brokers import ManualStore, WireClient
from tests.kit.fronts import Fronted, fronting, settings

ALICE = hash_password("secret")
AUTH = PluginConfig("tests.kit.amqtt_plugins.RecordingAuth", {"word": "sesame"})
TOPICS = PluginConfig("tests.kit.amqtt_plugins.SlowTopics", {"prefixes": ["ok", "#"]})


@pytest.fixture
def users(tmp_path: Path) -> Path:
    file = tmp_path / "users"
    file.write_text(f"# users\n\nalice:{ALICE}\n")
    return file


@pytest.fixture(autouse=True)
def _fresh_plugins() -> None:
    SlowTopics.asked.clear()


async def code(front: Fronted, client_id: str = "c", **fields: object) -> int:
    """Return the reason code that a CONNECT gets."""
    _, connack = await front.ask_at(client_id, **fields)  # type: ignore[arg-type]
    return connack.reason_code


async def refusal(client: WireClient, topic: str, packet_id: int = 1) -> int:
    """Return the reason code that a publish gets."""
    client.send(Publish(topic, b"x", qos=1, packet_id=packet_id))
    return (await client.receive(Puback)).reason_code


async def test_a_reload_takes_leave_away_and_gives_it(users: Path) -> None:
    async with fronting() as front:
        client, _ = await front.ask_at("c")
        await client.subscribe("a/#", "b/#")
        other, _ = await front.ask_at("other")
        assert await refusal(other, "a/x") == 0
        assert isinstance(await client.next(), Publish)
        access = AccessConfig(rules=(RuleConfig(topics=("b/#",)),))
        now = front.front._settings
        await front.front.reload(replace(now, access=access))
        assert await refusal(other, "a/x") == 0x87
        assert await refusal(other, "b/x") == 0
        assert getattr(await client.next(), "topic_name", None) == "b/x"
        assert front.broker.stats().subscriptions == 1
        await front.front.reload(replace(now, access=AccessConfig()))
        assert await client.subscribe("a/#") == [2]


async def test_a_reload_counts_for_a_client_whose_connect_is_being_answered(users: Path) -> None:
    store = ManualStore()
    async with fronting(store=store) as front:
        client = await front.open()
        client.send(
            Connect("c", properties={SESSION_EXPIRY_INTERVAL: 60}, will=Will("w", b"x", 0, True))
        )
        await front.until(lambda: len(store.changes) == 1)  # let in, and not yet told so
        now = front.front._settings
        await front.front.reload(replace(now, access=AccessConfig(anonymous="never")))
        store.commit()
        assert (await client.receive(Connack)).reason_code == ReasonCode.SERVER_BUSY
        assert await client.closed()
        assert await code(front) == 0x87
        assert front.broker.stats().retained_messages == 0  # its will was not sent


async def test_a_reload_ends_whoever_would_not_get_in_and_nobody_else(users: Path) -> None:
    users.write_text(f"alice:{ALICE}\nbob:{ALICE}\n")
    access = AccessConfig(password_file=users)
    async with fronting(access=access) as front:
        clients = {}
        for name in ("alice", "bob"):
            clients[name], connack = await front.ask_at(name, username=name, password=b"secret")
            assert connack.reason_code == 0
        local, _ = await front.ask_at("local")
        users.write_text(f"bob:{ALICE}\n")
        await front.front.reload(front.front._settings)
        assert (await clients["alice"].receive(Disconnect)).reason_code == 0x87
        assert await clients["bob"].settled() == []
        assert await local.settled() == []
        await front.front.reload(
            replace(front.front._settings, access=replace(access, anonymous="never"))
        )
        assert (await local.receive(Disconnect)).reason_code == 0x87


async def test_a_reload_that_cannot_be_changes_nothing(users: Path) -> None:
    access = AccessConfig(password_file=users)
    async with fronting(access=access) as front:
        broken = replace(access, plugins=(PluginConfig("no.such.Plugin"),), anonymous="never")
        with pytest.raises(FrontError):
            await front.front.reload(replace(front.front._settings, access=broken))
        assert await code(front) == 0
        assert await code(front, username="alice", password=b"secret") == 0


async def test_what_a_plugin_said_is_forgotten_by_a_reload() -> None:
    access = AccessConfig(plugins=(TOPICS,))
    async with fronting(access=access) as front:
        client, _ = await front.ask_at("c")
        assert await refusal(client, "ok/1") == 0x10
        other = replace(access, plugins=(replace(TOPICS, options={"prefixes": ["x"]}),))
        await front.front.reload(replace(front.front._settings, access=other))
        assert await refusal(client, "ok/1") == 0x87
        assert len(SlowTopics.asked) == 2


async def test_a_session_that_comes_back_has_lost_what_it_may_not_have_any_more() -> None:
    async with fronting() as front:
        lasting = {SESSION_EXPIRY_INTERVAL: 100}
        client, _ = await front.ask_at("c", properties=lasting)
        await client.subscribe("a", "b")
        await front.gone(client)
        access = AccessConfig(rules=(RuleConfig(topics=("b",)),))
        await front.front.reload(replace(front.front._settings, access=access))
        _, connack = await front.ask_at("c", clean_start=False, properties=lasting)
        assert connack.session_present
        assert front.broker.stats().subscriptions == 1


@pytest.mark.parametrize("version", [4, 5])
async def test_another_user_of_a_client_id_does_not_get_what_waits(
    version: int, users: Path
) -> None:
    users.write_text(f"alice:{ALICE}\neve:{ALICE}\nwriter:{ALICE}\n")
    rules = (
        RuleConfig(who=("user:writer",), topics=("#",)),
        RuleConfig(topics=("of/%u/#", "all/#")),
    )
    access = AccessConfig(anonymous="never", password_file=users, rules=rules)
    lasting = {SESSION_EXPIRY_INTERVAL: 100} if version == 5 else {}

    async with fronting(access=access) as front:

        async def connect(client_id: str, user: str) -> WireClient:
            client, connack = await front.ask_at(
                client_id, username=user, password=b"secret", clean_start=False, version=version,
                properties=lasting,
            )  # fmt: skip
            assert connack.reason_code == 0
            return client

        alice = await connect("c", "alice")
        await alice.subscribe("of/alice/#", "all/#")
        writer = await connect("w", "writer")

        async def publish(topic: str) -> None:
            writer.send(Publish(topic, b"x", qos=1, packet_id=1))
            await writer.receive(Puback)

        await publish("of/alice/sent")
        assert (await alice.receive(Publish)).topic_name == "of/alice/sent"
        await front.gone(alice)
        for topic in ("of/alice/waiting", "all/x"):
            await publish(topic)
        eve = await connect("c", "eve")
        assert (await eve.receive(Publish)).topic_name == "all/x"
        assert await eve.settled() == []
        assert front.broker.stats().drops["not_authorized"] == 2


async def test_what_waits_is_not_sent_when_a_reload_takes_it_away() -> None:
    async with fronting() as front:
        client, _ = await front.ask_at("c", properties={RECEIVE_MAXIMUM: 1})
        writer, _ = await front.ask_at("writer")
        await client.subscribe("a/#", "b/#")
        for topic in ("a/1", "a/2", "b/1"):
            assert await refusal(writer, topic) == 0
        sent = await client.receive(Publish)
        assert sent.topic_name == "a/1"
        access = AccessConfig(rules=(RuleConfig(topics=("b/#",)),))
        await front.front.reload(replace(front.front._settings, access=access))
        client.send(Puback(sent.packet_id))
        assert (await client.receive(Publish)).topic_name == "b/1"
        assert await client.settled() == []


@pytest.mark.parametrize("is_here", [True, False])
async def test_what_came_by_a_shared_subscription_goes_to_another_member(is_here: bool) -> None:
    lasting = {SESSION_EXPIRY_INTERVAL: 100}
    async with fronting() as front:
        one, _ = await front.ask_at("one", properties={RECEIVE_MAXIMUM: 1})
        await one.subscribe("$share/g/a/#")
        writer, _ = await front.ask_at("writer")
        for topic in ("a/1", "a/2", "a/3"):
            assert await refusal(writer, topic) == 0
        sent = await one.receive(Publish)
        two, _ = await front.ask_at("two", properties=lasting)
        await two.subscribe("$share/g/a/#")
        if not is_here:
            await front.gone(two)
        rules = (
            RuleConfig(effect="deny", who=("client:one",), topics=("a/#",)),
            RuleConfig(topics=("#",)),
        )
        now = front.front._settings
        await front.front.reload(replace(now, access=AccessConfig(rules=rules)))
        if not is_here:
            two, _ = await front.ask_at("two", clean_start=False, properties=lasting)
        assert [(await two.receive(Publish)).topic_name for _ in range(2)] == ["a/2", "a/3"]
        one.send(Puback(sent.packet_id))  # what was sent is its own
        assert await one.settled() == []
        assert "not_authorized" not in front.broker.stats().drops


async def test_retained_messages_on_their_way_stop_when_a_reload_takes_them_away() -> None:
    broker = BrokerConfig(sys_interval_s=0, inflight_max=2)
    async with fronting(broker=broker) as front:
        writer, _ = await front.ask_at("writer")
        for topic in (*(f"a/{n}" for n in range(9)), "b/1"):
            writer.send(Publish(topic, b"x", qos=1, packet_id=1, retain=True))
            await writer.receive(Puback)
        client, _ = await front.ask_at("c")
        await client.subscribe("a/#", "b/#")
        sent = [await client.receive(Publish) for _ in range(2)]
        access = AccessConfig(rules=(RuleConfig(topics=("b/#",)),))
        await front.front.reload(replace(front.front._settings, access=access))
        client.send(*[Puback(each.packet_id) for each in sent])
        assert (await client.receive(Publish)).topic_name == "b/1"
        assert await client.settled() == []


@pytest.mark.parametrize("plugins", [False, True])
async def test_a_will_is_not_sent_when_a_reload_takes_its_topic_away(plugins: bool) -> None:
    def only(topic: str) -> AccessConfig:
        if plugins:
            return AccessConfig(plugins=(replace(TOPICS, options={"prefixes": [topic]}),))
        return AccessConfig(rules=(RuleConfig(topics=(f"{topic}/#",)),))

    clock = ManualClock()
    async with fronting(access=only("w"), clock=clock) as front:
        wills = {name: Will(f"w/{name}", b"x", 1, True) for name in ("here", "away")}
        wills["away"].properties[WILL_DELAY_INTERVAL] = 1
        clients = {}
        for name, will in wills.items():
            clients[name], connack = await front.ask_at(
                name, will=will, properties={SESSION_EXPIRY_INTERVAL: 1}
            )
            assert connack.reason_code == 0
        await front.gone(clients["away"])
        now = front.front._settings
        await front.front.reload(replace(now, access=only("other")))
        await front.gone(clients["here"])
        front.pass_time(clock, 2)
        front.pass_time(clock, 2)
        await front.until(lambda: not front.broker.stats().sessions)
        assert front.broker.stats().retained_messages == 0


async def test_who_came_in_by_a_plugin_goes_with_it() -> None:
    access = AccessConfig(anonymous="never", plugins=(AUTH,))
    async with fronting(access=access) as front:
        client, _ = await front.ask_at("a", username="u", password=b"sesame")
        await front.front.reload(replace(front.front._settings, access=access))
        assert await client.settled() == []
        without = replace(access, plugins=())
        await front.front.reload(replace(front.front._settings, access=without))
        assert (await client.receive(Disconnect)).reason_code == 0x87


async def test_listeners_open_close_and_change_by_a_reload() -> None:
    async with fronting(ListenerConfig(port=0), ListenerConfig(port=0, transport="ws")) as front:
        tcp, ws = front.broker.listeners
        client, _ = await front.ask_at("c", port=tcp.port)
        fewer = replace(tcp.config, connections_max=1)
        more = ListenerConfig(port=0, transport="tcp", host="127.0.0.2")
        await front.front.reload(settings(fewer, more))
        assert [each.config for each in front.broker.listeners] == [fewer, more]
        _, connack = await front.ask_at("d", port=tcp.port)
        assert connack.reason_code == 0x89
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", ws.port)
        assert await client.settled() == []


async def test_limits_change_by_a_reload() -> None:
    async with fronting() as front:
        client, _ = await front.ask_at("c")
        now = front.front._settings
        broker = replace(now.broker, subscriptions_max=1, maximum_packet_size_bytes=1000)
        await front.front.reload(replace(now, broker=broker))
        assert await client.subscribe("a", "b") == [2, 0x97]
        other = await front.open()
        other.send(Connect("d", protocol_version=5))
        assert (await other.receive(Connack)).properties[0x27] == 1000
