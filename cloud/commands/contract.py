"""What a command is at the cloud, and what keeps commands: a file of one node, or the cluster.

States: `waiting` (not at a gateway), `sent` (to one that has not said that it has it), `held`
(durable at one), then for good `delivered`, `expired` or `no such device`. `told` is False until
the outcome was published. docs/commands.md.

Invariants of a store:
- what `add` and `save` returned is durable; a command is there before its publisher is answered;
- `save` changes a command only if nobody has since it was read: of two nodes one is told no.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "SENT",
    "WAITING",
    "CommandBody",
    "CommandChanged",
    "CommandRefused",
    "CommandRow",
    "CommandStore",
    "CommandWatcher",
]

WAITING = "waiting"
SENT = "sent"


class CommandRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A command that is not taken; one line. `code` is the reason code that says so."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class CommandChanged(Exception):  # noqa: N818 - an outcome, like KeyError
    """Another node has changed the command since it was read: nothing was written."""


@dataclass(slots=True, frozen=True)
class CommandBody:
    """What a device gets: written once, read when it is sent."""

    payload: bytes
    properties: bytes  # MQTT 5 block as published, without expiry


@dataclass(slots=True, frozen=True)
class CommandRow:
    """One command, without its body."""

    command_id: str
    device: str
    topic: str
    qos: int
    payload_bytes: int
    created_us: int
    expires_us: int
    state: str
    gateway: str  # where it is or is meant to go; "" = nobody has looked yet
    detail: str
    changed_us: int
    response_topic: str  # where the publisher wants the outcome; "" = nowhere else
    told: bool = False
    revision: int = 0  # of the store; 0 where there is one writer


class CommandWatcher(Protocol):
    """Hears what other nodes do; a store with one writer has nothing to say."""

    def row_changed(self, row: CommandRow) -> None:
        """A command is new, or stands otherwise than before."""
        ...

    def row_gone(self, command_id: str) -> None:
        """A command is forgotten."""
        ...

    def recall_changed(self, gateway: str, command_id: str, *, there: bool) -> None:
        """A recall is to be sent, or was answered."""
        ...


class CommandStore(Protocol):
    """Commands, recalls, and which gateway carries which device. Raises DatabaseError."""

    async def open(self, stream_epoch: int) -> None:
        """Make ready; called once, before anything else."""
        ...

    async def watch(self, watcher: CommandWatcher) -> None:
        """Tell `watcher` from here on what others change, all that is there first."""
        ...

    async def close(self) -> None:
        """Release everything; harmless when closed already."""
        ...

    async def add(
        self, rows: Sequence[tuple[CommandRow, CommandBody]]
    ) -> Sequence[tuple[CommandRow, bool]]:
        """Keep commands; return each as it is there, and whether it is new.

        Raises:
            CommandRefused: there is no more room.
        """
        ...

    async def save(self, row: CommandRow, recall: tuple[str, str] | None = None) -> CommandRow:
        """Keep the present state of a command, and before it a recall (gateway, id).

        Returns:
            The row as it is to be saved next time.

        Raises:
            CommandChanged: it is not as `row.revision` says.
        """
        ...

    async def body(self, row: CommandRow) -> CommandBody | None:
        """Return what the device gets; None when it is not there any more."""
        ...

    async def find(self, command_id: str) -> CommandRow | None:
        """Return one command as it is now."""
        ...

    async def unfinished(self) -> Sequence[CommandRow]:
        """Return commands without an outcome, and with one not told yet, oldest first."""
        ...

    async def newest(
        self, device: str | None, state: str | None, limit: int
    ) -> Sequence[CommandRow]:
        """Return commands, the newest first."""
        ...

    async def forget(self, before_us: int) -> None:
        """Forget outcomes from before a time that were told."""
        ...

    async def recall(self, gateway: str, command_id: str) -> None:
        """Keep a recall until it is answered."""
        ...

    async def recalls(self) -> Collection[tuple[str, str]]:
        """Return (gateway, id) of recalls not answered."""
        ...

    async def recalled(self, gateway: str, command_id: str) -> None:
        """Forget a recall: the gateway has answered it."""
        ...

    def is_node(self, gateway: str) -> bool:
        """Return True for a node of the cloud: its devices are connected to the cloud itself."""
        ...

    async def carriers(self, partitions: Collection[int]) -> dict[str, str]:
        """Return the gateway that last carried each device of some partitions."""
        ...

    async def carrier(self, device: str) -> str | None:
        """Return the gateway that last carried a device."""
        ...

    async def cursors(self) -> Mapping[int, int] | None:
        """Return how far devices were followed; None when the stream is to keep that."""
        ...

    async def follow(self, carriers: Mapping[str, str], cursors: Mapping[int, int]) -> None:
        """Keep who carries which device, with the cursors, as one.

        Raises:
            CommandChanged: another node follows some of these devices by now.
        """
        ...
