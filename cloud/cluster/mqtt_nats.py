"""The fabric of MQTT across nodes on NATS: core subjects, one log stream, two buckets.

    {cluster}.mq.all, .ctl.{inst}, .to.{inst}     core messages
    {cluster}-MQTT, {cluster}.mqtt.>              the log (cloud/cluster/layout.py)
    KV_{cluster}-sessions                         sessions, leases and estates
    KV_{cluster}-retained                         retained messages

One connection of its own, so that nothing here waits behind the stream's bodies. No consumers: the
log and the buckets are followed through their republished subjects (cloud/cluster/follower.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from cloud.cluster import bucket as buckets
from cloud.cluster.bucket import Bucket, is_deleted
from cloud.cluster.connection import ApiError, ClusterError, Connection
from cloud.cluster.follower import Follower, Message, message_of
from cloud.cluster.layout import Layout
from cloud.cluster.mqtt_fabric import (
    Conflict,
    FabricError,
    FabricFull,
    LogEntry,
    LogState,
    State,
)
from cloud.cluster.reading import read_subject

if TYPE_CHECKING:
    from nats.aio.msg import Msg

__all__ = ["NatsFabric"]

_INSTANCE: Final = "n."  # begins the key of one (cloud/cluster/mqtt_presence.py)
_SENDING_BYTES_MAX: Final = 8 << 20  # core messages that wait for the socket
_LOG_AGE_MAX_US: Final = 7 * 86_400 * 1_000_000


class NatsFabric:
    """`cloud.cluster.mqtt_fabric.Fabric` on NATS.

    Args:
        connection: Of its own; closed by `stop`.
        layout: Names of streams and buckets.
    """

    def __init__(self, connection: Connection, layout: Layout) -> None:
        self._connection = connection
        self._layout = layout
        self._subject = f"{layout.cluster}.mq."
        self._log = layout.mqtt_subject("")
        self._sessions = Bucket(connection, layout.bucket("sessions"))
        self._retained = Bucket(connection, layout.bucket("retained"))
        self._handlers: dict[str, Callable[[bytes], None]] = {}  # by subject listened to
        self._followers: list[Follower] = []
        self._states: dict[str, Follower] = {}  # by bucket
        self._sending: deque[tuple[str, bytes]] = deque()
        self._sending_bytes = 0
        self._wake = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    @property
    def payload_bytes_max(self) -> int:
        """Most bytes of one message, entry or state, without what headers take."""
        return self._connection.payload_bytes_max - 4096

    # -- core messages ------------------------------------------------------------------------

    def send(self, subject: str, data: bytes) -> bool:
        """Send a message to whoever listens now; False when it had to be dropped."""
        if not self._connection.connected or self._sending_bytes > _SENDING_BYTES_MAX:
            return False
        self._sending.append((subject, data))
        self._sending_bytes += len(data)
        self._wake.set()
        if self._sender is None:
            self._sender = asyncio.create_task(self._send(), name="mqtt-nats-send")
        return True

    async def _send(self) -> None:
        while True:
            if not self._sending:
                self._wake.clear()
                await self._wake.wait()
            subject, data = self._sending.popleft()
            self._sending_bytes -= len(data)
            try:
                await self._connection.send(self._subject + subject, data)
            except ClusterError:
                continue  # at most once

    async def listen(self, subject: str, handler: Callable[[bytes], None]) -> None:
        """Hand on what is sent to a subject, once however often it is asked; raises FabricError."""
        known = subject in self._handlers
        self._handlers[subject] = handler

        async def received(message: Msg) -> None:
            self._handlers[subject](message.data)

        try:
            if not known:
                await self._connection.subscribe(self._subject + subject, received)
            await self._connection.flush()
        except ClusterError as error:
            raise FabricError(str(error)) from None

    # -- the log ------------------------------------------------------------------------------

    async def append(self, subject: str, data: bytes, message_id: str) -> int:
        """Append to the log; return the entry's number once a quorum has synced it."""
        try:
            ack = await self._connection.publish(
                self._log + subject, data, {"Nats-Msg-Id": message_id}
            )
        except ClusterError as error:
            full = isinstance(error, ApiError) and error.is_full
            raise (FabricFull if full else FabricError)(f"mqtt log: {error}") from None
        return ack.seq

    async def log_end(self) -> int:
        """Return the number of the log's last entry."""
        said = await self._api(f"STREAM.INFO.{self._layout.mqtt_stream}", {})
        return int(said["state"]["last_seq"])

    async def log_state(self) -> LogState:
        """Return the log's size and limits."""
        said = await self._api(f"STREAM.INFO.{self._layout.mqtt_stream}", {})
        state, config = said["state"], said["config"]
        first_seq, oldest_us = int(state["last_seq"]) + 1, 0
        if state.get("messages"):
            first_seq = int(state["first_seq"])
            first = datetime.fromisoformat(str(state["first_ts"])[:19] + "+00:00")
            oldest_us = round(first.timestamp() * 1e6)
        return LogState(
            first_seq, int(state["last_seq"]), int(state["bytes"]),
            max(0, int(config.get("max_bytes", 0))), oldest_us, _LOG_AGE_MAX_US,
        )  # fmt: skip

    async def log_before(self, time_us: int) -> int:
        """Return a number at and below which all entries are older."""
        stream = self._layout.mqtt_stream
        at = datetime.fromtimestamp(time_us / 1e6, UTC).isoformat()
        try:
            found = await self._connection.direct_get(stream, {"start_time": at, "batch": 1})
        except ClusterError as error:
            raise FabricError(f"mqtt log: {error}") from None
        return message_of(found[0]).seq - 1 if found else await self.log_end()

    async def scan(
        self, subject: str, after: int, until: int, limit: int = 0
    ) -> Sequence[LogEntry]:
        """Return the entries of one subject in (after, until], with a limit at most so many."""
        try:
            found = await read_subject(
                self._connection, self._layout.mqtt_stream, self._log + subject, after, until, limit
            )
        except ClusterError as error:
            raise FabricError(f"mqtt log: {error}") from None
        return [LogEntry(message.seq, subject, message.data) for message in found]

    async def purge(self, subject: str, below: int) -> None:
        """Forget the entries of one subject with smaller numbers."""
        if below <= 1:
            return  # there are none, and a server takes 0 and 1 for all there are
        body = {"filter": self._log + subject, "seq": below}
        await self._api(f"STREAM.PURGE.{self._layout.mqtt_stream}", body)

    async def follow_log(self, after: int, on_entry: Callable[[LogEntry], None]) -> None:
        """Hand on the entries behind a number."""
        skip = len(self._log)

        def deliver(message: Message) -> None:
            on_entry(LogEntry(message.seq, message.subject[skip:], message.data))

        stream = self._layout.mqtt_stream
        follower = Follower(self._connection, stream, self._layout.live(stream), deliver)
        self._followers.append(follower)
        try:
            await follower.start(after + 1)
        except ClusterError as error:
            raise FabricError(f"mqtt log: {error}") from None

    # -- states -------------------------------------------------------------------------------

    async def put(
        self, key: str, value: bytes | None, revision: int | None, ttl_s: float = 0
    ) -> int:
        """Set a state, or remove it; return its new revision once that is durable."""
        bucket = self._bucket(key)
        ttl = ttl_s or None
        try:
            if value is None:
                return await bucket.delete(key, revision=revision)
            if revision is None:
                return await bucket.put(key, value, ttl_s=ttl)
            if revision == 0:
                return await bucket.create(key, value, ttl_s=ttl)
            return await bucket.update(key, value, revision, ttl_s=ttl)
        except buckets.Conflict as error:
            raise Conflict(str(error)) from None
        except ClusterError as error:
            raise FabricError(f"{bucket.name}: {error}") from None

    async def get(self, key: str) -> State | None:
        """Return a state as its leader has it."""
        try:
            found = await self._bucket(key).get(key)
        except ClusterError as error:
            raise FabricError(str(error)) from None
        return State(key, found.value, found.revision) if found is not None else None

    async def follow_states(self, on_state: Callable[[State], None]) -> None:
        """Hand on every state there is, return, and hand on every change.

        Of instances that somebody purged by hand, too, of which no message tells: the others
        would wait for them.
        """
        for bucket in (self._sessions, self._retained):
            skip = len(f"$KV.{bucket.name}.")
            found: dict[str, int] = {}  # revisions of instances, those renewed last at the end

            def deliver(
                message: Message, skip: int = skip, instances: dict[str, int] = found
            ) -> None:
                value = None if is_deleted(message.headers) else message.data
                key = message.subject[skip:]
                if key.startswith(_INSTANCE):
                    instances.pop(key, None)
                    if value is not None:
                        instances[key] = message.seq
                on_state(State(key, value, message.seq))

            def begins(first: int, instances: dict[str, int] = found) -> None:
                for key, _ in list(takewhile(lambda one: one[1] < first, instances.items())):
                    del instances[key]
                    on_state(State(key, None, first))

            live = self._layout.live(bucket.stream)
            follower = Follower(self._connection, bucket.stream, live, deliver, begins=begins)
            self._followers.append(follower)
            self._states[bucket.name] = follower
            try:
                await follower.start()
            except ClusterError as error:
                raise FabricError(f"{bucket.name}: {error}") from None

    async def catch_up(self, kind: str) -> None:
        """Return when every state of a kind that was durable before was handed on."""
        bucket = self._bucket(f"{kind}.")
        try:
            said = await self._connection.api(f"STREAM.INFO.{bucket.stream}", {})
            await self._states[bucket.name].reach(int(said["state"]["last_seq"]))
        except ClusterError as error:
            raise FabricError(f"{bucket.name}: {error}") from None

    def _bucket(self, key: str) -> Bucket:
        return self._retained if key.startswith("r.") else self._sessions

    async def _api(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._connection.api(path, body)
        except ClusterError as error:
            raise FabricError(f"mqtt log: {error}") from None

    async def stop(self) -> None:
        """End, and close the connection."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        for follower in self._followers:
            await follower.stop()
        await self._connection.close()
