"""amqtt's own plugins, unchanged, in our broker: files, JWT, HTTP, a database, certificates, LDAP.

What they need beside amqtt is its extra `contrib`; of that only python-ldap may be absent.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import argon2
import jwt
import pytest
from aiohttp import web
from amqtt.contrib import cert
from amqtt.contrib.auth_db import managers

from mqtt.broker.access.config import AccessConfig, PluginConfig
from mqtt.broker.net.config import ListenerConfig
from mqtt.packets import Puback, Publish
from tests.kit.fronts import Fronted, client_tls, fronting
from tests.kit.processes import free_ports, wait_until_listening
from tests.kit.programs import program

NO_SUBSCRIBERS = 0x10


def plugins(*named: tuple[str, dict[str, Any]]) -> AccessConfig:
    """Return an access in which only amqtt's plugins vouch for anybody."""
    return AccessConfig(
        anonymous="never", plugins=tuple(PluginConfig(name, options) for name, options in named)
    )


async def connected(front: Fronted, client_id: str = "c", **fields: Any) -> int:
    """Return what a client is told that connects."""
    _, connack = await front.ask_at(client_id, **fields)
    return connack.reason_code


async def rights(front: Fronted, **fields: Any) -> tuple[list[int], list[int]]:
    """Return what a client is told that subscribes and publishes to `mine/1` and `theirs/1`."""
    client, connack = await front.ask_at("c", **fields)
    assert connack.reason_code == 0
    subscribed = await client.subscribe("theirs/1", "mine/1", qos=0)
    published = []
    for topic in ("theirs/2", "mine/2"):
        client.send(Publish(topic, b"x", 1, packet_id=1))
        published.append((await client.receive(Puback)).reason_code)
    return subscribed, published


async def test_a_password_file_with_argon2(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text(f"# users\nalice:{argon2.PasswordHasher().hash('secret')}\n", "utf-8")
    name = "amqtt.plugins.authentication.FileAuthPlugin"
    async with fronting(access=plugins((name, {"password_file": str(file)}))) as front:
        assert await connected(front, username="alice", password=b"secret") == 0
        assert await connected(front, username="alice", password=b"wrong") == 0x86
        assert await connected(front, username="bob", password=b"secret") == 0x86


async def test_json_web_tokens() -> None:
    key = "a key of the test's own, long enough for SHA-256"
    claims = {"publish_claim": "may_pub", "subscribe_claim": "may_sub", "receive_claim": "may_sub"}
    access = plugins(
        ("amqtt.contrib.jwt.UserAuthJwtPlugin", {"secret_key": key, "user_claim": "user"}),
        ("amqtt.contrib.jwt.TopicAuthJwtPlugin", {"secret_key": key, **claims}),
    )

    def token(signed_with: str = key, **more: Any) -> bytes:
        payload = {"user": "alice", "may_pub": ["mine/#"], "may_sub": ["mine/+"], **more}
        return jwt.encode(payload, signed_with, algorithm="HS256").encode()

    async with fronting(access=access) as front:
        assert await connected(front, username="alice", password=token("x" * 40)) == 0x86
        assert await connected(front, username="alice", password=token(exp=1)) == 0x86
        assert await connected(front, username="bob", password=token()) == 0x86
        told = await rights(front, username="alice", password=token())
        assert told == ([0x87, 0], [0x87, NO_SUBSCRIBERS])


@contextlib.asynccontextmanager
async def web_server() -> AsyncIterator[tuple[int, list[dict[str, Any]]]]:
    """Serve what amqtt's HTTP plugins ask; gives the port, and what was asked."""
    asked: list[dict[str, Any]] = []

    async def user(request: Any) -> Any:
        body = await request.json()
        asked.append(body)
        return web.json_response({"ok": (body["username"], body["password"]) == ("alice", "s")})

    async def topic(request: Any) -> Any:
        body = await request.json()
        asked.append(body)
        return web.json_response({"ok": body["topic"].startswith("mine/")})

    application = web.Application()
    application.router.add_get("/user", user)
    application.router.add_get("/acl", topic)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield runner.addresses[0][1], asked
    finally:
        await runner.cleanup()


async def test_a_web_service_is_asked() -> None:
    async with web_server() as (port, asked):
        where = {"host": "127.0.0.1", "port": port}
        access = plugins(
            ("amqtt.contrib.http.UserAuthHttpPlugin", {**where, "user_uri": "/user"}),
            ("amqtt.contrib.http.TopicAuthHttpPlugin", {**where, "topic_uri": "/acl"}),
        )
        async with fronting(access=access) as front:
            assert await connected(front, username="alice", password=b"wrong") == 0x86
            told = await rights(front, username="alice", password=b"s")
            assert told == ([0x87, 0], [0x87, NO_SUBSCRIBERS])
            topics = [body["topic"] for body in asked if "topic" in body]
            assert sorted(topics) == ["mine/1", "mine/2", "theirs/1", "theirs/2"]
            client = front.clients[-1]
            client.send(Publish("mine/2", b"x", 1, packet_id=1))
            await client.receive(Puback)
            assert len([body for body in asked if "topic" in body]) == 4  # the verdict is kept
            front.broker.access_changed()
            client.send(Publish("mine/2", b"x", 1, packet_id=1))
            await client.receive(Puback)


async def test_a_web_service_that_is_away_lets_nobody_in() -> None:
    (port,) = free_ports(1)
    options = {"host": "127.0.0.1", "port": port, "user_uri": "/user"}
    access = plugins(("amqtt.contrib.http.UserAuthHttpPlugin", options))
    async with fronting(access=access) as front:
        assert await connected(front, username="alice", password=b"s") >= 0x80


async def test_a_database(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'auth.db'}"
    options = {"connection": url, "sync_schema": True}
    access = plugins(
        ("amqtt.contrib.auth_db.UserAuthDBPlugin", options),
        ("amqtt.contrib.auth_db.TopicAuthDBPlugin", options),
    )
    async with fronting(access=access) as front:
        users, topics = managers.UserManager(url), managers.TopicManager(url)
        await users.create_user_auth("alice", "secret")
        await topics.create_topic_auth("alice")
        await topics.add_allowed_topic("alice", "mine/1", "subscribe")
        await topics.add_allowed_topic("alice", "mine/2", "publish")
        assert await connected(front, username="alice", password=b"wrong") == 0x86
        assert await connected(front, username="bob", password=b"secret") == 0x86
        told = await rights(front, username="alice", password=b"secret")
        assert told == ([0x87, 0], [0x87, NO_SUBSCRIBERS])
        await users.close()
        await topics.close()


async def test_certificates_of_devices(tmp_path: Path) -> None:
    key, root = await asyncio.to_thread(
        cert.generate_root_creds, "CH", "Zug", "Zug", "test", "test authority"
    )
    cert.write_key_and_crt(key, root, "ca", tmp_path)

    def issue(prefix: str, request_key: Any, request: Any) -> None:
        cert.write_key_and_crt(request_key, cert.sign_csr(request, key, root), prefix, tmp_path)

    issue("server", *cert.generate_server_csr("CH", "test", "localhost"))
    for device, domain in (("pump-3", "example.org"), ("pump-4", "example.com")):
        uri = f"spiffe://{domain}/device/{device}"
        issue(device, *cert.generate_device_csr("CH", "test", device, uri, f"{device}.local"))
    listener = ListenerConfig(
        transport="tls",
        port=0,
        tls_cert_file=tmp_path / "server.crt",
        tls_key_file=tmp_path / "server.key",
        tls_ca_file=tmp_path / "ca.crt",
    )

    def tls(device: str) -> ssl.SSLContext:
        context = client_tls(
            tmp_path / "ca.crt", tmp_path / f"{device}.crt", tmp_path / f"{device}.key"
        )
        # amqtt's server certificates lack what Python 3.13 asks of a chain
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
        return context

    access = plugins(("amqtt.contrib.cert.UserAuthCertPlugin", {"uri_domain": "example.org"}))
    async with fronting(listener, access=access) as front:
        assert await connected(front, "pump-3", tls=tls("pump-3")) == 0
        assert await connected(front, "another", tls=tls("pump-3")) >= 0x80
        assert await connected(front, "pump-4", tls=tls("pump-4")) >= 0x80


SLAPD = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {folder}/pid
database mdb
suffix "dc=test"
directory {folder}
rootdn "cn=admin,dc=test"
rootpw admin
"""
DIRECTORY = """\
dn: dc=test
objectClass: dcObject
objectClass: organization
dc: test
o: test

dn: uid=alice,dc=test
objectClass: inetOrgPerson
uid: alice
cn: alice
sn: alice
userPassword: secret
description: mine/#
title: mine/+
"""


@contextlib.contextmanager
def ldap_server(folder: Path) -> Iterator[int]:
    """Run OpenLDAP's server with one user; gives its port."""
    slapd, slapadd = (program(name, "slapd") for name in ("slapd", "slapadd"))
    (port,) = free_ports(1)
    config = folder / "slapd.conf"
    config.write_text(SLAPD.format(folder=folder), "utf-8")
    subprocess.run(
        [slapadd, "-f", config], input=DIRECTORY.encode(), check=True, capture_output=True
    )
    process = subprocess.Popen(
        [slapd, "-f", config, "-h", f"ldap://127.0.0.1:{port}", "-d", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_listening(port)
        yield port
    finally:
        process.terminate()
        process.wait()


async def test_a_directory(tmp_path: Path) -> None:
    pytest.importorskip("ldap", reason="python-ldap is not installed")
    with ldap_server(tmp_path) as port:
        options = {
            "server": f"ldap://127.0.0.1:{port}",
            "base_dn": "dc=test",
            "user_attribute": "uid",
            "bind_dn": "cn=admin,dc=test",
            "bind_password": "admin",
        }
        attributes = {
            "publish_attribute": "description",
            "subscribe_attribute": "title",
            "receive_attribute": "title",
        }
        access = plugins(
            ("amqtt.contrib.ldap.UserAuthLdapPlugin", options),
            ("amqtt.contrib.ldap.TopicAuthLdapPlugin", {**options, **attributes}),
        )
        async with fronting(access=access) as front:
            assert await connected(front, username="alice", password=b"wrong") == 0x86
            assert await connected(front, username="bob", password=b"secret") == 0x86
            told = await rights(front, username="alice", password=b"secret")
            assert told == ([0x87, 0], [0x87, NO_SUBSCRIBERS])
