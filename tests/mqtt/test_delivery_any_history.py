"""The promise under any history: QoS 1 at least once, QoS 2 exactly once, in order.

Our client machine and the real broker with its SQLite store, over lines that are split at any
byte, cut with whatever is on its way, and brokers that stop or die and start again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mqtt.broker.config import BrokerConfig
from mqtt.client import ClientConnection
from mqtt.client_session import ClientSession, Connected, Disconnected, Published
from mqtt.packets import Connect, Publish, Subscription
from mqtt.properties import RECEIVE_MAXIMUM, SESSION_EXPIRY_INTERVAL
from tests.kit.broken_line import Line, World

CONFIG = BrokerConfig(sys_interval_s=0, inflight_max=4)
ALL = 1 << 30


class Peer:
    """A client with a session, on a line or not."""

    def __init__(self, world: World, client_id: str, version: int) -> None:
        self.world = world
        self.client_id = client_id
        self.version = version
        self.session = ClientSession()
        self.machine: ClientConnection | None = None
        self.line: Line | None = None
        self.messages: list[tuple[int, bytes]] = []
        self.published: set[int] = set()
        self.subscribed = False

    def connect(self) -> None:
        self.line = self.world.dial()
        self.machine = ClientConnection(self.session, connect_timeout_s=1e9)
        properties = {SESSION_EXPIRY_INTERVAL: 86_400, RECEIVE_MAXIMUM: 3}
        self.machine.connect(
            Connect(
                self.client_id,
                self.version,
                clean_start=False,
                properties=properties if self.version == 5 else {},
            ),
            0.0,
        )
        self._say()

    def hang_up(self) -> None:
        """Note that the line is broken."""
        if self.machine is not None:
            self.machine.receive_eof(0.0)
            self._hear()
        self.machine = self.line = None

    def move(self, up: int, down: int) -> None:
        """Let bytes arrive at both ends."""
        assert self.machine is not None
        assert self.line is not None
        data = self.world.carry(self.line, up, down)
        if data:
            self.machine.receive_data(data, 0.0)
            self._hear()
            self._say()
        if not self.line.open and not self.line.down:
            self.hang_up()

    def _say(self) -> None:
        assert self.machine is not None
        data = self.machine.data_to_send()
        if self.line is not None and self.line.open:
            self.line.up += data

    def _hear(self) -> None:
        assert self.machine is not None
        for event in self.machine.events():
            if isinstance(event, Publish):
                self.messages.append((event.qos, event.payload))
            elif isinstance(event, Published):
                assert event.reason_code < 0x80, event
            elif isinstance(event, Connected):
                assert event.connack.reason_code == 0
                assert event.connack.session_present or not self.subscribed, "session lost"
            elif isinstance(event, Disconnected):
                assert event.error is None, event

    def publish(self, payload: bytes, qos: int) -> None:
        assert self.machine is not None
        self.machine.publish("t", payload, qos, now_s=0.0)
        self._say()


class AnyHistory(RuleBasedStateMachine):
    """One writer, one reader, one broker; anything may happen to any of them at any byte."""

    version = 5

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.world = World(Path(self._folder.name), CONFIG)
        self.writer = Peer(self.world, "writer", self.version)
        self.reader = Peer(self.world, "reader", self.version)
        self.sent: list[tuple[int, bytes]] = []
        self.reader.connect()
        assert self.reader.machine is not None
        self.deliver_everything()
        self.reader.machine.subscribe([Subscription("t", 2)])
        self.reader._say()
        self.deliver_everything()
        self.reader.subscribed = True

    def peers(self) -> list[Peer]:
        return [self.writer, self.reader]

    @rule(qos=st.sampled_from([1, 2]), count=st.integers(1, 4))
    def publish(self, qos: int, count: int) -> None:
        if self.writer.machine is None:
            self.writer.connect()
        for _ in range(count):
            payload = b"%d" % len(self.sent)
            self.sent.append((qos, payload))
            self.writer.publish(payload, qos)

    @rule(who=st.integers(0, 1))
    def connect(self, who: int) -> None:
        peer = self.peers()[who]
        if peer.machine is None:
            peer.connect()

    @rule(who=st.integers(0, 1), up=st.integers(0, 60), down=st.integers(0, 60))
    def some_bytes_arrive(self, who: int, up: int, down: int) -> None:
        peer = self.peers()[who]
        if peer.machine is not None:
            peer.move(up, down)

    @rule(who=st.integers(0, 1))
    def all_bytes_arrive(self, who: int) -> None:
        peer = self.peers()[who]
        if peer.machine is not None:
            peer.move(ALL, ALL)

    @rule()
    def the_disk_keeps_up(self) -> None:
        self.world.settle()

    @rule(who=st.integers(0, 1))
    def the_line_breaks(self, who: int) -> None:
        peer = self.peers()[who]
        if peer.line is not None:
            self.world.cut(peer.line)
            peer.hang_up()

    @rule(who=st.integers(0, 1))
    def the_client_dials_again_before_the_broker_knows(self, who: int) -> None:
        peer = self.peers()[who]
        if peer.machine is not None:
            peer.hang_up()
            peer.connect()

    @precondition(lambda self: self.sent)
    @rule(killed=st.booleans())
    def the_broker_restarts(self, killed: bool) -> None:
        if killed:
            self.world.kill()
        else:
            self.world.stop()
        for peer in self.peers():
            peer.hang_up()
        self.world.start()

    @invariant()
    def nothing_reaches_the_loops_handler(self) -> None:
        assert not self.world.faults

    @invariant()
    def qos_2_never_comes_twice(self) -> None:
        twos = [payload for qos, payload in self.reader.messages if qos == 2]
        assert len(twos) == len(set(twos))

    def deliver_everything(self) -> None:
        """Let all bytes arrive until nothing moves any more."""
        quiet = 0
        while quiet < 3:
            before = (len(self.reader.messages), len(self.writer.session.outbound))
            moved = False
            for peer in self.peers():
                if peer.machine is not None and peer.line is not None:
                    moved |= bool(peer.line.up or peer.line.down)
                    peer.move(ALL, ALL)
            self.world.settle()
            same = before == (len(self.reader.messages), len(self.writer.session.outbound))
            quiet = quiet + 1 if same and not moved else 0

    def teardown(self) -> None:
        try:
            for peer in self.peers():
                if peer.machine is None:
                    peer.connect()
            self.deliver_everything()
            assert not self.writer.session.outbound
            got = self.reader.messages
            for qos in (1, 2):
                want = [payload for q, payload in self.sent if q == qos]
                first = list(dict.fromkeys(payload for q, payload in got if q == qos))
                assert first == want, qos
            assert sum(q == 2 for q, _ in got) == sum(q == 2 for q, _ in self.sent)
            assert not self.world.faults
        finally:
            self.world.close()
            self._folder.cleanup()


class AnyHistory311(AnyHistory):
    """The same in MQTT 3.1.1."""

    version = 4


_SETTINGS = settings(max_examples=40, stateful_step_count=40, deadline=None)

TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = _SETTINGS
TestAnyHistory311 = AnyHistory311.TestCase
TestAnyHistory311.settings = _SETTINGS
