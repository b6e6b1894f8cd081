"""Every way in, with independent clients: TCP, TLS, WebSocket, WSS, Unix sockets, PROXY."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import stat
import struct
from pathlib import Path

import paho.mqtt.client as paho
import pytest
import websockets
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from websockets.typing import Subprotocol

from mqtt.broker.front import FrontError
from mqtt.broker.net.config import ListenerConfig
from mqtt.broker.net.proxy_protocol import SIGNATURE
from mqtt.codec import encode
from mqtt.packets import Connect
from runtime.config import ConfigError, load
from tests.kit.brokers import TIMEOUT_S
from tests.kit.certificates import Certificates, make_certificates
from tests.kit.fronts import client_tls, fronting, listener, talk
from tests.kit.programs import program


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


# -- clients --------------------------------------------------------------------------------------

VERSIONS = (MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5)
PAYLOADS = [b"", b"x" * 1000, bytes(range(256)) * 400]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss", "unix"])
async def test_paho_publishes_and_receives(
    transport: str, version: MQTTProtocolVersion, certificates: Certificates, tmp_path: Path
) -> None:
    async with fronting(listener(transport, certificates, tmp_path)) as front:
        loop = asyncio.get_running_loop()
        got: asyncio.Queue[bytes] = asyncio.Queue()
        kind = "websockets" if transport in ("ws", "wss") else transport
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id="paho",
            protocol=version,
            transport="unix" if transport == "unix" else "tcp" if kind == "tls" else kind,
        )
        if transport in ("tls", "wss"):
            client.tls_set(ca_certs=str(certificates.ca))
        client.on_connect = lambda client, *_: client.subscribe("a/#", 2)
        client.on_subscribe = lambda client, *_: [client.publish("a/b", p, 2) for p in PAYLOADS]
        client.on_message = lambda _c, _u, message: loop.call_soon_threadsafe(
            got.put_nowait, message.payload
        )
        host = str(tmp_path / "mqtt.sock") if transport == "unix" else "localhost"
        await asyncio.to_thread(client.connect, host, front.port or 1)
        client.loop_start()
        async with asyncio.timeout(TIMEOUT_S):
            assert [await got.get() for _ in PAYLOADS] == PAYLOADS
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)


@pytest.mark.parametrize("transport", ["ws", "wss"])
@pytest.mark.parametrize("who", ["client", "broker", "both at once"])
async def test_a_closing_handshake_ends_in_order(
    who: str, transport: str, certificates: Certificates, tmp_path: Path
) -> None:
    faults: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: faults.append(repr(told)))
    tls = client_tls(certificates.ca) if transport == "wss" else None
    async with fronting(listener(transport, certificates, tmp_path)) as front:
        url = f"{transport}://localhost:{front.port}/mqtt"
        async with websockets.connect(url, subprotocols=[Subprotocol("mqtt")], ssl=tls) as client:
            await client.send(encode(Connect("c", protocol_version=4), 4))
            assert await client.recv() == b"\x20\x02\x00\x00"
            if who != "client":
                await client.send(b"\xe0\x00")  # DISCONNECT
            if who == "broker":
                await client.wait_closed()
        await front.until(lambda: front.broker.stats().connections == 0)
    assert client.close_code == 1000
    assert faults == []


async def test_mosquitto_over_tls(certificates: Certificates, tmp_path: Path) -> None:
    programs = [program(f"mosquitto_{name}", "mosquitto-clients") for name in ("sub", "pub")]
    async with fronting(listener("tls", certificates, tmp_path)) as front:
        common = ["-h", "localhost", "-p", str(front.port), "--cafile", str(certificates.ca), "-q"]
        sub = await asyncio.create_subprocess_exec(
            programs[0], *common, "1", "-t", "a/#", "-C", "1", "-V", "5",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await front.until(lambda: front.broker.stats().subscriptions == 1)
        pub = await asyncio.create_subprocess_exec(
            programs[1], *common, "1", "-t", "a/b", "-m", "over tls"
        )
        out, _ = await sub.communicate()
        assert (out, await pub.wait()) == (b"over tls\n", 0)


async def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    async with fronting(ListenerConfig(host="::1", port=0)) as front:
        reader, writer = await asyncio.open_connection("::1", front.port)
        writer.write(encode(Connect("c", protocol_version=4), 4))
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        writer.close()


async def test_several_listeners_serve_one_broker(
    certificates: Certificates, tmp_path: Path
) -> None:
    ways = [listener(t, certificates, tmp_path) for t in ("tcp", "tls", "unix")]
    async with fronting(*ways) as front:
        subscriber, _ = await front.ask_at("s", path=tmp_path / "mqtt.sock")
        await subscriber.subscribe("t")
        publisher, _ = await front.ask_at("p", port=front.ports[1], tls=client_tls(certificates.ca))
        publisher.send_bytes(b"\x30\x05\x00\x01t\x00x")
        message = await subscriber.next()
        assert getattr(message, "payload", None) == b"x"


# -- Unix sockets ---------------------------------------------------------------------------------


async def test_unix_socket_has_its_permissions_and_goes_with_the_broker(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with fronting(ListenerConfig(transport="unix", path=path, unix_mode="0600")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_unix_socket_left_behind_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    config = ListenerConfig(transport="unix", path=path)
    async with fronting(config):
        with pytest.raises(FrontError, match="Address already in use; choose another file"):
            async with fronting(config):
                pass


async def test_a_file_in_the_place_of_a_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("mine")
    with pytest.raises(FrontError, match="File exists"):
        async with fronting(ListenerConfig(transport="unix", path=path)):
            pass
    assert path.read_text() == "mine"


# -- PROXY protocol -------------------------------------------------------------------------------


def proxy(address: str = "203.0.113.9", port: int = 4711, command: int = 0x21) -> bytes:
    """Return a header for IPv4, with a value of a kind nobody knows behind the addresses."""
    body = socket.inet_aton(address) + socket.inet_aton("192.0.2.1") + struct.pack("!HH", port, 1)
    body += b"\xe0\0\x03abc"
    return SIGNATURE + bytes([command, 0x11]) + len(body).to_bytes(2, "big") + body


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_the_address_a_balancer_tells_is_the_clients(
    transport: str, certificates: Certificates, tmp_path: Path
) -> None:
    from dataclasses import replace

    from mqtt.broker.access.config import AccessConfig

    config = replace(listener(transport, certificates, tmp_path), proxy_protocol=True)
    async with fronting(config, access=AccessConfig(anonymous="always")) as front:
        with socket.create_connection(("127.0.0.1", front.port)) as plain:
            plain.sendall(proxy())
            sock = plain
            if transport == "tls":
                context = client_tls(certificates.ca)
                sock = await asyncio.to_thread(
                    context.wrap_socket, plain, server_hostname="localhost"
                )
            sock.sendall(encode(Connect("c", protocol_version=4), 4))
            assert await asyncio.to_thread(sock.recv, 4) == b"\x20\x02\x00\x00"
            (connection,) = front.broker._core.connections
            assert connection.peer() == "203.0.113.9:4711"
            assert not connection.is_local()
            if sock is not plain:
                sock.close()


async def test_a_balancer_cannot_make_a_client_local() -> None:
    async with fronting(ListenerConfig(port=0, proxy_protocol=True)) as front:
        before = proxy("127.0.0.1")
        _, connack = await front.ask_at("c", before=before)
        assert connack.reason_code == 0x87
        for family in (0x00, 0x31):  # it does not say, or its client came by a Unix socket
            before = SIGNATURE + bytes([0x21, family, 0, 216]) + bytes(216)
            _, connack = await front.ask_at("c", before=before)
            assert connack.reason_code == 0x87
        _, connack = await front.ask_at("c", before=proxy(command=0x20))  # it speaks for itself
        assert connack.reason_code == 0


@pytest.mark.parametrize(
    "first",
    [
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),  # version 3
        SIGNATURE + b"\x2f\x11\x00\x0c" + bytes(12),  # command 15
        SIGNATURE + b"\x21\x11\x00\x04" + bytes(4),  # no room for addresses
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
async def test_what_is_no_proxy_header_is_cut_off(first: bytes) -> None:
    async with fronting(ListenerConfig(port=0, proxy_protocol=True)) as front:
        assert await talk(front.port, first) == b""
        assert front.broker.stats().failed_handshakes == 1


# -- WebSocket ------------------------------------------------------------------------------------


def upgrade(path: str = "/mqtt", **headers: str) -> bytes:
    """Return a WebSocket handshake; a header given as "" is left out."""
    fields = {
        "Host": "broker.example:8083",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "mqtt",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


def frame(opcode: int, data: bytes, *, fin: bool = True) -> bytes:
    """Return a client's frame, masked with zeros."""
    return bytes([fin << 7 | opcode, 0x80 | len(data), 0, 0, 0, 0]) + data


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (upgrade("/other"), b"404"),
        (upgrade(Sec_WebSocket_Protocol=""), b"400"),
        (upgrade(Sec_WebSocket_Protocol="chat"), b"400"),
        (upgrade(Sec_WebSocket_Key="short"), b"400"),
        (upgrade(Upgrade=""), b"426"),
        (upgrade(Origin="https://elsewhere.example"), b"403"),
    ],
)
@pytest.mark.conformance("MQTT-6.0.0-3")
async def test_a_handshake_that_is_refused(request_bytes: bytes, status: bytes) -> None:
    async with fronting(ListenerConfig(transport="ws", port=0)) as front:
        answer = await talk(front.port, request_bytes)
        assert answer.split(b" ", 2)[1] == status
        await front.until(lambda: front.broker.stats().connections == 0)


@pytest.mark.parametrize(
    ("origins", "origin"),
    [
        ((), "http://broker.example"),
        ((), "https://broker.example:8080"),
        (("*",), "https://elsewhere.example"),
        (("https://console.example",), "https://console.example"),
    ],
)
@pytest.mark.conformance("MQTT-6.0.0-4")
async def test_pages_that_may_connect(origins: tuple[str, ...], origin: str) -> None:
    config = ListenerConfig(transport="ws", port=0, websocket_origins=origins)
    async with fronting(config) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(upgrade(Origin=origin))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head
        assert b"Sec-WebSocket-Protocol: mqtt" in head
        writer.close()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "localhost:8083"}, 0),
        ({"Host": "127.0.0.1"}, 0),
        ({"Host": "[::1]:8083", "Origin": "http://[::1]"}, 0),
        ({"Host": "localhost", "X_Forwarded_For": "127.0.0.1"}, 0x87),
        ({"Host": "localhost", "X_Real_IP": "203.0.113.9"}, 0x87),
        ({"Host": "localhost", "Forwarded": "for=203.0.113.9"}, 0x87),
        ({"Host": "broker.example"}, 0x87),
        # a page whose name was made to stand for this machine after it was loaded
        ({"Host": "127.evil.example", "Origin": "http://127.evil.example"}, 0x87),
        ({"Host": "[::1"}, 0x87),
        ({"Host": "localhost\r\nHost: broker.example"}, 0x87),
    ],
)
async def test_a_proxy_or_page_on_this_machine_makes_nobody_local(
    headers: dict[str, str], code: int
) -> None:
    async with fronting(ListenerConfig(transport="ws", port=0)) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(upgrade(**headers))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(2, encode(Connect("c"), 5)))
        head = await reader.readexactly(6)
        assert (head[2], head[5]) == (0x20, code)
        writer.close()


async def open_websocket(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(upgrade(Host="localhost:8083"))
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


@pytest.mark.conformance("MQTT-6.0.0-2")
async def test_packets_are_a_stream_whatever_the_messages() -> None:
    async with fronting(ListenerConfig(transport="ws", port=0)) as front:
        reader, writer = await open_websocket(front.port)
        packets = encode(Connect("c", protocol_version=4), 4) + b"\xc0\0" * 3
        for index, byte in enumerate(packets[:-4]):  # a message a byte, one of them in fragments
            if index == 5:
                writer.write(frame(2, b"", fin=False) + frame(9, b"ping"))
                writer.write(frame(0, bytes([byte])))
            else:
                writer.write(frame(2, bytes([byte])))
        writer.write(frame(2, packets[-4:]))
        got = b""
        async with asyncio.timeout(TIMEOUT_S):
            while b"\xd0\0" * 3 not in got.replace(b"\x82\x02", b"").replace(b"\x82\x04", b""):
                got += await reader.read(1000)
        assert b"\x8a\x04ping" in got
        writer.close()


@pytest.mark.conformance("MQTT-6.0.0-1")
async def test_text_ends_the_connection() -> None:
    async with fronting(ListenerConfig(transport="ws", port=0)) as front:
        reader, writer = await open_websocket(front.port)
        writer.write(frame(1, b"hello"))
        assert (await reader.read(1000))[:4] == b"\x88\x10\x03\xeb"  # close, 1003
        writer.close()
        await front.until(lambda: front.broker.stats().connections == 0)


async def test_a_message_that_is_too_large_ends_the_connection() -> None:
    config = ListenerConfig(transport="ws", port=0, maximum_packet_size_bytes=1000)
    async with fronting(config) as front:
        reader, writer = await open_websocket(front.port)
        writer.write(b"\x82\xff" + (1 << 30).to_bytes(8, "big") + bytes(4))
        assert (await reader.read(1000))[2:4] == b"\x03\xf1"  # 1009
        writer.close()
        await front.until(lambda: front.broker.stats().connections == 0)


async def test_the_broker_says_goodbye_over_websocket() -> None:
    async with fronting(ListenerConfig(transport="ws", port=0)) as front:
        reader, writer = await open_websocket(front.port)
        writer.write(frame(2, encode(Connect("c", protocol_version=5), 5)))
        await reader.readexactly(2)
        writer.write(frame(2, b"\x00\x00"))  # a reserved packet type
        got = await reader.read(1 << 16)
        while b"\xe0" not in got:
            got += await reader.read(1 << 16)
        while b"\x88" not in got[got.index(b"\xe0") :]:
            got += await reader.read(1 << 16)
        assert b"\xe0" in got  # DISCONNECT, and then the closing handshake
        writer.write(frame(8, b"\x03\xe8"))
        assert await reader.read(10) == b""
        writer.close()


# -- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('transport = "tsl"', "did you mean 'tls'"),
        ('transport = "tls"', "needs 'tls_cert_file'"),
        ('transport = "unix"', "needs 'path'"),
        ('transport = "unix"\npath = "/tmp/s"\nunix_mode = "rw"', "is not like 0660"),
        ('tls_cert_file = "c.pem"', "is for transports tls and wss"),
        ('path = "/tmp/s"', "is for transport unix"),
        ('transport = "tls"\ntls_cert_file = "c"\ntls_crl_file = "r"', "needs 'tls_ca_file'"),
        (
            'transport = "tls"\ntls_cert_file = "c"\ntls_client_certificate = "required"',
            "needs 'tls_ca_file'",
        ),
        ('transport = "ws"\nwebsocket_path = "mqtt"', "does not begin with '/'"),
        ("prot = 1", "did you mean 'port'"),
        ("port = 70000", "from -1 to 65535"),
    ],
)
def test_a_wrong_listener_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    from edge.config import EdgeConfig

    file = tmp_path / "edge.toml"
    file.write_text(f"[[listeners]]\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load(EdgeConfig, file=file)
    (problem,) = caught.value.problems
    assert says in problem
    assert "listeners[1]" in problem
    assert "\n" not in problem


async def test_a_certificate_that_is_not_there_is_told(tmp_path: Path) -> None:
    config = ListenerConfig(transport="tls", port=0, tls_cert_file=tmp_path / "none.pem")
    with pytest.raises(FrontError, match=r"none\.pem cannot be read: No such file"):
        async with fronting(config):
            pass


async def test_an_address_that_is_taken_meanwhile_leaves_nobody_listening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bound(port: int = 0) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        return sock

    async def two_of_one_name(_host: str, _port: int) -> list[socket.socket]:
        return sockets

    async with fronting() as front:
        with bound() as rival:
            sockets = [bound(), bound(rival.getsockname()[1])]
            address = sockets[0].getsockname()
            rival.listen()
            monkeypatch.setattr("mqtt.broker.net.listener._tcp_sockets", two_of_one_name)
            with pytest.raises(OSError, match="in use"):
                await front.broker.open_listener(ListenerConfig(port=0))
        assert [sock.fileno() for sock in sockets] == [-1, -1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
