"""SCRAM-SHA-256: the RFCs' own example, everything a client can get wrong, and over the wire."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from pathlib import Path

import pytest

from mqtt.broker.access.config import AccessConfig
from mqtt.broker.access.enhanced import AuthRefusedError
from mqtt.broker.access.passwords import PasswordFileError
from mqtt.broker.access.scram import (
    ScramCredentials,
    ScramExchange,
    ScramSha256,
    saslprep,
    scram_credentials,
)
from mqtt.packets import Auth, Connack, Connect, Disconnect, Packet, Pingreq, Publish
from mqtt.properties import AUTHENTICATION_DATA, AUTHENTICATION_METHOD
from tests.kit.brokers import WireClient
from tests.kit.fronts import Fronted, fronting

METHOD = "SCRAM-SHA-256"


# -- the method -----------------------------------------------------------------------------------


def example() -> ScramExchange:
    """Return RFC 7677's exchange: user "user", password "pencil"."""
    known = scram_credentials("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    return ScramExchange(lambda _user: (known, True), "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")


FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
NONCE = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
FINAL = f"c=biws,r={NONCE},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=".encode()


async def test_the_example_of_rfc_7677() -> None:
    exchange = example()
    step = await exchange.step(FIRST)
    assert step.data == f"r={NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".encode()
    step = await exchange.step(FINAL)
    assert (step.done, step.username) == (True, "user")
    assert step.data == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.mark.parametrize(
    "first",
    [
        b"p=tls-unique,,n=user,r=abc",  # channel binding
        b"n,a=other,n=user,r=abc",
        b"n,,m=ext,n=user,r=abc",  # a mandatory extension
        b"n,,n=user",
        b"n,,n=user,r=",
        b"n,,n=us=er,r=abc",
        b"n,,n=user,r=a\x01b",
        b"n,,n=us\x00er,r=abc",
        b"\xff",
        b"",
        b"x" * 5000,
    ],
)
async def test_first_messages_that_are_refused(first: bytes) -> None:
    if first == b"":
        assert (await example().step(first)).data == b""  # it is asked for
        return
    with pytest.raises(AuthRefusedError):
        await example().step(first)


@pytest.mark.parametrize(
    "final",
    [
        FINAL.replace(b"dHzb", b"eHzb"),
        FINAL.replace(b"biws", b"eSws"),
        FINAL.replace(b"r=rOpr", b"r=rOpx"),
        FINAL[:-8],
        FINAL + b"!",
        f"c=biws,r={NONCE}".encode(),
        f"c=biws,r={NONCE},p=".encode(),
        b"",
    ],
)
async def test_final_messages_that_are_refused(final: bytes) -> None:
    exchange = example()
    await exchange.step(FIRST)
    with pytest.raises(AuthRefusedError):
        await exchange.step(final)


async def test_a_user_there_is_not_looks_like_one_there_is(tmp_path: Path) -> None:
    file = tmp_path / "scram"
    file.write_text("")
    method = ScramSha256(file, pytest.fail)
    salts = set()
    for _ in range(2):
        exchange = method.begin(None)  # type: ignore[arg-type]
        step = await exchange.step(b"n,,n=ghost,r=abc")
        salts.add(step.data.split(b",")[1])
        final = b"c=biws," + step.data.split(b",")[0] + b",p=" + base64.b64encode(bytes(32))
        with pytest.raises(AuthRefusedError, match="ghost"):
            await exchange.step(final)
    assert len(salts) == 1


def test_lines_round_trip() -> None:
    known = scram_credentials("secret")
    assert ScramCredentials.parse(str(known)) == known


@pytest.mark.parametrize(
    "line",
    [
        "a:SCRAM-SHA-1$4096:c2FsdA==$AAAA:AAAA",
        "a:SCRAM-SHA-256$1:c2FsdA==$" + ":".join([base64.b64encode(bytes(32)).decode()] * 2),
        "a:SCRAM-SHA-256$x",
        "a:",
        "no colon",
        ":x",
    ],
)
def test_lines_that_are_none(line: str, tmp_path: Path) -> None:
    file = tmp_path / "scram"
    file.write_text(f"# users\n{line}\n")
    with pytest.raises(PasswordFileError, match="line 2: "):
        ScramSha256(file, pytest.fail)


def test_saslprep_examples_of_rfc_4013() -> None:
    assert saslprep("I\u00adX") == "IX"
    assert saslprep("\u00aa") == "a"
    assert saslprep("\u2168") == "IX"
    for prohibited in ("\u0007", "\u0627\u0031"):
        with pytest.raises(ValueError, match=r"SASLprep|directions"):
            saslprep(prohibited)


# -- over the wire --------------------------------------------------------------------------------


class ScramClient:
    """A client's side, written from the RFC and not from ours."""

    def __init__(self, user: str, password: str) -> None:
        self.password = password.encode()
        self.bare = f"n={user},r={secrets.token_hex(8)}"
        self.signature = b""

    def first(self) -> bytes:
        return f"n,,{self.bare}".encode()

    def final(self, server_first: bytes) -> bytes:
        text = server_first.decode()
        fields = dict(part.split("=", 1) for part in text.split(","))
        salted = hashlib.pbkdf2_hmac(
            "sha256", self.password, base64.b64decode(fields["s"]), int(fields["i"])
        )
        key = hmac.new(salted, b"Client Key", "sha256").digest()
        without = f"c=biws,r={fields['r']}"
        message = f"{self.bare},{text},{without}".encode()
        proof = hmac.new(hashlib.sha256(key).digest(), message, "sha256").digest()
        server_key = hmac.new(salted, b"Server Key", "sha256").digest()
        self.signature = base64.b64encode(hmac.new(server_key, message, "sha256").digest())
        mixed = bytes(a ^ b for a, b in zip(key, proof, strict=True))
        return f"{without},p={base64.b64encode(mixed).decode()}".encode()


@pytest.fixture
def access(tmp_path: Path) -> AccessConfig:
    file = tmp_path / "scram"
    file.write_text("".join(f"{user}:{scram_credentials('pw')}\n" for user in ("alice", "bob")))
    return AccessConfig(anonymous="never", scram_file=file)


def properties(data: bytes = b"", method: str = METHOD) -> dict[int, object]:
    return {AUTHENTICATION_METHOD: method} | ({AUTHENTICATION_DATA: data} if data else {})


async def begin(front: Fronted, scram: ScramClient, *, data: bool = True) -> WireClient:
    client = await front.open()
    first = scram.first() if data else b""
    client.send(Connect("c", protocol_version=5, properties=properties(first)))
    return client


async def log_in(front: Fronted, user: str = "alice", password: str = "pw") -> WireClient:
    scram = ScramClient(user, password)
    client = await begin(front, scram)
    challenge = await client.receive(Auth)
    assert challenge.reason_code == 0x18
    client.send(Auth(0x18, properties(scram.final(challenge.properties[AUTHENTICATION_DATA]))))
    connack = await client.receive(Connack)
    if connack.reason_code == 0:
        assert connack.properties[AUTHENTICATION_METHOD] == METHOD
        assert connack.properties[AUTHENTICATION_DATA] == b"v=" + scram.signature
    else:
        assert connack.reason_code == 0x87
        assert await client.closed()
    return client


@pytest.mark.conformance("MQTT-4.12.0-2", "MQTT-4.12.0-5")
async def test_a_client_proves_itself(access: AccessConfig) -> None:
    async with fronting(access=access) as front:
        client = await log_in(front)
        assert await client.subscribe("t") == [2]
        (connection,) = front.broker._core.connections
        assert connection.machine.client is not None
        assert connection.machine.client.username == "alice"


@pytest.mark.conformance("MQTT-4.12.0-4")
@pytest.mark.parametrize(("user", "password"), [("alice", "wrong"), ("ghost", "pw")])
async def test_who_does_not_is_refused(access: AccessConfig, user: str, password: str) -> None:
    async with fronting(access=access) as front:
        await log_in(front, user, password)
        assert front.broker.stats().connections == 0


async def test_a_connect_without_data_is_asked_for_it(access: AccessConfig) -> None:
    async with fronting(access=access) as front:
        scram = ScramClient("alice", "pw")
        client = await begin(front, scram, data=False)
        assert AUTHENTICATION_DATA not in (await client.receive(Auth)).properties
        client.send(Auth(0x18, properties(scram.first())))
        challenge = await client.receive(Auth)
        client.send(Auth(0x18, properties(scram.final(challenge.properties[AUTHENTICATION_DATA]))))
        assert (await client.receive(Connack)).reason_code == 0


@pytest.mark.conformance("MQTT-4.12.0-1")
async def test_a_method_that_is_not_offered(access: AccessConfig) -> None:
    async with fronting(access=access) as front:
        client = await front.open()
        client.send(Connect("c", protocol_version=5, properties=properties(method="GS2-KRB5")))
        assert (await client.receive(Connack)).reason_code == 0x8C
        assert await client.closed()


@pytest.mark.parametrize(
    "packet",
    [
        Auth(0x19, properties(b"x")),
        Auth(0x18, properties(b"x", "OTHER")),
        Auth(0x00, properties(b"x")),
        Pingreq(),
        Publish("t", b"x"),
        Connect("c", properties=properties()),
    ],
)
async def test_what_is_out_of_place_before_connack(access: AccessConfig, packet: Packet) -> None:
    async with fronting(access=access) as front:
        client = await begin(front, ScramClient("alice", "pw"))
        await client.receive(Auth)
        client.send(packet)
        assert (await client.receive(Connack)).reason_code == 0x82
        assert await client.closed()


async def test_a_client_that_gives_up_is_gone_at_once(access: AccessConfig) -> None:
    async with fronting(access=access) as front:
        client = await begin(front, ScramClient("alice", "pw"))
        await client.receive(Auth)
        client.send(Disconnect())
        assert await client.closed()
        assert front.broker.stats().connections == 0


@pytest.mark.conformance("MQTT-4.12.1-1")
async def test_a_client_proves_itself_again_while_it_works(access: AccessConfig) -> None:
    async with fronting(access=access) as front:
        client = await log_in(front)
        scram = ScramClient("alice", "pw")
        client.send(Auth(0x19, properties(scram.first())))
        challenge = await client.receive(Auth)
        assert await client.subscribe("t") == [2]  # all else goes on
        client.send(Auth(0x18, properties(scram.final(challenge.properties[AUTHENTICATION_DATA]))))
        done = await client.receive(Auth)
        assert (done.reason_code, done.properties[AUTHENTICATION_DATA]) == (
            0,
            b"v=" + scram.signature,
        )


@pytest.mark.conformance("MQTT-4.12.1-2")
@pytest.mark.parametrize(("user", "password"), [("alice", "wrong"), ("bob", "pw")])
async def test_who_fails_to_is_disconnected(access: AccessConfig, user: str, password: str) -> None:
    async with fronting(access=access) as front:
        client = await log_in(front)
        scram = ScramClient(user, password)
        client.send(Auth(0x19, properties(scram.first())))
        challenge = await client.receive(Auth)
        client.send(Auth(0x18, properties(scram.final(challenge.properties[AUTHENTICATION_DATA]))))
        assert (await client.receive(Disconnect)).reason_code == 0x87
        assert await client.closed()


async def test_a_user_that_is_added_gets_in(access: AccessConfig) -> None:
    assert access.scram_file is not None
    async with fronting(access=access) as front:
        with access.scram_file.open("a") as file:
            file.write(f"carol:{scram_credentials('pw')}\n")
        await log_in(front, "carol")
        assert front.broker.stats().connections == 1
