"""The engine of cloud/cluster/mqtt_fabric.py in memory: several nodes, no server, faults on demand.

    engine = MemoryEngine()
    one, two = engine.node(), engine.node()
    engine.has_quorum = False     # nothing gets durable: `append` and `put` fail
    one.cut()                     # a partition: this node hears and changes nothing

Each node sees everything in the engine's order, a turn of the loop later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cloud.cluster.mqtt_fabric import (
    Conflict,
    FabricError,
    FabricFull,
    LogEntry,
    LogState,
    State,
)

__all__ = ["MemoryEngine", "MemoryFabric"]


class MemoryEngine:
    """What all nodes share."""

    def __init__(self) -> None:
        self.has_quorum = True
        self.log_bytes_max = 0  # no limit
        self.oldest_us = 0
        self.age_max_us = 0
        self.old_seq = 0  # up to here entries are older than that
        self.log: list[LogEntry] = []
        self.last_seq = 0
        self.states: dict[str, State] = {}
        self.writes: list[str] = []  # keys, in order
        self.nodes: list[MemoryFabric] = []
        self._ids: dict[str, int] = {}
        self._revisions: dict[str, int] = {}

    def node(self) -> MemoryFabric:
        """Return another node's fabric."""
        fabric = MemoryFabric(self)
        self.nodes.append(fabric)
        return fabric

    def expire_lease(self, instance: str) -> None:
        """Let an instance's lease run out."""
        self.change(f"n.{instance}", None)

    def log_bytes(self) -> int:
        """Return how large the log is."""
        return sum(len(entry.data) for entry in self.log)

    def append(self, subject: str, data: bytes, message_id: str) -> int:
        """Append an entry, or find the one with the same id."""
        if message_id in self._ids:
            return self._ids[message_id]
        self.last_seq += 1
        entry = LogEntry(self.last_seq, subject, data)
        self.log.append(entry)
        self._ids[message_id] = entry.seq
        for node in self.nodes:
            node.hear_entry(entry)
        return entry.seq

    def change(self, key: str, value: bytes | None) -> int:
        """Change a state."""
        kind = "r" if key[0] == "r" else "s"
        revision = self._revisions[kind] = self._revisions.get(kind, 0) + 1
        state = State(key, value, revision)
        self.writes.append(key)
        if value is None:
            self.states.pop(key, None)
        else:
            self.states[key] = state
        for node in self.nodes:
            node.hear_state(state)
        return revision

    def revision(self, key: str) -> int:
        """Return a state's revision, 0 for none."""
        state = self.states.get(key)
        return state.revision if state is not None else 0


class MemoryFabric:
    """One node's side of it."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.sent: list[str] = []  # subjects
        self.payload_bytes_max = 1 << 20
        self._engine = engine
        self._listening: dict[str, Callable[[bytes], None]] = {}
        self._on_state: Callable[[State], None] | None = None
        self._on_entry: Callable[[LogEntry], None] | None = None
        self._missed: list[LogEntry | State] = []
        self._is_cut = False
        self._stopped = False
        self._late: list[State] | None = None  # states that are on their way
        self.held_puts = 0  # that wait to be let on
        self.failed = 0  # calls that could not be done
        self.refused = 0  # entries that the log had no room for
        self._hold: tuple[str, asyncio.Event] | None = None
        self.dies_after_append = False  # after the next entry, before it hears that it is there

    @property
    def is_dead(self) -> bool:
        """True once it was killed, or died as it was told to."""
        return self._stopped

    def cut(self) -> None:
        """Part this node from everything."""
        self._is_cut = True

    def heal(self) -> None:
        """Join it again: it hears what it missed of the log and the states."""
        self._is_cut = False
        missed, self._missed = self._missed, []
        for one in missed:
            if isinstance(one, LogEntry):
                self.hear_entry(one)
            else:
                self.hear_state(one)

    def be_late(self, late: bool) -> None:
        """Keep back states until told otherwise, or until they are asked for."""
        kept, self._late = self._late or [], [] if late else None
        for state in kept:
            self.hear_state(state)

    def hold_puts(self, prefix: str) -> asyncio.Event:
        """Keep changes of states from the engine until the event returned is set."""
        let_on = asyncio.Event()
        self._hold = (prefix, let_on)
        return let_on

    def kill(self) -> None:
        """The process is gone: it hears and does nothing any more."""
        self._is_cut = self._stopped = True

    # -- Fabric -------------------------------------------------------------------------------

    def send(self, subject: str, data: bytes) -> bool:
        self.sent.append(subject)
        if self._is_cut:
            return False
        for node in self._engine.nodes:
            node.hear(subject, data)
        return True

    async def listen(self, subject: str, handler: Callable[[bytes], None]) -> None:
        self._listening[subject] = handler

    async def append(self, subject: str, data: bytes, message_id: str) -> int:
        await self._reach()
        engine = self._engine
        if 0 < engine.log_bytes_max < engine.log_bytes() + len(data):
            self.refused += 1
            raise FabricFull("no room")
        seq = self._engine.append(subject, data, message_id)
        if self.dies_after_append:
            self.kill()
            raise FabricError("dead")
        return seq

    async def log_end(self) -> int:
        await self._reach()
        return self._engine.last_seq

    async def log_state(self) -> LogState:
        await self._reach()
        engine = self._engine
        first = engine.log[0].seq if engine.log else engine.last_seq + 1
        return LogState(
            first,
            engine.last_seq,
            engine.log_bytes(),
            engine.log_bytes_max,
            engine.oldest_us,
            engine.age_max_us,
        )

    async def log_before(self, time_us: int) -> int:
        await self._reach()
        return self._engine.old_seq

    async def scan(
        self, subject: str, after: int, until: int, limit: int = 0
    ) -> Sequence[LogEntry]:
        await self._reach()
        log = self._engine.log
        found = [one for one in log if one.subject == subject and after < one.seq <= until]
        return found[:limit] if limit else found

    async def purge(self, subject: str, below: int) -> None:
        await self._reach()
        self._engine.log = [
            entry
            for entry in self._engine.log
            if entry.seq >= below or not _is_below(entry.subject, subject)
        ]

    async def put(
        self,
        key: str,
        value: bytes | None,
        revision: int | None,
        ttl_s: float = 0,  # leases run out when a test says so
    ) -> int:
        if self._hold is not None and key.startswith(self._hold[0]):
            self.held_puts += 1
            await self._hold[1].wait()
        await self._reach()
        if revision is not None and revision != self._engine.revision(key):
            raise Conflict(key)
        return self._engine.change(key, value)

    async def get(self, key: str) -> State | None:
        await self._reach()
        return self._engine.states.get(key)

    async def follow_states(self, on_state: Callable[[State], None]) -> None:
        for state in sorted(self._engine.states.values(), key=lambda one: one.revision):
            on_state(state)
        self._on_state = on_state

    async def catch_up(self, kind: str) -> None:
        await self._reach()
        self.be_late(False)
        await asyncio.sleep(0)

    async def follow_log(self, after: int, on_entry: Callable[[LogEntry], None]) -> None:
        for entry in self._engine.log:
            if entry.seq > after:
                on_entry(entry)
        self._on_entry = on_entry

    async def stop(self) -> None:
        self._stopped = True

    # -- from the engine ----------------------------------------------------------------------

    def hear(self, subject: str, data: bytes) -> None:
        """Take a core message."""
        handler = self._listening.get(subject)
        if handler is not None and not self._is_cut and not self._stopped:
            asyncio.get_running_loop().call_soon(handler, data)

    def hear_entry(self, entry: LogEntry) -> None:
        """Take an entry of the log, now or when healed."""
        if self._is_cut:
            self._missed.append(entry)
        elif self._on_entry is not None and not self._stopped:
            asyncio.get_running_loop().call_soon(self._on_entry, entry)

    def hear_state(self, state: State) -> None:
        """Take a state, now or when healed."""
        if self._is_cut:
            self._missed.append(state)
        elif self._late is not None:
            self._late.append(state)
        elif self._on_state is not None and not self._stopped:
            asyncio.get_running_loop().call_soon(self._on_state, state)

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self._is_cut or self._stopped or not self._engine.has_quorum:
            await asyncio.sleep(0.01)
            self.failed += 1
            raise FabricError("no quorum")


def _is_below(subject: str, wanted: str) -> bool:
    if wanted.endswith(">"):
        return subject.startswith(wanted[:-1])
    return subject == wanted
