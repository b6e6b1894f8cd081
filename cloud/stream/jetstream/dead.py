"""Dead letters of a cluster: one stream, a letter's pieces under one subject each.

    {cluster}.dead.{sink}.{partition}.{position}.{piece}

Piece 0 is written last and only if it is not there, so a letter is whole or absent, and the first
one stands.
"""

from __future__ import annotations

import cbor2

from cloud.cluster.bucket import key_token
from cloud.cluster.connection import ApiError, ClusterError, Connection
from cloud.cluster.layout import Layout
from cloud.cluster.reading import insist, read_everything
from cloud.stream.contract import DeadLetter, Entry, StreamError
from cloud.stream.jetstream.records import flat, pairs
from runtime.clock import Clock

__all__ = ["DeadLetterBox"]

_HEADROOM_BYTES = 4096


class DeadLetterBox:
    """The dead letters.

    Args:
        connection: To the cluster.
        layout: Names.
        clock: Wall clock, for when a letter was set aside.
    """

    def __init__(self, connection: Connection, layout: Layout, clock: Clock) -> None:
        self._connection = connection
        self._layout = layout
        self._clock = clock

    async def set_aside(self, sink: str, entry: Entry, cause: str, tries: int) -> None:
        """Keep a letter; the first of the same sink and entry stands.

        Raises:
            StreamError.
        """
        letter = cbor2.dumps(
            [sink, entry.partition, entry.position, entry.gateway, entry.epoch,
             flat(entry.seq_ranges), entry.count, entry.appended_us, entry.body, cause, tries,
             self._clock.wall_us()]
        )  # fmt: skip
        size = self._connection.payload_bytes_max - _HEADROOM_BYTES
        pieces = [letter[start : start + size] for start in range(0, len(letter), size)]
        try:
            for number in range(len(pieces) - 1, 0, -1):
                await self._put(sink, entry, number, pieces[number], first=False)
            head = len(pieces).to_bytes(4, "big") + pieces[0]
            await self._put(sink, entry, 0, head, first=True)
        except ClusterError as error:
            raise StreamError(f"dead letter of {sink}: {error}") from None

    async def _put(self, sink: str, entry: Entry, number: int, data: bytes, *, first: bool) -> None:
        subject = self._layout.dead_subject(
            key_token(sink), entry.partition, entry.position, number
        )
        headers = {"Nats-Expected-Last-Subject-Sequence": "0"} if first else None
        try:
            await insist(lambda: self._connection.publish(subject, data, headers))
        except ApiError as error:
            if error.err_code != 10071:
                raise  # 10071: it is there

    async def all(self, sink: str | None = None) -> list[DeadLetter]:
        """Return the letters, of one sink or of all, oldest first.

        Raises:
            StreamError.
        """
        try:
            found = await read_everything(self._connection, self._layout.dead_stream)
        except ClusterError as error:
            raise StreamError(f"dead letters: {error}") from None
        by_subject = {message.subject: message.data for message in found}
        letters = []
        for message in found:
            stem, _, number = message.subject.rpartition(".")
            if number != "0":
                continue
            count = int.from_bytes(message.data[:4], "big")
            pieces = [by_subject.get(f"{stem}.{piece}") for piece in range(1, count)]
            letter = _letter(b"".join([message.data[4:], *filter(None, pieces)]))
            if sink in (None, letter.sink):
                letters.append(letter)
        return letters

    async def forget(self, sink: str, partition: int, position: int) -> None:
        """Drop a letter.

        Raises:
            StreamError.
        """
        subject = self._layout.dead_subject(key_token(sink), partition, position, ">")
        path = f"STREAM.PURGE.{self._layout.dead_stream}"
        try:
            await insist(lambda: self._connection.api(path, {"filter": subject}))
        except ClusterError as error:
            raise StreamError(f"dead letter of {sink}: {error}") from None


def _letter(data: bytes) -> DeadLetter:
    (sink, partition, position, gateway, epoch, ranges, count, appended_us, body, cause, tries,
     time_us) = cbor2.loads(data)  # fmt: skip
    entry = Entry(partition, position, gateway, epoch, pairs(ranges), count, appended_us, body)
    return DeadLetter(sink, entry, cause, tries, time_us)
