"""An MQTT load generator that is not the bottleneck: frames are encoded before the clock starts.

One process, one epoll, non-blocking sockets. Each connection publishes to its own topic with a
window of unacknowledged messages; acknowledgements are counted by their bytes (4 each), and the
next frames are slices of one block made beforehand. The report names the share of a core that
the generator and the broker took, so that a reader can see which of them was the limit.

    python -m benchmarks.load --port 1883 --connections 50 --window 20 --qos 1 --duration 5
"""

from __future__ import annotations

import argparse
import json
import select
import time
from dataclasses import asdict, dataclass

from benchmarks.generators import spawn
from benchmarks.wire import PINGREQ, connected, cpu_s_of, frame_of, receive_exactly

__all__ = ["LoadReport", "LoadSpec", "run_load", "spawn_load"]

_SILENT_MAX_S = 20.0
_ACK_BYTES = 4  # PUBACK, PUBREC and PUBCOMP without reason code, in 3.1.1 and in 5.0


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What to send: `connections` x `window` messages of `payload_bytes`, for `duration_s`."""

    port: int
    host: str = "127.0.0.1"
    connections: int = 50
    window: int = 20
    qos: int = 1
    payload_bytes: int = 100
    duration_s: float = 3.0
    warmup_s: float = 0.5
    # Stop after so many messages instead of after `duration_s`: with QoS 0 and 1 each connection
    # sends its share of them and no more, without a warm-up.
    count: int = 0
    topic: str = "devices/{client}/bench"  # `{n}` counts `topics`
    topics: int = 1  # of each connection, used in turn
    retain: bool = False
    protocol_version: int = 4
    client_prefix: str = "load"
    client_digits: int = 1  # at least, of the number behind it
    pid: int = 0  # the broker's process, to report its share of a core


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What came back in the measured time; a message counts once its last acknowledgement is in."""

    messages: int
    seconds: float
    messages_per_s: float
    generator_core_share: float
    broker_core_share: float  # 0.0 when no pid was given


def run_load(spec: LoadSpec) -> LoadReport:
    """Run the load in this process and report it. Raises ConnectionError if the broker refuses."""
    senders: dict[int, _Sender] = {}
    poller = select.epoll()
    try:
        for index in range(spec.connections):
            sender = _Sender(spec, index)
            senders[sender.sock.fileno()] = sender
            poller.register(sender.sock.fileno(), select.EPOLLIN)
        return _measure(spec, senders, poller)
    finally:
        poller.close()
        for sender in senders.values():
            sender.sock.close()


def spawn_load(spec: LoadSpec, timeout_s: float = 120.0) -> LoadReport:
    """Run the load in a process of its own and return its report."""
    return LoadReport(**spawn("benchmarks.load", spec, timeout_s))


class _Sender:
    """One connection: what of its cyclic block of frames is sent, and what was acknowledged."""

    __slots__ = (
        "block",
        "carry",
        "done",
        "frame_bytes",
        "left",
        "odd_bytes",
        "position",
        "receive_into",
        "send",
        "sock",
        "span",
        "started",
        "unsent",
        "whole",
        "window",
    )

    def __init__(self, spec: LoadSpec, index: int) -> None:
        client_id = f"{spec.client_prefix}-{index:0{spec.client_digits}d}"
        payload = (b"0123456789abcdef" * (spec.payload_bytes // 16 + 1))[: spec.payload_bytes]
        count = max(spec.window, spec.topics)
        count += -count % spec.topics
        frames = [
            frame_of(
                spec.topic.format(client=client_id, n=number % spec.topics),
                payload,
                spec.qos,
                number % 0xFFFF + 1,
                spec.protocol_version,
                retain=spec.retain,
            )
            for number in range(count)
        ]
        self.frame_bytes = len(frames[0])
        if any(len(frame) != self.frame_bytes for frame in frames):
            raise ValueError("topics differ in length")
        self.span = self.frame_bytes * count
        self.block = memoryview(b"".join(frames) * 2)
        self.whole = self.block[: self.span]
        self.position = 0  # in the first half of the block
        self.unsent = 0  # bytes from `position` on that the window allows and the socket refused
        self.odd_bytes = 0  # read of an acknowledgement that is not whole: QoS 1, ...
        self.carry = b""  # ... and QoS 2
        self.done = 0
        self.left = spec.count // spec.connections if spec.count else 1 << 62  # frames, QoS 1
        self.started = False
        self.window = spec.window
        self.sock = connected(
            spec.port, client_id, host=spec.host, protocol_version=spec.protocol_version
        )
        self.sock.setblocking(False)
        self.send = self.sock.send
        self.receive_into = self.sock.recv_into

    def push(self) -> bool:
        """Send what the window allows; False when the socket is full."""
        unsent = self.unsent
        while unsent:
            position = self.position
            try:
                sent = self.send(
                    self.whole
                    if unsent == self.span and not position
                    else self.block[position : min(position + unsent, 2 * self.span)]
                )
            except BlockingIOError:
                return False
            self.unsent = unsent = unsent - sent
            self.position = (position + sent) % self.span
        return True


def _measure(spec: LoadSpec, senders: dict[int, _Sender], poller: select.epoll) -> LoadReport:
    step = _pump_qos0 if spec.qos == 0 else _pump_qos1 if spec.qos == 1 else _pump_qos2
    if not spec.count:
        step(senders, poller, time.monotonic() + spec.warmup_s, 0)
    for sender in senders.values():
        sender.done = 0
    cpu, broker_cpu = time.process_time(), cpu_s_of(spec.pid)
    start = time.monotonic()
    end = start
    while True:  # a machine so busy that nothing was answered has not been measured yet
        end += spec.duration_s
        step(senders, poller, end if not spec.count else 1e18, spec.count)
        if spec.count or end > start + _SILENT_MAX_S or any(one.done for one in senders.values()):
            break
    seconds = time.monotonic() - start
    messages = sum(sender.done for sender in senders.values())
    return LoadReport(
        messages=messages,
        seconds=round(seconds, 4),
        messages_per_s=round(messages / seconds, 1),
        generator_core_share=round((time.process_time() - cpu) / seconds, 3),
        broker_core_share=round((cpu_s_of(spec.pid) - broker_cpu) / seconds, 3)
        if spec.pid
        else 0.0,
    )


def _start_windows(senders: dict[int, _Sender], poller: select.epoll) -> None:
    for fd, sender in senders.items():
        if not sender.started:
            sender.started = True
            frames = min(sender.window, sender.left)
            sender.left -= frames
            sender.unsent = frames * sender.frame_bytes
            if not sender.push():
                poller.modify(fd, select.EPOLLIN | select.EPOLLOUT)


def _pump_qos1(senders: dict[int, _Sender], poller: select.epoll, end: float, count: int) -> None:
    """Keep every window full until `end` or `count`; one read and one write a wake-up."""
    _start_windows(senders, poller)
    total = 0
    clock, poll = time.monotonic, poller.poll
    buffer = bytearray(65536)  # acknowledgements are counted by their bytes, never looked at
    while clock() < end and not (count and total >= count):
        for fd, event in poll(0.1):
            sender = senders[fd]
            if event & select.EPOLLOUT and sender.push():
                poller.modify(fd, select.EPOLLIN)
            if not event & select.EPOLLIN:
                continue
            size = sender.receive_into(buffer)
            if not size:
                raise ConnectionError("closed by the broker")
            acked, sender.odd_bytes = divmod(sender.odd_bytes + size, _ACK_BYTES)
            sender.done += acked
            total += acked
            blocked = sender.unsent
            frames = min(sender.left, acked)
            sender.left -= frames
            sender.unsent = blocked + frames * sender.frame_bytes
            if not blocked and not sender.push():
                poller.modify(fd, select.EPOLLIN | select.EPOLLOUT)


def _pump_qos2(senders: dict[int, _Sender], poller: select.epoll, end: float, count: int) -> None:
    """Answer each PUBREC with a PUBREL; a PUBCOMP lets the next message go."""
    _start_windows(senders, poller)
    total = 0
    while time.monotonic() < end and not (count and total >= count):
        for fd, _event in poller.poll(0.1):
            sender = senders[fd]
            data = sender.carry + sender.sock.recv(65536)
            whole = len(data) - len(data) % _ACK_BYTES
            sender.carry = data[whole:]
            kinds = data[0:whole:_ACK_BYTES]
            completed = kinds.count(0x70)
            releases = bytearray()
            for index, kind in enumerate(kinds):
                if kind == 0x50:
                    at = index * _ACK_BYTES
                    releases += b"\x62\x02" + data[at + 2 : at + 4]
            sender.sock.setblocking(True)
            if releases:
                sender.sock.sendall(releases)
            sender.done += completed
            total += completed
            sender.unsent += completed * sender.frame_bytes
            sender.push()
            sender.sock.setblocking(False)


def _pump_qos0(senders: dict[int, _Sender], poller: select.epoll, end: float, count: int) -> None:
    """Send until `end`, then ask each connection with a PINGREQ whether the broker read it all."""
    share = count // len(senders) if count else 0  # of each connection; 0 = until `end`
    for fd in senders:
        poller.modify(fd, select.EPOLLOUT)
    open_fds = set(senders)
    while open_fds and time.monotonic() < end:
        for fd, _event in poller.poll(0.1):
            sender = senders[fd]
            if not sender.unsent:
                frames = min(sender.window, share - sender.done) if share else sender.window
                if not frames:
                    poller.modify(fd, 0)
                    open_fds.discard(fd)
                sender.unsent = frames * sender.frame_bytes
                sender.done += frames
            sender.push()
    for fd, sender in senders.items():
        poller.modify(fd, select.EPOLLIN)
        sender.sock.setblocking(True)
        sender.push()
        sender.sock.sendall(PINGREQ)
    for sender in senders.values():
        receive_exactly(sender.sock, 2)
        sender.sock.setblocking(False)


def main() -> None:
    """Run from a command line; the report is one line of JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--spec", help="all settings as JSON, as `spawn_load` passes them")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--qos", type=int, choices=(0, 1, 2), default=1)
    parser.add_argument("--payload-bytes", type=int, default=100)
    parser.add_argument("--duration-s", type=float, default=3.0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--topic", default="devices/{client}/bench")
    parser.add_argument("--protocol-version", type=int, choices=(4, 5), default=4)
    parser.add_argument("--pid", type=int, default=0)
    options = vars(parser.parse_args())
    text = options.pop("spec")
    spec = LoadSpec(**json.loads(text)) if text else LoadSpec(**options)
    print(json.dumps(asdict(run_load(spec))))


if __name__ == "__main__":
    main()
