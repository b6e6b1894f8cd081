"""What MQTT across nodes needs of the engine below it: messages, one log, one table of states.

`cloud/cluster/mqtt_nats.py` is the real one; `tests/kit/fabric.py` keeps all of it in memory.

Invariants:
- `send` is at most once and in order from one node to one subject, never waits, and costs nothing
  when nobody listens;
- an entry of the log has a number that only rises, and is never seen before it is durable;
- states of one kind (what is before the first dot) have one revision for all their keys together,
  and every node sees every change in that order;
- a call that raised `FabricError` may have been carried out all the same: whoever repeats it must
  use the same message id, or look what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

__all__ = ["Conflict", "Fabric", "FabricError", "FabricFull", "LogEntry", "LogState", "State"]


class FabricError(Exception):
    """The engine did not answer, or has no quorum; trying again is right. One line."""


class FabricFull(FabricError):  # noqa: N818 - a state, like queue.Full
    """There is no room in the log now; nothing was appended."""


class Conflict(Exception):  # noqa: N818 - an outcome, not a fault
    """The state has another revision than was expected: somebody else has written it."""


class LogEntry(NamedTuple):
    """One entry of the log."""

    seq: int
    subject: str
    data: bytes


class LogState(NamedTuple):
    """How large the log is, and what it takes."""

    first_seq: int  # more than `last_seq` when it is empty
    last_seq: int
    bytes: int
    bytes_max: int  # 0: no limit
    oldest_us: int  # wall clock of the first entry; 0: there is none
    age_max_us: int  # 0: no limit


class State(NamedTuple):
    """One key of the states; `value` is None when it has gone."""

    key: str
    value: bytes | None
    revision: int


class Fabric(Protocol):
    """The engine, as one node uses it. Subjects are its own words, without prefix."""

    @property
    def payload_bytes_max(self) -> int:
        """Most bytes of one message, entry or state."""
        ...

    def send(self, subject: str, data: bytes) -> bool:
        """Send a message to whoever listens now; False when it had to be dropped."""
        ...

    async def listen(self, subject: str, handler: Callable[[bytes], None]) -> None:
        """Hand on what is sent to a subject, on the loop, until `stop`; asked again, still once.

        Raises:
            FabricError: it is not known whether that has begun.
        """
        ...

    async def append(self, subject: str, data: bytes, message_id: str) -> int:
        """Append to the log; return the entry's number once it is durable.

        The same id within two minutes is the same entry. The engine itself removes nothing.

        Raises:
            FabricFull: there is no room.
            FabricError: the outcome is not known.
        """
        ...

    async def log_end(self) -> int:
        """Return the number of the log's last entry; raises FabricError."""
        ...

    async def log_state(self) -> LogState:
        """Return the log's size; raises FabricError."""
        ...

    async def log_before(self, time_us: int) -> int:
        """Return a number at and below which all entries are older; raises FabricError."""
        ...

    async def scan(
        self, subject: str, after: int, until: int, limit: int = 0
    ) -> Sequence[LogEntry]:
        """Return the entries of one subject in (after, until]; raises FabricError.

        With a limit only so many, if there are so many.
        """
        ...

    async def purge(self, subject: str, below: int) -> None:
        """Forget the entries of a subject, `>` for any rest, with smaller numbers.

        Raises:
            FabricError: some may be left.
        """
        ...

    async def put(
        self, key: str, value: bytes | None, revision: int | None, ttl_s: float = 0
    ) -> int:
        """Set a state, or remove it; return its new revision once that is durable.

        Args:
            key: Which.
            value: None removes it.
            revision: What it must have now, 0 for not being there; None: whatever it is.
            ttl_s: After this time it goes by itself; 0: never.

        Raises:
            Conflict: it has another revision; nothing was changed.
            FabricError: the outcome is not known.
        """
        ...

    async def get(self, key: str) -> State | None:
        """Return a state as its leader has it, None when there is none; raises FabricError."""
        ...

    async def follow_states(self, on_state: Callable[[State], None]) -> None:
        """Hand on every state there is, return, and hand on every change until `stop`."""
        ...

    async def catch_up(self, kind: str) -> None:
        """Return when every state of a kind that was durable before this call was handed on.

        Raises:
            FabricError: the engine cannot say what there is.
        """
        ...

    async def follow_log(self, after: int, on_entry: Callable[[LogEntry], None]) -> None:
        """Hand on the entries behind a number, in order, none left out, until `stop`."""
        ...

    async def stop(self) -> None:
        """Hand on nothing more; what waits in `append` and `put` may fail."""
        ...
