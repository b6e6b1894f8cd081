"""Who gets in and what it may do then: over sockets, with password files and amqtt's plugins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from mqtt.broker.access.config import AccessConfig, PluginConfig, RuleConfig
from mqtt.broker.access.passwords import Passwords, hash_password
from mqtt.broker.front import FrontError
from mqtt.broker.net.config import ListenerConfig
from mqtt.packets import Disconnect, Puback, Publish, Pubrec, Will
from mqtt.reason_codes import ReasonCode
from tests.kit.amqtt_plugins import RecordingAuth, SlowTopics
from tests.kit.brokers import ManualCapture, WireClient
from tests.kit.fronts import Fronted, fronting

ALICE = hash_password("secret")


@pytest.fixture
def users(tmp_path: Path) -> Path:
    file = tmp_path / "users"
    file.write_text(f"# users\n\nalice:{ALICE}\n")
    return file


async def code(front: Fronted, client_id: str = "c", **fields: object) -> int:
    """Return the reason code that a CONNECT gets."""
    _, connack = await front.ask_at(client_id, **fields)  # type: ignore[arg-type]
    return connack.reason_code


async def refusal(client: WireClient, topic: str, packet_id: int = 1) -> int:
    """Return the reason code that a publish gets."""
    client.send(Publish(topic, b"x", qos=1, packet_id=packet_id))
    return (await client.receive(Puback)).reason_code


# -- anonymous ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("anonymous", "local", "remote"),
    [("loopback", 0, 0x87), ("always", 0, 0), ("never", 0x87, 0x87)],
)
async def test_who_nobody_vouches_for(anonymous: str, local: int, remote: int) -> None:
    # a connection from another machine: a balancer's word, which never makes one local
    from tests.mqtt.test_listeners import proxy

    ways = [ListenerConfig(port=0), ListenerConfig(port=0, proxy_protocol=True)]
    async with fronting(*ways, access=AccessConfig(anonymous=anonymous)) as front:
        assert await code(front, port=front.ports[0]) == local
        assert await code(front, port=front.ports[1], before=proxy()) == remote


async def test_3_1_1_is_refused_in_its_own_words() -> None:
    async with fronting(access=AccessConfig(anonymous="never")) as front:
        assert await code(front, version=4) == ReasonCode.NOT_AUTHORIZED  # 5 on the wire


@pytest.mark.parametrize(
    ("host", "anonymous", "event"),
    [
        ("0.0.0.0", "always", "mqtt_open_to_everybody"),
        ("0.0.0.0", "loopback", "mqtt_only_local_clients"),
        ("127.0.0.1", "always", None),
    ],
)
async def test_an_open_door_is_said_loudly(host: str, anonymous: str, event: str | None) -> None:
    with structlog.testing.capture_logs() as logs:
        async with fronting(
            ListenerConfig(host=host, port=0), access=AccessConfig(anonymous=anonymous)
        ):
            pass
    warnings = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    assert warnings == ([event] if event else [])


# -- passwords ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 5])
async def test_passwords(users: Path, version: int) -> None:
    access = AccessConfig(anonymous="never", password_file=users)
    async with fronting(access=access) as front:
        for user, password, expected in [
            ("alice", b"secret", 0),
            ("alice", b"secret", 0),  # known by now
            ("alice", b"wrong", 0x86),
            ("alice", b"secret", 0),
            ("alice", None, 0x86),
            ("bob", b"secret", 0x86),
            (None, None, 0x87),
        ]:
            if version == 5 or password is None or user is not None:
                fields = {"username": user, "password": password, "version": version}
                assert await code(front, **fields) == expected, (user, password)


async def test_a_wrong_password_is_no_anonymous_client(users: Path) -> None:
    access = AccessConfig(anonymous="always", password_file=users)
    async with fronting(access=access) as front:
        assert await code(front, username="alice", password=b"wrong") == 0x86
        assert await code(front) == 0


async def test_a_password_that_was_right_is_not_hashed_again(users: Path) -> None:
    passwords = Passwords(users, pytest.fail)
    hashed = []
    verify = passwords._verify_now
    passwords._verify_now = lambda *a: hashed.append(a) or verify(*a)  # type: ignore[method-assign]
    for _ in range(3):
        assert await passwords.verify("alice", b"secret")
    assert len(hashed) == 1
    assert not await passwords.verify("alice", b"other")
    assert not await passwords.verify("ghost", b"secret")  # as much work as for one there is
    assert len(hashed) == 3
    users.write_text(f"alice:{hash_password('changed')}\n")
    assert not await passwords.verify("alice", b"secret")
    assert await passwords.verify("alice", b"changed")
    passwords.close()


async def test_a_changed_file_that_is_wrong_keeps_the_old_users(users: Path) -> None:
    told: list[str] = []
    passwords = Passwords(users, told.append)
    users.write_text("alice\n")
    assert await passwords.verify("alice", b"secret")
    assert await passwords.verify("alice", b"secret")
    assert told == [f"{users}: line 1: expected user:argon2-hash; make one with 'tidegate passwd'"]
    passwords.close()


async def test_the_file_is_amqtts_too(users: Path) -> None:
    plugin = PluginConfig(
        "amqtt.plugins.authentication.FileAuthPlugin", {"password_file": str(users)}
    )
    async with fronting(access=AccessConfig(anonymous="never", plugins=(plugin,))) as front:
        assert await code(front, username="alice", password=b"secret") == 0
        assert await code(front, username="alice", password=b"wrong") == 0x86
        assert await code(front) == 0x87


async def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    access = AccessConfig(password_file=tmp_path / "none")
    with pytest.raises(FrontError, match=r"access: .*none: cannot be read: No such file"):
        async with fronting(access=access):
            pass


async def test_a_client_id_can_be_bound(users: Path) -> None:
    access = AccessConfig(anonymous="never", password_file=users, client_id_bound=True)
    async with fronting(access=access) as front:
        for client_id, expected in [("alice", 0), ("alice-2", 0), ("bob", 0x85)]:
            fields = {"username": "alice", "password": b"secret"}
            assert await code(front, client_id, **fields) == expected


# -- rules ----------------------------------------------------------------------------------------


async def test_a_device_keeps_to_its_own_topics() -> None:
    async with fronting(access=AccessConfig(preset="own-devices")) as front:
        client, _ = await front.ask_at("pump-3")
        assert await client.subscribe("devices/pump-3/#", "devices/#", "$share/g/devices/x/#") == [
            2, 0x87, 0x87,
        ]  # fmt: skip
        other, _ = await front.ask_at("pump-4")
        assert await refusal(other, "devices/pump-3/t") == 0x87
        client.send(Publish("devices/pump-3/t", b"x", qos=1, packet_id=1))
        assert (await client.receive(Publish)).topic_name == "devices/pump-3/t"
        assert (await client.receive(Puback)).reason_code == 0


async def test_a_refused_publish_goes_nowhere() -> None:
    capture = ManualCapture(automatic=True)
    access = AccessConfig(rules=(RuleConfig(topics=("devices/ok/#", "seen/#")),))
    async with fronting(access=access, capture=capture) as front:
        client, _ = await front.ask_at("c")
        assert await refusal(client, "devices/no/t") == 0x87
        assert await refusal(client, "devices/ok/t") == 0
        client.send(Publish("devices/no/t", b"x", qos=2, packet_id=3))
        assert (await client.receive(Pubrec)).reason_code == 0x87
        assert [run.count for run in capture.taken] == [1]
        assert front.broker.stats().drops["not_authorized"] == 2


async def test_a_will_that_may_not_be_sent_is_refused_at_connect() -> None:
    access = AccessConfig(rules=(RuleConfig(topics=("ok",)),))
    async with fronting(access=access) as front:
        assert await code(front, "a", will=Will("no", b"")) == 0x87
        assert await code(front, "b", will=Will("ok", b"")) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[access]\nanonymous = 'yes'", "expected one of 'loopback', 'always', 'never'"),
        ("[[access.rules]]\ntopics = ['a/#/b']", "access.rules[1]"),
        ("[[access.rules]]\nwho = ['alice']\ntopics = ['a']", "'alice' is none of"),
        ("[[access.rules]]\neffect = 'deny'", "'topics' is missing"),
        ("[[access.plugins]]\nname = 'x'\noptions = 1", "got a secret"),
    ],
)
def test_wrong_access_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    from edge.config import EdgeConfig
    from runtime.config import ConfigError, load

    file = tmp_path / "edge.toml"
    file.write_text(text + "\n")
    with pytest.raises(ConfigError) as caught:
        load(EdgeConfig, file=file)
    (problem,) = caught.value.problems
    assert says in problem
    assert "\n" not in problem


# -- amqtt's plugins ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh_plugins() -> Iterator[None]:
    RecordingAuth.seen.clear()
    SlowTopics.asked.clear()
    yield
    SlowTopics.gate, SlowTopics.fails = None, False


AUTH = PluginConfig("tests.kit.amqtt_plugins.RecordingAuth", {"word": "sesame"})
TOPICS = PluginConfig("tests.kit.amqtt_plugins.SlowTopics", {"prefixes": ["ok", "#"]})


async def test_an_authentication_plugin_is_asked_once_a_connect() -> None:
    access = AccessConfig(anonymous="never", plugins=(AUTH,))
    async with fronting(access=access) as front:
        assert await code(front, "a", username="u", password=b"sesame", keep_alive=7) == 0
        assert await code(front, "b", username="u", password=b"wrong") == 0x86
        assert await code(front, "d", username="u", password=b"\xff") == 0x86
        assert await code(front, "e") == 0x87
        first = RecordingAuth.seen[0]
        assert (first.client_id, first.username, first.password) == ("a", "u", "sesame")
        assert (first.remote_address, first.keep_alive, first.clean_session) == (
            "127.0.0.1", 7, True,
        )  # fmt: skip
        assert len(RecordingAuth.seen) == 3


async def test_amqtts_anonymous_plugin_lets_anonymous_clients_in() -> None:
    plugin = PluginConfig("amqtt.plugins.authentication.AnonymousAuthPlugin")
    async with fronting(access=AccessConfig(anonymous="never", plugins=(plugin,))) as front:
        assert await code(front) == 0


@pytest.mark.filterwarnings("ignore:The 'acl' option is deprecated")
async def test_amqtts_access_control_list() -> None:
    plugin = PluginConfig(
        "amqtt.plugins.topic_checking.TopicAccessControlListPlugin",
        {"publish_acl": {"anonymous": ["a/+"]}, "acl": {"anonymous": ["b/#"]}},
    )
    async with fronting(access=AccessConfig(plugins=(plugin,))) as front:
        client, _ = await front.ask_at("c")
        assert await client.subscribe("b/c", "a/b") == [2, 0x87]
        assert await refusal(client, "a/b") == 0x10  # nobody is subscribed
        assert await refusal(client, "b/c") == 0x87


async def test_a_verdict_on_publishing_is_asked_for_once_and_order_holds() -> None:
    capture = ManualCapture(automatic=True)
    access = AccessConfig(plugins=(replace(TOPICS, options={"prefixes": ["devices/ok"]}),))
    async with fronting(access=access, capture=capture) as front:
        client, _ = await front.ask_at("c")
        topics = ["devices/ok/1", "devices/no", "devices/ok/2", "devices/ok/1"] * 5
        client.send(
            *(Publish(topic, b"x", qos=1, packet_id=i) for i, topic in enumerate(topics, 1))
        )
        codes = {}
        for _ in topics:
            puback = await client.receive(Puback)
            codes[puback.packet_id] = puback.reason_code
        assert [codes[i] for i in range(1, 21)] == [0, 0x87, 0, 0] * 5
        assert len(SlowTopics.asked) == 3
        assert sum(run.count for run in capture.taken) == 15


async def test_what_comes_behind_a_subscribe_waits_for_its_verdict() -> None:
    SlowTopics.gate = asyncio.Event()
    async with fronting(access=AccessConfig(plugins=(TOPICS,))) as front:
        client, _ = await front.ask_at("c")
        client.send_bytes(
            b"\x82\x08\x00\x01\x00\x00\x02ok\x00"  # SUBSCRIBE ok
            b"\x30\x06\x00\x02ok\x00x"  # PUBLISH ok
            b"\xc0\x00"
        )
        await front.until(lambda: len(SlowTopics.asked) == 1)
        other, _ = await front.ask_at("other")  # nobody else waits
        assert await other.settled() == []
        SlowTopics.gate.set()
        kinds = [type(await client.next()).__name__ for _ in range(3)]
        assert kinds == ["Suback", "Publish", "Pingresp"]


async def test_a_plugin_that_fails_lets_nothing_through() -> None:
    SlowTopics.fails = True
    async with fronting(access=AccessConfig(plugins=(TOPICS,))) as front:
        client, _ = await front.ask_at("c")
        assert await client.subscribe("ok") == [0x83]
        client.send(Publish("ok", b"x", qos=1, packet_id=1))
        assert (await client.receive(Disconnect)).reason_code == 0x83
        SlowTopics.fails = False
        client, _ = await front.ask_at("c")
        assert await client.subscribe("ok") == [2]


async def test_a_client_that_goes_while_it_is_asked_about(tmp_path: Path) -> None:
    SlowTopics.gate = asyncio.Event()
    async with fronting(access=AccessConfig(plugins=(TOPICS,))) as front:
        client, _ = await front.ask_at("c")
        client.send(Publish("ok", b"x", qos=1, packet_id=1))
        await front.until(lambda: len(SlowTopics.asked) == 1)
        client.abort()
        SlowTopics.gate.set()
        await front.until(lambda: front.broker.stats().connections == 0)
        assert await code(front, "d") == 0


@pytest.mark.parametrize(
    "plugin",
    [
        PluginConfig("tests.kit.amqtt_plugins.Nothing"),
        PluginConfig("no.such.module.Plugin"),
        PluginConfig("tests.kit.amqtt_plugins.RecordingAuth", {"wrod": "x"}),
        PluginConfig("pathlib.Path"),
    ],
)
async def test_a_plugin_that_cannot_be_loaded_is_one_line(plugin: PluginConfig) -> None:
    with pytest.raises(FrontError, match=r"access\.plugins: ") as caught:
        async with fronting(access=AccessConfig(plugins=(plugin,))):
            pass
    assert "\n" not in str(caught.value)
