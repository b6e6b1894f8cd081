"""Commands on the link: what goes down to a gateway and what it says of it (link-format.md 9).

Down, on `tidegate/v1/down/{gateway}`: a command, the recall of one, a welcome, what the cloud
believes to be there. Up, on
`tidegate/v1/ctl/{gateway}`: a hello, the outcome of a command. Each message is one CBOR map of the
envelope's subset, every field bounded before it is used. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeAlias

import cbor2

from bridge.cbor import read_map
from bridge.errors import BatchError
from bridge.runs import RUNS_MAX, Fork, Origin, Run

__all__ = [
    "CTL_PREFIX",
    "DELIVERED",
    "DOWN_PREFIX",
    "EXPIRED",
    "FINAL",
    "HELD",
    "HELD_IDS_MAX",
    "ID_BYTES_MAX",
    "MESSAGE_BYTES_MAX",
    "NO_DEVICE",
    "NO_EXPIRY",
    "RECALLED",
    "Command",
    "Correction",
    "Hello",
    "HoldsCommands",
    "Message",
    "Outcome",
    "Recall",
    "Welcome",
    "open_message",
    "seal_message",
]

DOWN_PREFIX: Final = "tidegate/v1/down/"
CTL_PREFIX: Final = "tidegate/v1/ctl/"
ID_BYTES_MAX: Final = 128
MESSAGE_BYTES_MAX: Final = 1 << 20
HELD_IDS_MAX: Final = 256
NO_EXPIRY: Final = 0xFFFFFFFF  # seconds left of a command that does not expire
_TEXT_BYTES_MAX: Final = 0xFFFF
_EPOCH_MAX: Final = (1 << 64) - 1
_SEQ_MAX: Final = (1 << 63) - 1
_TIME_US_MAX: Final = 1 << 60  # some 36,000 years

# what a gateway, or the cloud for it, says of a command; all but `held` are final there
HELD: Final = "held"  # durable at the gateway
DELIVERED: Final = "delivered"
EXPIRED: Final = "expired"
NO_DEVICE: Final = "no such device"
RECALLED: Final = "recalled"  # taken back before the device had it
FINAL: Final = frozenset((DELIVERED, EXPIRED, NO_DEVICE))


class _Kind(IntEnum):
    """What a control message is; those below 16 are of bridge/link_pacing.py."""

    COMMAND = 16
    RECALL = 17
    WELCOME = 18
    HELLO = 19
    OUTCOME = 20
    CORRECTION = 21
    HOLDS = 22


@dataclass(slots=True, frozen=True)
class Command:
    """A message for a device, on its way down."""

    command_id: str  # names it everywhere: a command that comes twice is one command
    device: str
    topic: str
    payload: bytes
    qos: int  # 1 or 2
    properties: bytes  # MQTT 5 block as published, without expiry
    left_s: int  # until it expires, counted from the sending; NO_EXPIRY = never


@dataclass(slots=True, frozen=True)
class Recall:
    """The gateway is not to deliver a command any more: another one has it."""

    command_id: str


@dataclass(slots=True, frozen=True)
class Welcome:
    """What the cloud knows of a gateway's journal, in answer to its hello."""

    epoch: int
    assigned: int  # the highest seq of that epoch the cloud has ever heard of
    time_us: int = 0  # wall clock of the cloud; 0 when it does not say
    run: int = 0  # whose hello this answers; 0: the cloud does not tell runs apart
    fork: Fork | None = None  # where that run has to part; None: it may go on


@dataclass(slots=True, frozen=True)
class HoldsCommands:
    """Commands that the gateway has said it holds: it answers for those it does not know.

    So a gateway with another card, or one put back from a backup, gets them again.
    """

    command_ids: tuple[str, ...]  # 1 to HELD_IDS_MAX


@dataclass(slots=True, frozen=True)
class Hello:
    """A gateway is ready for commands."""

    epoch: int
    last_seq: int
    runs: tuple[Run, ...] = ()  # its history in this epoch, its own last; () when it has none
    origin: Origin | None = None  # None: the epoch is not a fork


@dataclass(slots=True, frozen=True)
class Outcome:
    """What became of a command at a gateway."""

    command_id: str
    state: str  # HELD, DELIVERED, EXPIRED, NO_DEVICE or RECALLED
    detail: str
    time_us: int  # by the gateway's clock


@dataclass(slots=True, frozen=True)
class Correction:
    """The clock was wrong when these readings were taken."""

    epoch: int
    first_seq: int
    last_seq: int
    delta_us: int  # to be added to their times
    uncertainty_us: int  # of the times that result


Message: TypeAlias = Command | Recall | Welcome | HoldsCommands | Hello | Outcome | Correction
_STATES = (HELD, DELIVERED, EXPIRED, NO_DEVICE, RECALLED)


def seal_message(message: Message) -> bytes:
    """Return a message as bytes."""
    fields: dict[int, Any]
    if isinstance(message, Command):
        fields = {
            0: int(_Kind.COMMAND),
            1: message.command_id,
            2: message.device,
            3: message.topic,
            4: message.payload,
            5: message.qos,
            6: message.properties,
            7: message.left_s,
        }
    elif isinstance(message, Recall):
        fields = {0: int(_Kind.RECALL), 1: message.command_id}
    elif isinstance(message, HoldsCommands):
        fields = {0: int(_Kind.HOLDS), 1: list(message.command_ids)}
    elif isinstance(message, Welcome):
        fields = {0: int(_Kind.WELCOME), 1: message.epoch, 2: message.assigned}
        if message.time_us > 0:
            fields[3] = message.time_us
        if message.run:
            fields[4] = message.run
        if message.fork is not None:
            fields[5] = [message.fork.after_seq, message.fork.epoch]
    elif isinstance(message, Correction):
        zigzag = message.delta_us * 2 if message.delta_us >= 0 else -2 * message.delta_us - 1
        fields = {
            0: int(_Kind.CORRECTION),
            1: message.epoch,
            2: message.first_seq,
            3: message.last_seq,
            4: zigzag,
            5: message.uncertainty_us,
        }
    elif isinstance(message, Hello):
        fields = {0: int(_Kind.HELLO), 1: message.epoch, 2: message.last_seq}
        if message.runs:
            fields[3] = [number for one in message.runs for number in one]
        if message.origin is not None:
            fields[4] = [message.origin.after_seq, message.origin.epoch]
    else:
        state = _STATES.index(message.state)
        fields = {
            0: int(_Kind.OUTCOME),
            1: message.command_id,
            2: state,
            3: message.detail,
            4: max(0, message.time_us),
        }
    return cbor2.dumps(fields)


def open_message(data: bytes) -> Message:
    """Return what a message says; keys it does not know are ignored.

    Raises:
        BatchError: "too-large", "malformed", "bounds", or "extension" for a kind not known here.
    """
    if not data:
        raise BatchError("malformed", "an empty message")
    if len(data) > MESSAGE_BYTES_MAX:
        raise BatchError("too-large", f"{len(data)} bytes where {MESSAGE_BYTES_MAX} are accepted")
    fields = read_map(data)
    kind = _number(fields, 0, 0xFF)
    if kind == _Kind.COMMAND:
        return Command(
            _text(fields, 1, ID_BYTES_MAX),
            _text(fields, 2, _TEXT_BYTES_MAX),
            _text(fields, 3, _TEXT_BYTES_MAX),
            _bytes(fields, 4),
            max(1, _number(fields, 5, 2)),
            _bytes(fields, 6),
            _number(fields, 7, NO_EXPIRY),
        )
    if kind == _Kind.RECALL:
        return Recall(_text(fields, 1, ID_BYTES_MAX))
    if kind == _Kind.WELCOME:
        time_us = _number(fields, 3, _TIME_US_MAX) if 3 in fields else 0
        run = _number(fields, 4, _SEQ_MAX) if 4 in fields else 0
        fork = Fork(*_numbers(fields, 5, 2, (_SEQ_MAX, _EPOCH_MAX))) if 5 in fields else None
        epoch, assigned = _number(fields, 1, _EPOCH_MAX), _number(fields, 2, _SEQ_MAX)
        return Welcome(epoch, assigned, time_us, run, fork)
    if kind == _Kind.HELLO:
        return _hello(fields)
    if kind == _Kind.OUTCOME:
        return Outcome(
            _text(fields, 1, ID_BYTES_MAX),
            _STATES[_number(fields, 2, len(_STATES) - 1)],
            _text(fields, 3, _TEXT_BYTES_MAX, least=0),
            _number(fields, 4, _SEQ_MAX),
        )
    if kind == _Kind.CORRECTION:
        return _correction(fields)
    if kind == _Kind.HOLDS:
        return HoldsCommands(_ids(fields))
    raise BatchError("extension", f"a message of kind {kind} is not known here")


def _hello(fields: dict[int, Any]) -> Hello:
    runs: tuple[Run, ...] = ()
    if 3 in fields:
        numbers = _numbers(fields, 3, 2 * RUNS_MAX, (_SEQ_MAX, _SEQ_MAX))
        runs = tuple(map(Run, numbers[::2], numbers[1::2]))
        afters = [one.after_seq for one in runs]
        if not all(one.run for one in runs) or afters != sorted(afters):
            raise BatchError("bounds", "runs without an id, or not in order")
    origin = Origin(*_numbers(fields, 4, 2, (_SEQ_MAX, _EPOCH_MAX))) if 4 in fields else None
    return Hello(_number(fields, 1, _EPOCH_MAX), _number(fields, 2, _SEQ_MAX), runs, origin)


def _numbers(fields: dict[int, Any], key: int, count_max: int, most: tuple[int, int]) -> list[int]:
    """Return an array of pairs of numbers: at least one pair, each number within its bound."""
    value = fields[key]
    if not isinstance(value, list):
        raise BatchError("malformed", f"field {key} is no array")
    if not 0 < len(value) <= count_max or len(value) % 2:
        raise BatchError("bounds", f"field {key} has {len(value)} numbers")
    return [_number({key: one}, key, most[at % 2]) for at, one in enumerate(value)]


def _correction(fields: dict[int, Any]) -> Correction:
    first_seq, last_seq = _number(fields, 2, _SEQ_MAX), _number(fields, 3, _SEQ_MAX)
    zigzag = _number(fields, 4, 2 * _TIME_US_MAX)
    if not 0 < first_seq <= last_seq:
        raise BatchError("bounds", f"a correction of seq {first_seq} to {last_seq}")
    delta_us = -(zigzag + 1) // 2 if zigzag & 1 else zigzag // 2
    epoch, uncertainty_us = _number(fields, 1, _EPOCH_MAX), _number(fields, 5, _TIME_US_MAX)
    return Correction(epoch, first_seq, last_seq, delta_us, uncertainty_us)


def _ids(fields: dict[int, Any]) -> tuple[str, ...]:
    value = fields.get(1)
    if not isinstance(value, list):
        raise BatchError("malformed", "field 1 is missing or no array")
    if not 0 < len(value) <= HELD_IDS_MAX:
        raise BatchError("bounds", f"{len(value)} ids where 1 to {HELD_IDS_MAX} are accepted")
    return tuple(_text({1: one}, 1, ID_BYTES_MAX) for one in value)


def _number(fields: dict[int, Any], key: int, most: int) -> int:
    value = fields.get(key)
    if type(value) is not int:
        raise BatchError("malformed", f"field {key} is missing or no number")
    if value > most:
        raise BatchError("bounds", f"field {key}: {value} is past {most}")
    return value


def _text(fields: dict[int, Any], key: int, bytes_max: int, least: int = 1) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise BatchError("malformed", f"field {key} is missing or no text")
    if not least <= len(value.encode()) <= bytes_max:
        raise BatchError("bounds", f"field {key} is empty or over {bytes_max} bytes")
    return value


def _bytes(fields: dict[int, Any], key: int) -> bytes:
    value = fields.get(key)
    if not isinstance(value, bytes):
        raise BatchError("malformed", f"field {key} is missing or no byte string")
    return value
