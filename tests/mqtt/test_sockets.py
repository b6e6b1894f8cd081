"""Plain sockets behave to their protocols like asyncio's transports."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mqtt.broker.net import socket_calls
from mqtt.broker.net.sockets import TOGETHER_BYTES, Sockets, SocketTransport

RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER: close with RST


class Told(asyncio.Protocol):
    """Notes what a transport tells it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.data = bytearray()
        self.on_data: Callable[[bytes], None] = lambda _data: None
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.on_data(data)

    def eof_received(self) -> bool:
        self.events.append("eof")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.events.append(type(error))
        self.lost.set()

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")


class Line:
    """One adopted socket, its protocol, and the other end."""

    def __init__(self, sockets: Sockets, *, tcp: bool = False) -> None:
        near, self.far = _tcp_pair() if tcp else socket.socketpair()
        near.setblocking(False)
        self.far.setblocking(False)
        self.protocol = Told()
        self.transport: SocketTransport = sockets.adopt(near.detach(), self.protocol, ("peer", 1))

    async def read(self, size: int) -> bytes:
        """Return so many bytes from the far end, fewer at its end."""
        data = b""
        while len(data) < size:
            more = await asyncio.get_running_loop().sock_recv(self.far, size - len(data))
            if not more:
                break
            data += more
        return data


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        return server.accept()[0], far


@pytest.fixture(params=["python", "in use"])
async def sockets(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Sockets]:
    if request.param == "python":
        monkeypatch.setattr(socket_calls, "receive", socket_calls._receive)
        monkeypatch.setattr(socket_calls, "send", socket_calls._send)
    sockets = Sockets(asyncio.get_running_loop())
    yield sockets
    sockets.close()


@pytest.fixture
def lines(sockets: Sockets) -> Any:
    made: list[Line] = []

    def line(*, tcp: bool = False) -> Line:
        made.append(Line(sockets, tcp=tcp))
        return made[-1]

    yield line
    for each in made:
        each.far.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_bytes_go_both_ways(lines: Any) -> None:
    line = lines()
    assert line.protocol.events == ["made"]
    assert line.transport.get_extra_info("peername") == ("peer", 1)
    line.far.send(b"there")
    await until(lambda: line.protocol.data == b"there")
    line.transport.write(b"back")
    assert await line.read(4) == b"back"
    assert line.transport.get_write_buffer_size() == 0


async def test_what_is_written_in_one_turn_leaves_in_one_call(
    lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[int, bytes]] = []
    send = socket_calls.send

    def spy(outgoing: dict[int, bytes]) -> list[int] | None:
        calls.append(dict(outgoing))
        return send(outgoing)

    monkeypatch.setattr(socket_calls, "send", spy)
    one, two = lines(), lines()
    one.transport.write(b"a")
    two.transport.write(b"c")
    one.transport.write(b"b")
    assert one.transport.get_write_buffer_size() == 2
    assert (await one.read(2), await two.read(1)) == (b"ab", b"c")
    assert [sorted(call.values()) for call in calls] == [[b"ab", b"c"]]


async def test_what_was_written_leaves_before_more_is_read(
    sockets: Sockets, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    send, receive = socket_calls.send, socket_calls.receive

    def noting(name: str, call: Any) -> Any:
        def noted(*about: Any) -> Any:
            calls.append(name)
            return call(*about)

        return noted

    monkeypatch.setattr(socket_calls, "send", noting("send", send))
    monkeypatch.setattr(socket_calls, "receive", noting("receive", receive))
    line = lines()
    line.transport.write(b"a")
    sockets._receive()  # as the loop may call it before what was to be called soon
    assert calls == ["send", "receive"]
    assert await line.read(1) == b"a"


async def test_whatever_holds_bytes_can_be_written(lines: Any) -> None:
    line = lines()
    line.transport.write(bytearray(b"ab"))
    line.transport.write(memoryview(b"cd"))
    assert await line.read(4) == b"abcd"


async def test_a_turn_whose_writing_fails_ends_those_who_wrote_and_nobody_else(
    lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    one, two, three = lines(), lines(), lines()

    def fail(_outgoing: dict[int, bytes]) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(socket_calls, "send", fail)
        one.transport.write(b"1")
        two.transport.write(b"2")
        await one.protocol.lost.wait()
        await two.protocol.lost.wait()
    three.transport.write(b"3")
    assert await three.read(1) == b"3"
    assert one.protocol.events == two.protocol.events == ["made", MemoryError]
    assert len(told) == 2


async def test_much_in_one_turn_keeps_its_order_and_does_not_wait(lines: Any) -> None:
    line = lines()
    parts = [bytes([index]) * size for index, size in enumerate((10, TOGETHER_BYTES, 7, 90_000))]
    for part in parts:
        line.transport.write(part)
    assert line.transport.get_write_buffer_size() < sum(map(len, parts))
    assert await line.read(sum(map(len, parts))) == b"".join(parts)


async def test_who_does_not_read_pauses_the_protocol_and_loses_nothing(lines: Any) -> None:
    line = lines()
    line.transport.set_write_buffer_limits(high=100_000)
    data = random.Random(1).randbytes(3_000_000)
    for at in range(0, len(data), 50_000):
        line.transport.write(data[at : at + 50_000])
        await asyncio.sleep(0)
    assert line.protocol.events == ["made", "pause"]
    assert line.transport.get_write_buffer_size() > 100_000
    assert await line.read(len(data)) == data
    await until(lambda: line.protocol.events == ["made", "pause", "resume"])
    assert line.transport.get_write_buffer_size() == 0


async def test_nothing_is_read_while_reading_is_paused(lines: Any) -> None:
    line, other = lines(), lines()
    line.transport.pause_reading()
    line.far.send(b"one")
    other.far.send(b"two")
    await until(lambda: other.protocol.data == b"two")
    assert line.protocol.data == b""
    line.transport.resume_reading()
    await until(lambda: line.protocol.data == b"one")


async def test_what_was_read_as_another_paused_it_comes_first_when_it_reads_again(
    lines: Any,
) -> None:
    one, two = lines(), lines()
    one.protocol.on_data = lambda _data: two.transport.pause_reading()
    two.protocol.on_data = lambda _data: one.transport.pause_reading()
    one.far.send(b"1")
    two.far.send(b"2")
    await until(lambda: one.protocol.data or two.protocol.data)
    first, second = (one, two) if one.protocol.data else (two, one)
    first.protocol.on_data = second.protocol.on_data = lambda _data: None
    second.far.send(b"later")
    for _ in range(5):
        await asyncio.sleep(0)
    assert second.protocol.data == b""
    second.transport.resume_reading()
    second.transport.pause_reading()  # it has thought better of it
    await asyncio.sleep(0)
    assert second.protocol.data == b""
    second.transport.resume_reading()
    await until(lambda: second.protocol.data[1:] == b"later")
    assert second.protocol.data[:1] in (b"1", b"2")


async def test_the_end_of_the_stream_is_told_and_closes(lines: Any) -> None:
    line = lines()
    line.far.send(b"last")
    line.far.close()
    await line.protocol.lost.wait()
    assert line.protocol.data == b"last"
    assert line.protocol.events == ["made", "eof", type(None)]


@pytest.mark.parametrize("paused", [False, True])
async def test_a_reset_is_told_whether_it_reads_or_not(lines: Any, paused: bool) -> None:
    line = lines(tcp=True)
    if paused:
        line.transport.pause_reading()
    line.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    line.far.close()
    await line.protocol.lost.wait()
    assert line.protocol.events == ["made", ConnectionResetError]


async def test_what_came_before_the_end_is_read_although_reading_was_paused(lines: Any) -> None:
    line = lines()
    line.transport.pause_reading()
    line.far.send(b"last words")
    line.far.close()  # a Unix socket tells of that whether it is read or not
    for _ in range(5):
        await asyncio.sleep(0)
    assert line.protocol.events == ["made"]
    line.transport.resume_reading()
    await line.protocol.lost.wait()
    assert line.protocol.data == b"last words"
    assert line.protocol.events == ["made", "eof", type(None)]


async def test_a_client_that_went_while_reading_was_paused_can_be_closed(lines: Any) -> None:
    one, two = lines(), lines()
    for line in (one, two):
        line.transport.pause_reading()
        line.far.close()
    for _ in range(5):
        await asyncio.sleep(0)
    one.transport.abort()
    two.transport.write(b"to nobody")
    await one.protocol.lost.wait()
    await two.protocol.lost.wait()
    assert (one.protocol.events[1:], two.protocol.events[1:]) == ([type(None)], [BrokenPipeError])


async def test_what_is_written_when_there_is_room_again_precedes_the_end(lines: Any) -> None:
    line = lines()
    line.transport.set_write_buffer_limits(high=0)
    more = bytes(3_000_000)

    def write_and_close() -> None:
        line.transport.write(more)
        line.transport.close()

    line.protocol.resume_writing = write_and_close  # type: ignore[method-assign]
    line.transport.write(more)
    assert await line.read(len(more) * 2 + 1) == more * 2


async def test_writing_to_one_who_has_gone_ends_only_that_connection(lines: Any) -> None:
    gone, stays = lines(), lines()
    gone.transport.pause_reading()
    gone.far.close()
    gone.transport.write(b"x")
    stays.transport.write(b"y")
    assert await stays.read(1) == b"y"
    await gone.protocol.lost.wait()
    assert stays.protocol.events == ["made"]


@pytest.mark.parametrize("verb", ["close", "write_eof"])
async def test_the_end_comes_after_what_was_written(lines: Any, verb: str) -> None:
    line = lines()
    data = random.Random(2).randbytes(1_000_000)
    line.transport.write(b"first")
    line.transport.write(data)
    getattr(line.transport, verb)()
    line.transport.write(b"too late")
    assert await line.read(len(data) + 100) == b"first" + data
    if verb == "write_eof":
        line.far.send(b"still read")
        await until(lambda: line.protocol.data == b"still read")
        assert not line.transport.is_closing()
        line.far.close()
    await line.protocol.lost.wait()
    assert line.protocol.events.count(type(None)) == 1


async def test_closing_reads_no_more_and_cannot_be_kept_up_by_a_dead_client(lines: Any) -> None:
    line = lines(tcp=True)
    line.transport.write(bytes(30_000_000))
    line.transport.close()
    line.far.send(b"ignored")
    for _ in range(5):
        await asyncio.sleep(0)
    assert line.protocol.data == b""
    assert not line.protocol.lost.is_set()
    line.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    line.far.close()
    await line.protocol.lost.wait()


async def test_abort_sends_nothing_and_is_told_once_in_a_turn_of_its_own(lines: Any) -> None:
    line = lines()
    line.transport.write(b"never")
    line.transport.abort()
    line.transport.abort()
    line.transport.pause_reading()
    line.transport.resume_reading()
    assert line.protocol.events == ["made"]
    assert await line.read(10) == b""
    await line.protocol.lost.wait()
    assert line.protocol.events == ["made", type(None)]


async def test_a_connection_lost_by_anothers_data_gets_none_of_the_same_turn(lines: Any) -> None:
    one, two = lines(), lines()
    one.protocol.on_data = lambda _data: two.transport.abort()
    two.protocol.on_data = lambda _data: one.transport.abort()
    one.far.send(b"1")
    two.far.send(b"2")
    await until(lambda: one.protocol.lost.is_set() or two.protocol.lost.is_set())
    assert sorted([len(one.protocol.data), len(two.protocol.data)]) == [0, 1]


async def test_a_protocol_that_raises_is_told_of_and_costs_nobody_else_anything(lines: Any) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    bad, good = lines(), lines()

    def fail(_data: bytes) -> None:
        raise RuntimeError("bad")

    bad.protocol.on_data = fail
    bad.far.send(b"x")
    good.far.send(b"y")
    await bad.protocol.lost.wait()
    await until(lambda: good.protocol.data == b"y")
    assert bad.protocol.events == ["made", RuntimeError]
    assert [str(context["exception"]) for context in told] == ["bad"]


async def test_closing_all_tells_everybody(sockets: Sockets, lines: Any) -> None:
    some = [lines() for _ in range(3)]
    sockets.close()
    assert [line.protocol.events for line in some] == [["made", type(None)]] * 3
    assert sockets.transports == {}


@pytest.mark.parametrize("seed", range(8))
async def test_any_history_of_writes_and_pauses_keeps_the_order(lines: Any, seed: int) -> None:
    rng = random.Random(seed)
    line = lines(tcp=bool(seed & 1))
    line.transport.set_write_buffer_limits(high=rng.choice([0, 1000, 1 << 20]))
    sent, come, there = bytearray(), bytearray(), bytearray()
    for _ in range(300):
        match rng.randrange(7):
            case 0 | 1:
                data = rng.randbytes(rng.choice([1, 4, 500, 70_000, 400_000]))
                line.transport.write(data)
                sent += data
            case 2:
                try:
                    come += line.far.recv(rng.choice([10, 100_000, 1 << 20]))
                except BlockingIOError:
                    await asyncio.sleep(0)
            case 3:
                data = rng.randbytes(rng.choice([1, 300]))
                line.far.send(data)
                there += data
            case 4:
                line.transport.pause_reading()
            case 5:
                line.transport.resume_reading()
            case _:
                await asyncio.sleep(0)
    line.transport.resume_reading()
    come += await line.read(len(sent) - len(come))
    assert come == sent
    await until(lambda: line.protocol.data == there)
    assert line.protocol.events.count("pause") - line.protocol.events.count("resume") in (0, 1)
    line.transport.close()
    await line.protocol.lost.wait()
