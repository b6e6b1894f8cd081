"""Where the broker ends and its host begins: a few small Protocols.

`Capture` takes publishes that must be durable before they are acknowledged (the edge journal, the
cloud ingest). `SessionStore` keeps sessions and retained messages over restarts. `Access` says who
may do what. `Bus` reaches the other nodes of a cluster. The broker never learns what is behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from mqtt.broker.changes import Change, StoredState

__all__ = [
    "PENDING",
    "Access",
    "Capture",
    "ClientInfo",
    "Exchanges",
    "Hooks",
    "PublishRun",
    "SessionStore",
]

PENDING: Final = -1  # a verdict that `Access.decide` has to give first


@dataclass(slots=True)
class ClientInfo:
    """Who sent something: what the host may know of one MQTT connection."""

    client_id: str
    protocol_version: int  # 4 = MQTT 3.1.1, 5 = MQTT 5.0
    username: str | None = None
    peer: str = ""  # address and port, for logs
    state: dict[str, Any] = field(
        default_factory=dict
    )  # the host's own, lives as long as the connection
    address: str = ""  # without port; empty for a Unix socket
    is_local: bool = False  # on this machine
    listener: str = ""  # where it came in
    keep_alive_s: int = 0
    clean_start: bool = True
    certificate_name: str | None = None  # of a certificate that the handshake has verified
    tls: Any = None  # the ssl.SSLSocket or SSLObject that has it
    access: Any = None  # the `Access`'s own, lives as long as the connection
    auth_method: str = ""  # of enhanced authentication that succeeded; `username` is then proven


@dataclass(slots=True)
class PublishRun:
    """Consecutive captured PUBLISH packets of one read of one connection, for one lane.

    `frames` holds `count` whole PUBLISH packets exactly as received, except that a topic alias has
    been replaced by the topic it stood for. QoS 0, 1 and 2 may be mixed; the broker has kept
    what it needs to acknowledge them in `token`.
    """

    client: ClientInfo
    lane: int
    frames: bytes
    count: int
    time_us: int  # wall clock at the read
    settled: Callable[[PublishRun, int | Sequence[int]], None]
    token: Any = None
    reasons: dict[int, str] | None = None  # of refused publishes, by their place in the run

    # `settled(run, 0)` once every publish of the run is durable: the only way a PUBACK or PUBREC
    # leaves. A reason code >= 0x80 instead refuses the run, a sequence of them one a publish.
    # Called on the broker's loop, exactly once a run. `reasons` goes to v5 clients that ask.


class Capture(Protocol):
    """Takes publishes and says when they are durable."""

    @property
    def durability(self) -> str:
        """What an acknowledged publish survives, in a word: told to v5 clients that ask for it."""
        ...

    def lane(self, topic_name: str) -> int | None:
        """Return the lane that captures `topic_name`, or None when it is not captured.

        Asked once when a route is made, never per message.
        """
        ...

    def exclusive(self, lane: int) -> bool:
        """Return True when publishes of `lane` are consumed: not routed to local subscribers."""
        ...

    def take(self, run: PublishRun) -> int:
        """Take a run: 0 = taken, `run.settled` will be called; >= 0x80 = refused, nothing taken.

        A refusal (0x97 when a lane is full) is answered to v5 clients; a 3.1.1 client's connection
        is paused with the run kept, and offered again after `when_relieved`.
        """
        ...

    def saturated(self) -> bool:
        """Return True when enough is waiting for the disk: the broker then stops reading."""
        ...

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, on the loop, when taking can go on after refusal or saturation."""
        ...


class Exchanges(Protocol):
    """The QoS 2 publishes in a capture that is durable by itself, apart from the session store.

    Between the two commits of a QoS 2 publish, the capture's and then the store's, a crash leaves
    it captured and unknown to the store. A mark in the store, how far it knows the capture, lets
    the broker find such publishes again.
    """

    @property
    def position(self) -> tuple[int, int]:
        """Epoch of the capture, and the highest seq it has settled or is settling."""
        ...

    def hold(self, position: tuple[int, int] | None) -> None:
        """Delete nothing after a position; None: whatever is not needed."""
        ...

    async def since(self, position: tuple[int, int]) -> list[tuple[str, int, int]]:
        """Return client id, packet identifier and `mqtt.session.publish_check` of the QoS 2
        publishes after a position of this epoch, oldest first."""
        ...


class SessionStore(Protocol):
    """Keeps sessions and retained messages over restarts, by group commits.

    Changes are applied in the order they were put, all that are put between two turns of the loop
    in one transaction or in the same order in several.
    """

    salvages: int  # times that damage was found, moved aside and the rest kept, since the start

    async def open(self) -> StoredState:
        """Return what is held; called once, before anything is put."""
        ...

    def put(self, change: Change) -> None:
        """Take a change; it is durable when the next `when_durable` says so."""
        ...

    def when_durable(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, on the loop, when all that was put so far is durable.

        It is not called while committing fails: what waits for it stays unanswered.
        """
        ...

    def saturated(self) -> bool:
        """Return True when enough is waiting for the disk: the broker then stops reading."""
        ...

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, on the loop, when the store is not saturated any more."""
        ...

    async def close(self) -> None:
        """Make what was put durable and close."""
        ...


class Access(Protocol):
    """Says who may do what: 0, or the reason code that refuses."""

    async def connect(self, client: ClientInfo, password: bytes | None) -> int:
        """Return 0 when the client may connect, else a CONNACK reason code (0x86, 0x87, ...)."""
        ...

    def publish(self, client: ClientInfo, topic_name: str) -> int:
        """Return 0 when the client may publish to `topic_name`; PENDING: ask `decide`.

        Asked once a (client, topic): the verdict is kept until `Broker.access_changed`. Not
        asked at all of an access whose attribute `restricts_publishing`, if it has one, is False.
        """
        ...

    def subscribe(self, client: ClientInfo, topic_filter: str) -> int:
        """Return 0 when the client may subscribe to `topic_filter`, without `$share/{name}/`.

        PENDING: ask `decide`.
        """
        ...

    async def decide(self, client: ClientInfo, action: str, topic: str) -> int:
        """Find the verdict that was PENDING; `publish` or `subscribe`, as `action` says, has it
        from then on. Not asked by a broker whose access never answers PENDING."""
        ...


class Hooks(Protocol):
    """Told of clients that come and go; called on the loop, must not block."""

    def connect_wait_s(self, client: ClientInfo) -> float:
        """Return 0 to let a client connect, or after how many seconds it should come again.

        Asked before anything else is done for a CONNECT. A client that is to wait is refused with
        0x89 and told the seconds in the user property `retry-after`.
        """
        ...

    def client_connected(self, client: ClientInfo) -> None:
        """The client was sent CONNACK 0x00."""
        ...

    def client_disconnected(self, client: ClientInfo, reason_code: int) -> None:
        """The connection is gone; the reason is the DISCONNECT's or the fault's, 0x80 if none."""
        ...
