"""Packets that are nearly right: the raw material of a fuzzer, from one seed.

A `Fuzzer` speaks whole sessions: a CONNECT that is mostly in order, then packets whose fields are
drawn from what is usual, what is extreme and what is forbidden, some of them damaged afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.kit.raw_mqtt import (
    connect,
    frame,
    publish,
    string,
    subscribe,
    unsubscribe,
    varint,
)

__all__ = ["Fuzzer"]

_TOPICS: tuple[str | bytes, ...] = (
    "t", "a/b", "a/c", "a/b/c/d", "fuzz/1", "fuzz/2", "/", "//", " ", "\u00e9", "x" * 300,
    "/".join("abcdefgh" * 20), "a/+", "#", "+", "a/#/b", "a+", "", "$SYS/broker/uptime", "$x/y",
    "$share/g/t", "$share/g/#", "$share//t", "$share/g", b"\xff", b"a\0b", b"\xed\xa0\x80",
)  # fmt: skip
_VALUES = {
    "byte": (0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A),
    "two": (0x13, 0x21, 0x22, 0x23),
    "four": (0x02, 0x11, 0x18, 0x27),
    "variable": (0x0B,),
    "string": (0x03, 0x08, 0x09, 0x12, 0x15, 0x16, 0x1A, 0x1C, 0x1F),
    "pair": (0x26,),
}


class Fuzzer:
    """Makes sessions of packets.

    Args:
        seed: The same seed makes the same sessions.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._version = 5

    def session(self) -> Iterator[bytes]:
        """Yield what one client sends, in pieces cut anywhere."""
        rng = self._rng
        self._version = rng.choice((4, 5, 5))
        packets = [self._damaged(self._connect(), 0.1)]
        packets += [self._damaged(self._packet(), 0.15) for _ in range(rng.randrange(30))]
        data = b"".join(packets)
        while data:
            size = rng.choice((1, 7, 100, 1460, 1 << 16))
            yield data[:size]
            data = data[size:]

    def _connect(self) -> bytes:
        rng = self._rng
        will = (rng.choice(_TOPICS[:12]), rng.randbytes(rng.randrange(20)))
        return connect(
            self._version,
            rng.choice(("", f"fuzz-{rng.randrange(40)}", f"fuzz-{rng.randrange(4)}", "x" * 100)),
            clean=rng.random() < 0.6,
            keep_alive=rng.choice((0, 1, 60, 65_535)),
            props=self._properties((0x11, 0x21, 0x22, 0x26, 0x27, 0x17, 0x19)),
            will=will if rng.random() < 0.3 else None,
            will_qos=rng.choice((0, 0, 1, 2)) if rng.random() < 0.5 else 0,
            will_props=self._properties((0x18, 0x01, 0x02, 0x03, 0x26)),
            username=rng.choice((None, "user")),
            flags=0,
        )

    def _packet(self) -> bytes:
        rng = self._rng
        kind = rng.choices(
            (
                self._publish,
                self._subscribe,
                self._unsubscribe,
                self._acknowledgement,
                self._other,
                self._garbage,
                self._connect,
            ),
            (40, 15, 6, 20, 10, 5, 1),
        )[0]
        return kind()

    def _publish(self) -> bytes:
        rng = self._rng
        qos = rng.choice((0, 1, 2, 2, 3)) if rng.random() < 0.9 else 3
        size = rng.choice((0, 1, 20, 500, 5_000))
        return publish(
            self._version,
            self._topic(),
            rng.randbytes(size),
            qos,
            self._packet_id(),
            retain=rng.random() < 0.3,
            dup=rng.random() < 0.2 and qos > 0,
            props=self._properties((0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26)),
        )

    def _subscribe(self) -> bytes:
        rng = self._rng
        options = (0, 1, 2, 0x0A, 0x16, 0x29, 0x05)
        filters = [
            (self._topic(), rng.choice(options) if rng.random() < 0.9 else rng.randrange(256))
            for _ in range(rng.choice((0, 1, 1, 2, 8)))
        ]
        props = self._properties((0x0B, 0x26))
        return subscribe(self._version, self._packet_id(), *filters, props=props)

    def _unsubscribe(self) -> bytes:
        filters = [self._topic() for _ in range(self._rng.choice((0, 1, 3)))]
        return unsubscribe(self._version, self._packet_id(), *filters)

    def _acknowledgement(self) -> bytes:
        rng = self._rng
        body = self._packet_id().to_bytes(2, "big")
        if self._version == 5 and rng.random() < 0.4:
            body += bytes((rng.choice((0, 0x10, 0x80, 0x92, 0x97, rng.randrange(256))),))
            if rng.random() < 0.5:
                props = self._properties((0x1F, 0x26))
                body += varint(len(props)) + props
        return frame(rng.choice((0x40, 0x50, 0x62, 0x70)), body)

    def _other(self) -> bytes:
        rng = self._rng
        code = rng.choice((0, 4, 0x18, 0x19, rng.randrange(256)))
        props = self._properties((0x11, 0x15, 0x16, 0x1F, 0x26))
        body = bytes((code,)) + varint(len(props)) + props
        return rng.choice((b"\xc0\0",) * 6 + (b"\xe0\0", frame(0xE0, body), frame(0xF0, body)))

    def _garbage(self) -> bytes:
        rng = self._rng
        return frame(rng.randrange(256), rng.randbytes(rng.choice((0, 1, 5, 50))))

    def _topic(self) -> str | bytes:
        rng = self._rng
        return rng.choice(_TOPICS[:12]) if rng.random() < 0.85 else rng.choice(_TOPICS)

    def _packet_id(self) -> int:
        rng = self._rng
        return rng.choice((rng.randrange(1, 10), rng.randrange(1, 10), rng.randrange(1 << 16)))

    def _properties(self, usual: tuple[int, ...]) -> bytes:
        rng = self._rng
        out = b""
        for _ in range(rng.choice((0, 0, 0, 1, 2, 3))):
            wild = rng.random() < 0.1
            identifier = rng.randrange(1, 0x2B) if wild else rng.choice(usual)
            kind = next((k for k, names in _VALUES.items() if identifier in names), "byte")
            out += bytes((identifier,)) + self._value(kind)
        return out

    def _value(self, kind: str) -> bytes:
        rng = self._rng
        if kind == "byte":
            return bytes((rng.choice((0, 1, 1, 2)),))
        if kind == "two":
            return rng.choice((1, 3, 10, 0, 0xFFFF)).to_bytes(2, "big")
        if kind == "four":
            return rng.choice((1, 5, 100, 5_000, 0, 0xFFFF_FFFF)).to_bytes(4, "big")
        if kind == "variable":
            return varint(rng.choice((1, 200, 268_435_455, 0)))
        text = string(rng.choice(("", "text", "reply/to", "x" * 200)))
        return text + string(rng.choice(("", "value"))) if kind == "pair" else text

    def _damaged(self, packet: bytes, probability: float) -> bytes:
        rng = self._rng
        if rng.random() >= probability or not packet:
            return packet
        at = rng.randrange(len(packet))
        return rng.choice(
            (
                packet[:at] + bytes((rng.randrange(256),)) + packet[at + 1 :],  # a byte
                packet[:at] + bytes((packet[at] ^ 1 << rng.randrange(8),)) + packet[at + 1 :],
                packet[:at],  # cut short
                packet[:at] + rng.randbytes(rng.randrange(1, 9)) + packet[at:],  # more
                packet[at:],  # its end alone
                packet + packet,
                packet[:1] + varint(rng.randrange(1 << 21)) + packet[2:],  # another length
            )
        )
