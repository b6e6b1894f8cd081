"""The TLS transport by itself: handshakes in pieces, records, pressure, and every way to end."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mqtt.broker.net.config import ListenerConfig
from mqtt.broker.net.readiness import Readiness
from mqtt.broker.net.tls import ServerTls
from mqtt.broker.net.tls_transport import Handshake, TlsTransport
from tests.kit.fronts import client_tls
from tidegate.certificates import Authority

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    authority = Authority(folder)
    authority.create("test authority")
    authority.server("broker", ["localhost"], 1)
    return folder


@pytest.fixture
def server(files: Path) -> ServerTls:
    return ServerTls(
        ListenerConfig(
            transport="tls",
            port=0,
            tls_cert_file=files / "broker.pem",
            tls_key_file=files / "broker.key",
        )
    )


class Told(asyncio.Protocol):
    """What a transport tells its protocol."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.reads: list[bytes] = []
        self.calls: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.fault: Exception | None = None  # what `data_received` raises

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        self.reads.append(data)

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return False

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)

    @property
    def data(self) -> bytes:
        return b"".join(self.reads)


class Client:
    """A client's TLS in memory over a socket that the test reads and writes by itself."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket, **session: Any) -> None:
        self.sock = sock
        sock.setblocking(False)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming, self.outgoing, server_hostname="localhost", **session
        )

    async def take(self) -> None:
        """Read what the server has sent, once there is something."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(TIMEOUT_S):
            data = await loop.sock_recv(self.sock, 1 << 16)
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()

    async def give(self, piece_bytes: int = 1 << 16) -> None:
        """Send what TLS wants to send, in pieces."""
        loop = asyncio.get_running_loop()
        data = self.outgoing.read()
        for at in range(0, len(data), piece_bytes):
            await loop.sock_sendall(self.sock, data[at : at + piece_bytes])
            await asyncio.sleep(0)

    async def shake_hands(self, piece_bytes: int = 1 << 16) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.give(piece_bytes)
                await self.take()
            else:
                await self.give(piece_bytes)
                return

    async def read(self, size: int = 1 << 16) -> bytes:
        """Return decrypted bytes; b"" after close_notify. Raises SSLError for a cut."""
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                await self.take()
            except ssl.SSLZeroReturnError:
                return b""

    async def write(self, data: bytes) -> None:
        self.tls.write(data)
        await self.give()


class Line:
    """A socket pair: a server's handshake on one end, and a client on the other."""

    def __init__(
        self, readiness: Readiness, server: ServerTls, context: ssl.SSLContext, **session: Any
    ) -> None:
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):  # soon full
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        ours.setblocking(False)
        self.protocol = Told()
        self.shaken: list[Exception | None] = []
        self.client = Client(context, theirs, **session)
        self.handshake = Handshake(readiness, ours, server.context, self._done)
        self.handshake.step()

    def _done(self, handshake: Handshake, error: Exception | None) -> None:
        self.shaken.append(error)
        if error is None:
            handshake.transport(("1.2.3.4", 5), self.protocol).begin()

    @property
    def transport(self) -> TlsTransport:
        transport: TlsTransport = self.protocol.transport
        return transport

    async def until(self, done: Any) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not done():
                await asyncio.sleep(0.001)

    async def lost(self) -> Exception | None:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.protocol.lost

    def close(self) -> None:
        self.client.sock.close()
        self.handshake.cancel()
        if self.protocol.transport is not None:
            self.transport.abort()


@pytest.fixture
async def readiness() -> AsyncIterator[Readiness]:
    watching = Readiness(asyncio.get_running_loop())
    yield watching
    watching.close()


@pytest.fixture
async def lines(readiness: Readiness, server: ServerTls, files: Path) -> AsyncIterator[Any]:
    """Make lines, with a client's context that trusts the server; they close with the test."""
    made: list[Line] = []
    context = client_tls(files / "ca.pem")

    def make(**session: Any) -> Line:
        made.append(Line(readiness, server, context, **session))
        return made[-1]

    yield make
    for line in made:
        line.close()
    await asyncio.sleep(0)


async def connected(lines: Any) -> Line:
    line: Line = lines()
    await line.client.shake_hands()
    await line.until(lambda: line.protocol.transport is not None)
    return line


# -- the handshake --------------------------------------------------------------------------------


@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 16])
async def test_a_handshake_comes_in_any_pieces(lines: Any, piece_bytes: int) -> None:
    line = lines()
    await line.client.shake_hands(piece_bytes)
    await line.until(lambda: line.shaken)
    assert line.shaken == [None]
    assert line.transport.get_extra_info("peername") == ("1.2.3.4", 5)
    tls = line.transport.get_extra_info("ssl_object")
    assert (tls.version(), tls.getpeercert(binary_form=True)) == ("TLSv1.3", None)
    assert line.transport.get_extra_info("sockname", "none") == "none"


async def test_what_comes_right_behind_it_is_read(lines: Any) -> None:
    line = lines()
    client = line.client
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.do_handshake()
    await client.give()
    await client.take()
    client.tls.do_handshake()
    client.tls.write(b"first")  # one flight with the client's last word
    client.tls.write(b"second")
    await client.give()
    await line.until(lambda: line.protocol.data == b"firstsecond")


@pytest.mark.parametrize("what", ["garbage", "half", "nothing"])
async def test_a_handshake_that_fails_is_told_once(lines: Any, what: str) -> None:
    line = lines()
    if what == "garbage":
        line.client.sock.send(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00")
    elif what == "half":
        with pytest.raises(ssl.SSLWantReadError):
            line.client.tls.do_handshake()
        line.client.sock.send(line.client.outgoing.read()[:50])
    line.client.sock.close() if what != "garbage" else None
    await line.until(lambda: line.shaken)
    assert isinstance(line.shaken[0], OSError)
    assert line.handshake.sock.fileno() == -1
    line.handshake.step()
    line.handshake.on_timer(1e9)
    assert len(line.shaken) == 1


async def test_a_handshake_that_takes_too_long_ends(lines: Any) -> None:
    line = lines()
    line.handshake.on_timer(0.0)
    assert [type(error) for error in line.shaken] == [TimeoutError]
    with pytest.raises(OSError):  # noqa: PT011 - broken pipe or reset
        await line.client.shake_hands()


async def test_a_cancelled_handshake_hangs_up_and_says_nothing(lines: Any) -> None:
    line = lines()
    line.handshake.cancel()
    with pytest.raises(OSError):  # noqa: PT011 - broken pipe or reset
        await line.client.shake_hands()
    assert line.shaken == []


async def test_a_client_that_has_gone_before_it_begins(readiness: Readiness) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listening.getsockname())
    ours, _ = listening.accept()
    ours.setblocking(False)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
    client.close()
    listening.close()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    told: list[Exception | None] = []
    try:
        handshake = Handshake(readiness, ours, context, lambda _, error: told.append(error))
    except (OSError, ValueError) as error:
        told.append(error)
    else:
        handshake.step()
    assert [isinstance(error, OSError | ValueError) for error in told] == [True]
    assert ours.fileno() == -1


async def test_one_ticket_resumes_a_session_until_certificates_change(
    lines: Any, server: ServerTls, files: Path
) -> None:
    first = await connected(lines)
    await first.client.write(b"x")
    await first.until(lambda: first.protocol.data == b"x")
    first.transport.write(b"y")  # behind the ticket
    assert await first.client.read() == b"y"
    session = first.client.tls.session
    assert session is not None
    again = lines(session=session)
    await again.client.shake_hands()
    assert again.client.tls.session_reused
    (files / "broker.pem").touch()
    assert server.refresh()
    once_more = lines(session=session)
    await once_more.client.shake_hands()
    assert not once_more.client.tls.session_reused


# -- bytes ----------------------------------------------------------------------------------------


async def test_records_that_come_together_are_one_read(lines: Any) -> None:
    line = await connected(lines)
    for number in range(20):
        line.client.tls.write(b"%02d" % number)
    await line.client.give()
    whole = b"".join(b"%02d" % number for number in range(20))
    await line.until(lambda: line.protocol.data == whole)
    assert len(line.protocol.reads) == 1


async def test_a_record_that_comes_in_pieces_is_read_when_it_is_whole(lines: Any) -> None:
    line = await connected(lines)
    line.client.tls.write(b"a" * 5000)
    line.client.tls.write(b"b" * 16384)
    await line.client.give(999)
    await line.until(lambda: len(line.protocol.data) == 5000 + 16384)
    assert line.protocol.data == b"a" * 5000 + b"b" * 16384


async def test_all_bytes_arrive_whatever_their_number(lines: Any) -> None:
    line = await connected(lines)
    rng = random.Random(5)
    there = rng.randbytes(700_000)
    back = rng.randbytes(700_000)
    line.transport.set_write_buffer_limits(high=1 << 20)
    at = 0
    while at < len(back):
        size = rng.choice((1, 100, 16384, 16385, 70_000))
        line.transport.write(back[at : at + size])
        at += size
    assert line.transport.get_write_buffer_size() > 0

    async def send() -> None:
        for start in range(0, len(there), 30_000):
            line.client.tls.write(there[start : start + 30_000])
            await line.client.give()

    got = b""
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        group.create_task(send())
        while len(got) < len(back):
            got += await line.client.read()
    await line.until(lambda: len(line.protocol.data) == len(there))
    assert (got == back, line.protocol.data == there) == (True, True)
    assert line.transport.get_write_buffer_size() == 0


async def test_a_client_that_does_not_read_pauses_its_writer(lines: Any) -> None:
    line = await connected(lines)
    line.transport.set_write_buffer_limits(high=1000)
    written = 0
    while "pause" not in line.protocol.calls:
        line.transport.write(b"z" * 10_000)
        written += 10_000
        assert written < 10_000_000
    line.transport.write(b"z" * 10_000)  # taken all the same
    written += 10_000
    assert line.protocol.calls == ["pause"]
    got = 0
    while got < written:
        got += len(await line.client.read())
    await line.until(lambda: line.protocol.calls == ["pause", "resume"])


async def test_nothing_is_read_while_reading_is_paused(lines: Any) -> None:
    line = await connected(lines)
    line.transport.pause_reading()
    line.transport.pause_reading()
    assert not line.transport.is_reading()
    await line.client.write(b"later")
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert line.protocol.reads == []
    line.transport.resume_reading()
    await line.until(lambda: line.protocol.data == b"later")


# -- the end --------------------------------------------------------------------------------------


async def test_closing_sends_what_is_left_and_says_so(lines: Any) -> None:
    line = await connected(lines)
    line.transport.write(b"q" * 300_000)
    assert line.transport.get_write_buffer_size() > 0
    line.transport.close()
    line.transport.write(b"too late")
    assert line.transport.is_closing()
    got = 0
    while data := await line.client.read():
        got += len(data)
    assert got == 300_000
    assert await line.lost() is None


async def test_our_end_first_and_then_the_clients(lines: Any) -> None:
    line = await connected(lines)
    assert line.transport.can_write_eof()
    line.transport.write(b"goodbye")
    line.transport.write_eof()
    assert await line.client.read() == b"goodbye"
    assert await line.client.read() == b""  # close_notify, not a cut
    await line.client.write(b"not heard" * 9999)
    assert not line.protocol.lost.done()
    line.client.sock.close()
    await line.lost()
    assert line.protocol.reads == []


async def test_our_end_while_reading_is_paused(lines: Any) -> None:
    line = await connected(lines)
    line.transport.pause_reading()
    await line.client.write(b"unread")
    line.transport.write_eof()
    line.transport.resume_reading()
    line.client.sock.close()
    await line.lost()
    assert line.protocol.reads == []


@pytest.mark.parametrize("polite", [True, False])
async def test_the_clients_end(lines: Any, polite: bool) -> None:
    line = await connected(lines)
    line.client.tls.write(b"last")
    if polite:
        with pytest.raises(ssl.SSLWantReadError):
            line.client.tls.unwrap()
    await line.client.give()
    line.client.sock.shutdown(socket.SHUT_WR)
    assert await line.lost() is None
    assert (line.protocol.data, line.protocol.calls) == (b"last", ["eof"])


async def test_bytes_that_were_tampered_with_end_the_connection(lines: Any) -> None:
    line = await connected(lines)
    line.client.tls.write(b"good")
    good = line.client.outgoing.read()
    line.client.tls.write(b"evil")
    evil = bytearray(line.client.outgoing.read())
    evil[-1] ^= 1
    line.client.sock.send(good + evil)
    assert isinstance(await line.lost(), ssl.SSLError)
    assert line.protocol.data == b"good"


async def test_aborting_says_nothing_and_happens_once(lines: Any) -> None:
    line = await connected(lines)
    line.transport.abort()
    line.transport.abort()
    line.transport.close()
    line.transport.write_eof()
    line.transport.write(b"x")
    line.transport.resume_reading()
    assert await line.lost() is None
    with pytest.raises(ssl.SSLError):
        await line.client.read()


async def test_a_protocol_that_fails_loses_only_its_own_connection(lines: Any) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    line, other = await connected(lines), await connected(lines)
    line.protocol.fault = RuntimeError("broken")
    await line.client.write(b"x")
    assert await line.lost() is line.protocol.fault
    assert [context["exception"] for context in told] == [line.protocol.fault]
    await other.client.write(b"y")
    await other.until(lambda: other.protocol.data == b"y")


async def test_writing_to_a_client_that_has_gone_ends_the_connection(lines: Any) -> None:
    line = await connected(lines)
    line.transport.pause_reading()
    line.client.sock.close()
    while not line.protocol.lost.done():
        line.transport.write(b"x" * 1000)
        await asyncio.sleep(0)
    assert isinstance(await line.lost(), OSError)
