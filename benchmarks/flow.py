"""A load generator with publishers and subscribers: what comes out of a broker, counted.

One process, one epoll, non-blocking sockets. Every PUBLISH has the same size, so that deliveries
are counted and acknowledged by slices of a read, not one by one. With a window, a publisher sends
the next message when one before it has reached everybody it is for (`copies`); nothing piles up in
the broker and nothing is dropped. With `rate_s`, messages go at a fixed pace whatever comes back,
and each carries the time at which it was due, for latencies.

    python -m benchmarks.flow --spec '{"port": 1883, "subscribers": 100, "copies": 100}'
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import struct
import time
from dataclasses import asdict, dataclass, fields

from benchmarks.generators import spawn
from benchmarks.wire import connected, cpu_s_of, frame_of, memory_bytes_of, subscribe

__all__ = ["FlowReport", "FlowSpec", "run_flow", "spawn_flow"]

_STAMP = struct.Struct(">Q")  # the first bytes of a payload: when it was due, in ns
_DRAIN_S = 0.02  # a publisher's PUBACKs are read and forgotten this often
_STALL_S = 10.0


@dataclass(frozen=True, slots=True)
class FlowSpec:
    """Who publishes to whom. `{i}` in a topic is the client's number, `{n}` counts.

    A subscriber's messages come from publisher `number % publishers`.
    """

    port: int
    host: str = "127.0.0.1"
    pid: int = 0  # the broker's process
    publishers: int = 1
    subscribers: int = 1
    topics: tuple[str, ...] = ("bench/{i:05d}/t",)  # of each publisher, used in turn
    topics_each: int = 1  # times `topics`, with `{n}` counting
    filters: tuple[str, ...] = ("bench/#",)  # of each subscriber
    filters_each: int = 1  # times `filters`, with `{n}` counting over all subscribers
    copies: int = 1  # subscribers that get each message
    qos: int = 0
    window: int = 20  # messages of one publisher on their way
    rate_s: float = 0.0  # messages a second of all publishers; 0 = as fast as the window allows
    payload_bytes: int = 100
    duration_s: float = 3.0
    warmup_s: float = 0.5


@dataclass(frozen=True, slots=True)
class FlowReport:
    """What subscribers got in the measured time. Latencies are 0 without `rate_s`."""

    deliveries: int
    seconds: float
    deliveries_per_s: float
    generator_core_share: float
    broker_core_share: float
    latency_p50_ms: float
    latency_p99_ms: float
    latency_p999_ms: float
    subscribe_s: float  # to take all subscriptions, and connect their clients
    subscribe_broker_s: float  # the broker's processor time of it
    subscriptions_bytes: int  # what the broker's memory grew by for them and their clients


class _Publisher:
    """Its block of frames is sent cyclically, as far as deliveries have made room."""

    __slots__ = ("arrived", "block", "frame_bytes", "position", "sock", "span", "unsent")

    def __init__(self, spec: FlowSpec, number: int) -> None:
        names = [
            each.format(i=number, n=n) for n in range(spec.topics_each) for each in spec.topics
        ]
        count = max(len(names), spec.window)
        count += -count % len(names)
        payload = bytes(8) + (b"0123456789abcdef" * (spec.payload_bytes // 16 + 1))
        frames = [
            frame_of(
                names[index % len(names)],
                payload[: max(8, spec.payload_bytes)],
                spec.qos,
                index % 0xFFFF + 1,
            )
            for index in range(count)
        ]
        self.frame_bytes = len(frames[0])
        if any(len(frame) != self.frame_bytes for frame in frames):
            raise ValueError("topics differ in length")
        self.span = self.frame_bytes * count
        self.block = memoryview(b"".join(frames) * 2)
        self.position = 0
        self.unsent = 0  # bytes that may go
        self.arrived = 0  # deliveries that have not made up `copies` yet
        self.sock = connected(spec.port, f"publisher-{number}", host=spec.host)
        self.sock.setblocking(False)

    def push(self) -> None:
        """Send what may go, as far as the socket takes it."""
        while self.unsent:
            upto = min(self.position + self.unsent, 2 * self.span)
            try:
                sent = self.sock.send(self.block[self.position : upto])
            except BlockingIOError:
                return
            self.unsent -= sent
            self.position = (self.position + sent) % self.span

    def drain(self) -> None:
        """Read PUBACKs and forget them."""
        try:
            while len(self.sock.recv(65536)) == 65536:
                pass
        except BlockingIOError:
            return


class _Subscriber:
    """Counts and acknowledges deliveries of one size."""

    __slots__ = ("carry", "first_byte", "frame_bytes", "id_at", "publisher", "sock")

    def __init__(self, publisher: _Publisher, sock: socket.socket, spec: FlowSpec) -> None:
        self.publisher = publisher
        self.sock = sock
        self.carry = b""
        self.frame_bytes = publisher.frame_bytes
        self.first_byte = 0x30 | spec.qos << 1
        payload_bytes = max(8, spec.payload_bytes)
        self.id_at = self.frame_bytes - payload_bytes - 2 if spec.qos else 0

    def receive(self) -> bytes:
        """Return the whole PUBLISH packets that have come, acknowledged.

        Raises:
            ConnectionError: the broker closes, or sends something else.
        """
        data = self.sock.recv(262_144)
        if not data:
            raise ConnectionError("closed by the broker")
        if self.carry:
            data = self.carry + data
        size = self.frame_bytes
        count = len(data) // size
        whole = count * size
        self.carry = data[whole:]
        data = data[:whole]
        if data[::size].count(self.first_byte) != count:
            raise ConnectionError(f"not the PUBLISH that was sent: {data[:40].hex()}")
        if self.id_at and count:
            acks = bytearray(b"\x40\x02\0\0" * count)
            acks[2::4] = data[self.id_at :: size]
            acks[3::4] = data[self.id_at + 1 :: size]
            self.sock.sendall(acks)
        return data


class _Run:
    """One run of a spec in this process."""

    def __init__(self, spec: FlowSpec) -> None:
        self.spec = spec
        self.poller = select.epoll()
        self.publishers: list[_Publisher] = []
        self.subscribers: dict[int, _Subscriber] = {}
        self.deliveries = 0
        self.latencies_ns: list[int] = []
        self.subscribe_s = self.subscribe_broker_s = 0.0
        self.subscriptions_bytes = 0

    def open(self) -> None:
        """Connect everybody."""
        spec = self.spec
        before = memory_bytes_of(spec.pid) if spec.pid else 0
        cpu = cpu_s_of(spec.pid) if spec.pid else 0.0
        start = time.monotonic()
        self.publishers = [_Publisher(spec, number) for number in range(spec.publishers)]
        for number in range(spec.subscribers):
            sock = connected(spec.port, f"subscriber-{number}", host=spec.host)
            publisher = self.publishers[number % spec.publishers]
            self.subscribers[sock.fileno()] = _Subscriber(publisher, sock, spec)
            first = number * spec.filters_each
            filters = [
                each.format(i=number, n=n)
                for n in range(first, first + spec.filters_each)
                for each in spec.filters
            ]
            subscribe(sock, filters, spec.qos)
            sock.setblocking(False)
            self.poller.register(sock.fileno(), select.EPOLLIN)
        self.subscribe_s = time.monotonic() - start
        if spec.pid:
            self.subscribe_broker_s = cpu_s_of(spec.pid) - cpu
            time.sleep(0.2)  # for the system's figure, not for the broker
            self.subscriptions_bytes = memory_bytes_of(spec.pid) - before

    def close(self) -> None:
        """Close every socket."""
        self.poller.close()
        for publisher in self.publishers:
            publisher.sock.close()
        for subscriber in self.subscribers.values():
            subscriber.sock.close()

    def saturate(self, end: float) -> None:
        """Keep every window full until `end`."""
        copies = self.spec.copies
        poll, clock, subscribers = self.poller.poll, time.monotonic, self.subscribers
        drain_at = clock() + _DRAIN_S
        last = clock()
        while (now := clock()) < end:
            ready: set[_Publisher] = set()
            for fd, _ in poll(0.005):
                subscriber = subscribers[fd]
                data = subscriber.receive()
                count = len(data) // subscriber.frame_bytes
                self.deliveries += count
                publisher = subscriber.publisher
                publisher.arrived += count
                ready.add(publisher)
                last = now
            for publisher in ready:
                done, publisher.arrived = divmod(publisher.arrived, copies)
                publisher.unsent += done * publisher.frame_bytes
                publisher.push()
            if now > drain_at:
                drain_at = now + _DRAIN_S
                for publisher in self.publishers:
                    publisher.push()
                    if self.spec.qos:
                        publisher.drain()
            if now - last > _STALL_S:
                raise ConnectionError("deliveries are missing: nothing has come for 10 s")

    def pace(self, end: float, *, measured: bool) -> None:
        """Send at the rate asked for until `end`, and time what comes."""
        spec = self.spec
        publishers, subscribers, poll = self.publishers, self.subscribers, self.poller.poll
        clock = time.monotonic_ns
        step_ns = 1e9 / spec.rate_s
        start_ns = clock()
        end_ns = int(end * 1e9)
        payload_bytes = max(8, spec.payload_bytes)
        heads = [bytes(p.block[: p.frame_bytes - payload_bytes]) for p in publishers]
        tail = bytes(publishers[0].block[-payload_bytes + 8 :]) if payload_bytes > 8 else b""
        sent = 0
        drain_at = start_ns
        waiting = (self.poller,)
        while (now_ns := clock()) < end_ns:
            due = int((now_ns - start_ns) / step_ns)
            while sent < due:
                number = sent % len(publishers)
                stamp = _STAMP.pack(int(start_ns + sent * step_ns))
                publishers[number].sock.send(heads[number] + stamp + tail)
                sent += 1
            # `select` waits by the microsecond, `epoll` by the millisecond.
            select.select(waiting, (), (), max(0.0, (start_ns + sent * step_ns - clock()) / 1e9))
            for fd, _ in poll(0):
                subscriber = subscribers[fd]
                data = subscriber.receive()
                size = subscriber.frame_bytes
                self.deliveries += len(data) // size
                if measured:
                    now_ns = clock()
                    for at in range(size - payload_bytes, len(data), size):
                        self.latencies_ns.append(now_ns - _STAMP.unpack_from(data, at)[0])
            if spec.qos and now_ns > drain_at:
                drain_at = now_ns + int(_DRAIN_S * 1e9)
                for publisher in publishers:
                    publisher.drain()

    def measure(self) -> FlowReport:
        """Warm up, run, report."""
        spec = self.spec
        if spec.rate_s:
            self.pace(time.monotonic() + spec.warmup_s, measured=False)
        else:
            for publisher in self.publishers:
                publisher.unsent = publisher.frame_bytes * spec.window
                publisher.push()
            self.saturate(time.monotonic() + spec.warmup_s)
        self.deliveries = 0
        cpu, broker_cpu = time.process_time(), cpu_s_of(spec.pid)
        start = time.monotonic()
        if spec.rate_s:
            self.pace(start + spec.duration_s, measured=True)
        else:
            self.saturate(start + spec.duration_s)
        seconds = time.monotonic() - start
        broker_s = cpu_s_of(spec.pid) - broker_cpu if spec.pid else 0.0
        ordered = sorted(self.latencies_ns)
        return FlowReport(
            deliveries=self.deliveries,
            seconds=round(seconds, 4),
            deliveries_per_s=round(self.deliveries / seconds, 1),
            generator_core_share=round((time.process_time() - cpu) / seconds, 3),
            broker_core_share=round(broker_s / seconds, 3),
            latency_p50_ms=_quantile_ms(ordered, 0.5),
            latency_p99_ms=_quantile_ms(ordered, 0.99),
            latency_p999_ms=_quantile_ms(ordered, 0.999),
            subscribe_s=round(self.subscribe_s, 3),
            subscribe_broker_s=round(self.subscribe_broker_s, 3),
            subscriptions_bytes=self.subscriptions_bytes,
        )


def _quantile_ms(ordered_ns: list[int], part: float) -> float:
    if not ordered_ns:
        return 0.0
    return round(ordered_ns[min(len(ordered_ns) - 1, int(part * len(ordered_ns)))] / 1e6, 3)


def run_flow(spec: FlowSpec) -> FlowReport:
    """Run a spec in this process. Raises ConnectionError when the broker does not do its part."""
    run = _Run(spec)
    try:
        run.open()
        return run.measure()
    finally:
        run.close()


def spawn_flow(spec: FlowSpec, timeout_s: float = 180.0) -> FlowReport:
    """Run a spec in a process of its own and return its report."""
    return FlowReport(**spawn("benchmarks.flow", spec, timeout_s))


def main() -> None:
    """Run from a command line; the report is one line of JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    names = ", ".join(field.name for field in fields(FlowSpec))
    parser.add_argument("--spec", required=True, help=f"JSON with some of: {names}")
    given = json.loads(parser.parse_args().spec)
    for name in {"filters", "topics"} & given.keys():
        given[name] = tuple(given[name])
    print(json.dumps(asdict(run_flow(FlowSpec(**given)))))


if __name__ == "__main__":
    main()
