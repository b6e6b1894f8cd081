"""TLS of a listener: versions, client certificates, revocation, and files that change."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
import structlog

from mqtt.broker.access.config import AccessConfig
from mqtt.broker.net.certificates import read_chain, with_issuers
from mqtt.broker.net.config import ListenerConfig
from mqtt.broker.net.tls import ServerTls, certificate_name
from tests.kit.fronts import Fronted, client_tls, fronting, talk
from tidegate.certificates import Authority


@dataclass
class Pki:
    """An authority with a server's and two clients' certificates."""

    folder: Path

    def __post_init__(self) -> None:
        self.authority = Authority(self.folder)
        self.authority.create("test authority")
        self.authority.server("broker", ["localhost", "127.0.0.1"], 1)
        for name in ("hall-7", "pump-3"):
            self.authority.client(name, 1)

    def file(self, name: str) -> Path:
        return self.folder / name

    def listener(self, **changes: object) -> ListenerConfig:
        """Return a listener that asks for certificates."""
        fields: dict[str, object] = {
            "transport": "tls",
            "port": 0,
            "tls_cert_file": self.file("broker.pem"),
            "tls_key_file": self.file("broker.key"),
            "tls_ca_file": self.file("ca.pem"),
        }
        return ListenerConfig(**(fields | changes))  # type: ignore[arg-type]

    def client(self, name: str = "", *, ca: Path | None = None) -> ssl.SSLContext:
        """Return a client's context, with its certificate if it is named."""
        trusted = ca or self.file("ca.pem")
        if not name:
            return client_tls(trusted)
        return client_tls(trusted, self.file(f"{name}.pem"), self.file(f"{name}.key"))


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


async def refused(front: Fronted, context: ssl.SSLContext) -> bool:
    """Return True when a client does not get as far as a CONNACK."""
    try:
        answer = await talk(front.port, b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c", context)
    except OSError:
        return True
    return answer == b""


async def test_the_certificate_names_the_client(pki: Pki) -> None:
    access = AccessConfig(anonymous="never")
    async with fronting(pki.listener(), access=access) as front:
        _, connack = await front.ask_at(tls=pki.client("hall-7"))
        assert connack.reason_code == 0
        (connection,) = front.broker._core.connections
        client = connection.machine.client
        assert client is not None
        assert client.certificate_name == "hall-7"


async def test_the_first_alternative_name_can_be_the_name(pki: Pki) -> None:
    config = pki.listener(certificate_name="san")
    async with fronting(config, access=AccessConfig(anonymous="never")) as front:
        _, connack = await front.ask_at(tls=pki.client("hall-7"))
        assert connack.reason_code == 0
        (connection,) = front.broker._core.connections
        assert connection.machine.client is not None
        assert connection.machine.client.certificate_name == "urn:tidegate:hall-7"


def test_certificates_without_a_name_have_none() -> None:
    assert certificate_name(None, "cn") is None
    assert certificate_name({"subject": ()}, "cn") is None
    assert certificate_name({"subject": ()}, "san") is None
    assert (
        certificate_name({"subject": ((("commonName", "a"),), (("commonName", "b"),))}, "cn") == "b"
    )


async def test_without_a_certificate_there_is_no_way_in(pki: Pki) -> None:
    async with fronting(pki.listener()) as front:
        assert await refused(front, pki.client())
        stranger = Authority(pki.folder / "other")
        stranger.create("another authority")
        stranger.client("hall-7", 1)
        context = client_tls(
            pki.file("ca.pem"), stranger.folder / "hall-7.pem", stranger.folder / "hall-7.key"
        )
        assert await refused(front, context)
        await front.until(lambda: front.broker.stats().failed_handshakes == 2)
        assert front.broker.stats().connections == 0


async def test_an_optional_certificate_leaves_a_client_anonymous(pki: Pki) -> None:
    config = pki.listener(tls_client_certificate="optional")
    async with fronting(config, access=AccessConfig(anonymous="never")) as front:
        _, connack = await front.ask_at("a", tls=pki.client())
        assert connack.reason_code == 0x87
        _, connack = await front.ask_at("b", tls=pki.client("pump-3"))
        assert connack.reason_code == 0


async def test_a_revoked_certificate_is_refused(pki: Pki) -> None:
    pki.authority.revoke("pump-3")
    async with fronting(pki.listener(tls_crl_file=pki.file("ca.crl"))) as front:
        assert await refused(front, pki.client("pump-3"))
        _, connack = await front.ask_at(tls=pki.client("hall-7"))
        assert connack.reason_code == 0


async def test_old_versions_are_not_spoken(pki: Pki) -> None:
    async with fronting(pki.listener(tls_minimum="1.3")) as front:
        context = pki.client("hall-7")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert await refused(front, context)
        context = pki.client("hall-7")
        _, connack = await front.ask_at(tls=context)
        assert connack.reason_code == 0


# -- files that change ----------------------------------------------------------------------------


def look(front: Fronted) -> None:
    """Do now what the broker does every few seconds."""
    for listener in front.broker.listeners:
        listener.look_at_files()


async def test_renewed_certificates_are_taken_and_clients_stay(pki: Pki) -> None:
    async with fronting(pki.listener()) as front:
        before, _ = await front.ask_at("before", tls=pki.client("hall-7"))
        after = Pki(pki.folder.with_name("after"))
        for name in ("ca.pem", "broker.pem", "broker.key"):
            shutil.copyfile(after.file(name), pki.file(name))
        look(front)
        _, connack = await front.ask_at("after", tls=after.client("hall-7"))
        assert connack.reason_code == 0
        old = pki.client("hall-7", ca=after.file("ca.pem"))
        assert await refused(front, old)  # the old authority is trusted no more
        assert await before.settled() == []


@pytest.mark.parametrize("file", ["broker.pem", "broker.key", "ca.pem"])
async def test_half_a_file_changes_nothing_and_is_told_once(pki: Pki, file: str) -> None:
    async with fronting(pki.listener()) as front:
        whole = pki.file(file).read_bytes()
        pki.file(file).write_bytes(whole[: len(whole) // 2])
        with structlog.testing.capture_logs() as logs:
            look(front)
            look(front)
        kept = [entry for entry in logs if entry["event"] == "mqtt_certificates_kept"]
        assert len(kept) == 1
        assert str(pki.file(file)) in kept[0]["reason"]
        pki.file(file).write_bytes(whole)
        with structlog.testing.capture_logs() as logs:
            look(front)
        assert [entry["event"] for entry in logs] == ["mqtt_certificates_renewed"]
        _, connack = await front.ask_at(tls=pki.client("hall-7"))
        assert connack.reason_code == 0


async def test_a_key_of_another_certificate_changes_nothing(pki: Pki) -> None:
    async with fronting(pki.listener()) as front:
        pki.authority.server("other", ["localhost"], 1)
        shutil.copyfile(pki.file("other.key"), pki.file("broker.key"))
        with structlog.testing.capture_logs() as logs:
            look(front)
        assert "mismatch" in logs[0]["reason"]
        assert (await front.ask_at(tls=pki.client("hall-7")))[1].reason_code == 0


async def test_an_expired_certificate_changes_nothing(pki: Pki) -> None:
    async with fronting(pki.listener()) as front:
        renewed = Pki(pki.folder.with_name("renewed"))
        for name in ("broker.pem", "broker.key"):
            shutil.copyfile(renewed.file(name), pki.file(name))
        tls = front.broker.listeners[0].tls
        assert tls is not None
        tls._now = lambda: datetime.now(UTC) + timedelta(days=2)
        with structlog.testing.capture_logs() as logs:
            look(front)
            look(front)
        (line,) = logs
        assert line["event"] == "mqtt_certificates_kept"
        assert "broker.pem: it has expired on 20" in line["reason"]
        _, connack = await front.ask_at(tls=pki.client("hall-7"))  # by the one of before
        assert connack.reason_code == 0


async def test_an_expired_certificate_is_told_at_the_start(pki: Pki) -> None:
    tls = ServerTls(pki.listener(), now=lambda: datetime.now(UTC) + timedelta(days=2))
    assert tls.fault.startswith("it has expired on 20")
    assert ServerTls(pki.listener()).fault == ""


async def test_a_chain_that_lost_its_end_changes_nothing(pki: Pki, tmp_path: Path) -> None:
    leaf, ca = pki.file("broker.pem").read_bytes(), pki.file("ca.pem").read_bytes()
    leaf = leaf[: leaf.index(b"-----END CERTIFICATE-----") + 26]
    pki.file("broker.pem").write_bytes(leaf + ca)
    async with fronting(pki.listener()) as front:
        for cut in (leaf, leaf + ca[: len(ca) // 2]):
            pki.file("broker.pem").write_bytes(cut)
            with structlog.testing.capture_logs() as logs:
                look(front)
            assert [line["event"] for line in logs] == ["mqtt_certificates_kept"]
        pki.file("broker.pem").write_bytes(leaf + ca)
        with structlog.testing.capture_logs() as logs:
            look(front)
        assert [line["event"] for line in logs] == ["mqtt_certificates_renewed"]


@pytest.mark.parametrize("key_beside", [False, True])
def test_the_issuer_is_sent_with_a_lone_certificate(pki: Pki, key_beside: bool) -> None:
    leaf, ca = pki.file("broker.pem"), pki.file("ca.pem")
    if key_beside:
        leaf.write_bytes(pki.file("broker.key").read_bytes() + leaf.read_bytes())
    changes = {"tls_key_file": None} if key_beside else {}
    sent = chain_sent(ServerTls(pki.listener(**changes)).context)
    assert sent == [certificate.subject for certificate in read_chain(leaf) + read_chain(ca)]


def chain_sent(context: ssl.SSLContext) -> list[bytes]:
    """Return the subjects of the certificates that a server shows."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    client = client_context.wrap_bio(back, there)
    server = context.wrap_bio(there, back, server_side=True)
    for side in (client, server, client):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    chain = client._sslobj.get_unverified_chain()  # type: ignore[attr-defined] # public from 3.13
    with NamedTemporaryFile() as file:
        file.write("".join(one.public_bytes() for one in chain).encode())
        file.flush()
        return [certificate.subject for certificate in read_chain(Path(file.name))]


def test_issuers_are_found_by_name_and_not_guessed(pki: Pki, tmp_path: Path) -> None:
    leaf, ca = pki.file("broker.pem"), pki.file("ca.pem")
    other = Authority(tmp_path / "other")
    other_ca = other.create("another authority")[0]
    same_name = Authority(tmp_path / "same").create("test authority")[0]
    both = tmp_path / "both.pem"
    both.write_bytes(other_ca.read_bytes() + ca.read_bytes())
    assert with_issuers(leaf, both) == with_issuers(leaf, ca) != b""
    assert with_issuers(leaf, other_ca) == b""
    both.write_bytes(same_name.read_bytes() + ca.read_bytes())
    assert with_issuers(leaf, both) == b""
    assert with_issuers(ca, ca) == b""  # it is its own issuer
    both.write_bytes(leaf.read_bytes() + other_ca.read_bytes())
    assert with_issuers(both, ca) == b""  # it has a chain
    pki.file("empty.pem").write_bytes(b"")
    assert with_issuers(pki.file("empty.pem"), ca) == b""


def test_what_is_no_certificate_is_left_to_ssl(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    for content in (b"", b"\0\1", b"AAAA", b"MIIBAA==", b"MAA=", b"MIL/////"):
        pem = b"-----BEGIN CERTIFICATE-----\n" + content + b"\n-----END CERTIFICATE-----\n"
        file.write_bytes(pem)
        assert read_chain(file) == []


async def test_a_crl_that_is_added_to_takes_effect(pki: Pki) -> None:
    async with fronting(pki.listener(tls_crl_file=pki.file("ca.crl"))) as front:
        assert (await front.ask_at(tls=pki.client("pump-3")))[1].reason_code == 0
        pki.authority.revoke("pump-3")
        look(front)
        assert await refused(front, pki.client("pump-3"))


async def test_the_broker_looks_by_itself(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqtt.broker.broker._FILES_TICKS", 1)
    async with fronting(pki.listener()) as front:
        context = front.broker.listeners[0].tls.context  # type: ignore[union-attr]
        await asyncio.to_thread(pki.file("broker.pem").touch)
        await front.until(lambda: front.broker.listeners[0].tls.context is not context)  # type: ignore[union-attr]
