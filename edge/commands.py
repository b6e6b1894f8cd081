"""Commands at the gateway: from the link into a device's session, and the outcome back.

Theory of operation. A command from the cloud is kept (command_store.py), then the cloud is told
`held`. It is offered to the device's session whenever that is connected, and leaves the session
only acknowledged. A session that lasts has it in the broker's session store before it is sent,
under its id; its acknowledgement goes there in one transaction with its removal, and stays until
it is noted here. So a restart finds of each command whether it is with a session, was acknowledged,
or was never sent, and goes on from there. The device's session is the one whose client id is the
device's, else any whose subscription matches the command's topic. Without such a session for
`wait_s` the outcome is `no such device`; with one that is away the command waits until it expires.

Invariants:
- `held` is said only of what is durable here; any other outcome only after it is durable here.
- At most `held_max` commands are kept: past it the cloud keeps what it sends, and sends it again.
- A command id that is known is never delivered anew, unless it was recalled and sent again.
- What a session that lasts has been sent is sent again only by that session, as the same packet.

What the device sees: its topic, payload and properties, what is left of its expiry, and the user
property `tidegate-command-id`. docs/commands.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable
from math import ceil
from typing import Protocol

import structlog

from bridge.commands import (
    DELIVERED,
    EXPIRED,
    HELD,
    NO_DEVICE,
    NO_EXPIRY,
    RECALLED,
    Command,
    Hello,
    HoldsCommands,
    Message,
    Outcome,
    Recall,
    Welcome,
    open_message,
    seal_message,
)
from bridge.errors import BatchError
from edge.command_store import CommandStore, CommandStoreError, HeldCommand, held_of
from edge.config import CommandsConfig
from edge.journal_schema import JournalError
from mqtt.broker.broker import Outgoing, Subscriber
from mqtt.errors import MqttError
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["CommandBroker", "CommandLink", "Commands"]

log = structlog.get_logger(component="commands")

_LOOK_S = 0.25  # between two looks for a device that is away
_REPORTS_MAX = 16  # on their way to the cloud at once
_NEVER_S = 1e10  # no clock is wrong by that much
_LOG_EVERY_S = 10.0
_TWICE_EVERY_S = 60.0
_RETRY_S = 1.0
_HELLO_AGAIN_S = 5.0  # after the answer to a hello that no welcome has come with
_WAITING_MAX = 1_000  # messages from the link not looked at yet


class CommandBroker(Protocol):
    """The part of the broker that commands need."""

    def subscribers(self, topic_name: str) -> list[Subscriber]:
        """Return the sessions a topic's messages go to."""
        ...

    def offer(
        self, client_id: str, outgoing: Outgoing, done: Callable[[bool], None], token: str
    ) -> bool:
        """Send to one connected client, and be told what became of it."""
        ...

    def resume_offers(self, follow: Callable[[str], Callable[[bool], None]]) -> dict[str, bool]:
        """Return the offers of earlier runs by token: True was acknowledged, False will be told."""
        ...

    def forget_offer(self, token: str) -> None:
        """Forget an offer: what became of it is noted."""
        ...


class CommandLink(Protocol):
    """The way to the cloud, while there is one."""

    def say(self, payload: bytes, answered: Callable[[int], None]) -> bool:
        """Publish on the gateway's control topic; `answered` gets the PUBACK's reason code.

        Returns:
            False when it cannot be sent now; `answered` is not called then, nor when the
            connection is lost before the answer.
        """
        ...


class ClockRepairing(Protocol):
    """Who corrects times: edge/clock_repair.py."""

    def linked(self, link: CommandLink, /) -> None:
        """A connection to the cloud is up."""
        ...

    def unlinked(self) -> None:
        """It is gone."""
        ...

    def welcomed(self, welcome: Welcome, asked_s: float, /) -> None:
        """The cloud has answered a hello said at `asked_s`."""
        ...


class Commands:
    """The commands of one gateway.

    Args:
        store: Where they last.
        config: Limits.
        clock: Time.
        hello: Returns what is said of the journal, first on each connection.
        repair: Told of connections, and of the time the cloud's welcome brings.
        meet: Told what the cloud knows of the journal, before anything is sent to it, and again
            when that changes.
    """

    def __init__(
        self,
        store: CommandStore,
        config: CommandsConfig,
        clock: Clock,
        hello: Callable[[], Hello],
        repair: ClockRepairing | None = None,
        meet: Callable[[Welcome], Awaitable[None]] | None = None,
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._hello = hello
        self._repair = repair
        self._meet = meet
        self._met_epoch: int | None = None  # of the journal, that it was compared in
        self._word: Welcome | None = None  # what the cloud knows of it, to be compared
        self._again_s: float | None = None  # when the hello is said again, unless that was heard
        self._hello_s = 0.0  # when the last hello was said,
        self._said_epoch: int | None = None  # and of which epoch
        self._broker: CommandBroker | None = None
        self._link: CommandLink | None = None
        self._hello_due = False
        self._held: dict[str, HeldCommand] = {}  # oldest first
        self._offered: set[str] = set()  # by id: in a session now
        self._absent_since_s: dict[str, float] = {}  # by id: no session matches
        self._unreported: dict[str, HeldCommand] = {}
        self._reporting: set[str] = set()
        self._strangers: set[str] = set()  # the cloud believes them here, and they are not
        self._inbox: deque[Message] = deque()
        self._done: deque[tuple[str, bool]] = deque()
        self._answers: deque[tuple[str, str, int]] = deque()  # id, state said, reason code
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self.counts: dict[str, int] = {}  # outcomes since the start

    # ---- life ------------------------------------------------------------------------------------

    async def start(self, broker: CommandBroker) -> None:
        """Begin to deliver what is held.

        Raises:
            CommandStoreError: the file cannot be used.
        """
        self._broker = broker
        for held in await self._store.open():
            if held.state == HELD:
                self._held[held.command_id] = held
            if not held.reported:
                self._unreported[held.command_id] = held
        for command_id, taken in broker.resume_offers(self._note).items():
            self._offered.add(command_id)
            if taken:
                self._done.append((command_id, True))
        self._task = asyncio.create_task(self._work(), name="commands")

    async def stop(self) -> None:
        """Note what is known and end; harmless when not started."""
        if self._task is not None:
            self._stopping = True
            self._wake.set()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._store.close()

    @property
    def held(self) -> int:
        """Commands that wait for their device."""
        return len(self._held)

    # ---- the link's side -------------------------------------------------------------------------

    def linked(self, link: CommandLink) -> None:
        """A connection to the cloud is up."""
        self._link = link
        self._hello_due = True
        self._again_s = None
        self._reporting.clear()
        if self._repair is not None:
            self._repair.linked(link)
        self._wake.set()

    def unlinked(self) -> None:
        """It is gone; what was said and not answered is said again."""
        self._link = None
        self._reporting.clear()
        self._strangers.clear()  # the cloud asks again
        if self._repair is not None:
            self._repair.unlinked()

    def ready(self) -> bool:
        """Return True once readings may go: the journal was compared with what the cloud holds."""
        epoch = self._hello().epoch
        if self._meet is None or self._met_epoch == epoch:
            return True
        if self._said_epoch != epoch and not self._hello_due:  # it parted from another meanwhile
            self._hello_due = True
            self._wake.set()
        if self._again_s is not None and self._clock.monotonic_s() >= self._again_s:
            self._again_s = None
            self._hello_due = True
            self._wake.set()
        return False

    def unheard(self) -> bool:
        """Return True while that waits for the cloud's word, and not for the journal."""
        return not self.ready() and self._word is None

    def disowned(self) -> None:
        """Hear that the cloud takes no more of what it was met for: it is asked anew."""
        self._met_epoch = None
        self._hello_due = True
        self._wake.set()

    def received(self, payload: bytes) -> bool:
        """Take what came down; False when it is none of ours."""
        # a map, its first key 0, whose value of 16 or more is a message of bridge/commands.py
        if len(payload) < 3 or payload[0] >> 5 != 5 or payload[1] != 0 or payload[2] < 16:
            return False
        try:
            message = open_message(payload)
        except BatchError as error:
            limited(log, "bad_message", _LOG_EVERY_S).warning("bad_message", error=str(error))
            return True
        if isinstance(message, Welcome):  # waits for no command: readings wait for it
            self._welcomed(message)
        elif len(self._inbox) < _WAITING_MAX:  # else the cloud sends it again
            self._inbox.append(message)
        self._wake.set()
        return True

    def _welcomed(self, welcome: Welcome) -> None:
        if self._repair is not None:
            self._repair.welcomed(welcome, self._hello_s)
        hello = self._hello()
        own = hello.runs[-1].run if hello.runs else 0
        if welcome.epoch != hello.epoch or welcome.run not in (0, own):
            return  # of before, or to another gateway that has this one's name
        if self._met_epoch != hello.epoch or welcome.fork is not None:
            self._word = welcome
            return
        last_seq = hello.last_seq
        if welcome.assigned > last_seq:  # compared once, and past it since
            limited(log, "twice", _TWICE_EVERY_S).error(
                "journal_used_twice", held_seq=welcome.assigned, last_seq=last_seq,
                hint="another gateway runs on a copy of this journal, and the cloud takes readings"
                " of one for those of the other: stop one of them and give it an empty data folder",
            )  # fmt: skip

    # ---- the loop --------------------------------------------------------------------------------

    async def _work(self) -> None:
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S if self._held else None):
                    await self._wake.wait()
            self._wake.clear()
            done = [await self._tried(step) for step in (self._compare, self._turn)]
            if not all(done):
                await asyncio.sleep(_RETRY_S)
                self._wake.set()
        with contextlib.suppress(sqlite3.Error, CommandStoreError):
            await self._note_done()

    async def _tried(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Return False when a step has to be tried again; it keeps no other from being made."""
        try:
            await step()
        except (sqlite3.Error, CommandStoreError) as error:
            limited(log, "commands", _LOG_EVERY_S).error("commands_failed", error=str(error))
        except JournalError as error:
            limited(log, "meet", _LOG_EVERY_S).error("journal_not_compared", error=str(error))
        except Exception:  # noqa: BLE001 - the task's root: commands go on
            limited(log, "commands_broke", _LOG_EVERY_S).exception("commands_broke")
        else:
            return True
        return False

    async def _compare(self) -> None:
        """Tell the journal what the cloud knows of it, once that is said."""
        word = self._word
        if self._meet is not None and word is not None:
            if word.epoch == self._hello().epoch:  # else the journal has parted since it came
                await self._meet(word)
                self._met_epoch = word.epoch
            if self._word is word:
                self._word = None

    async def _turn(self) -> None:
        if self._hello_due and self._link is not None:
            self._hello_s = self._clock.monotonic_s()
            hello = self._hello()
            self._said_epoch = hello.epoch
            self._hello_due = not self._link.say(seal_message(hello), self._heard)
        while self._inbox:
            await self._take(self._inbox[0])
            self._inbox.popleft()
        await self._note_done()
        for held in list(self._held.values()):
            await self._deliver(held)
        await self._note_answers()
        self._report()

    def _heard(self, _code: int) -> None:
        """The cloud has answered the hello, or cannot now: its word comes soon, or was lost."""
        self._again_s = self._clock.monotonic_s() + _HELLO_AGAIN_S

    async def _take(self, message: Message) -> None:
        if isinstance(message, Command):
            if self._config.enabled:  # else the cloud keeps it until it expires
                await self._take_command(message)
        elif isinstance(message, Recall):
            await self._recall(message.command_id)
        elif isinstance(message, HoldsCommands):
            for command_id in message.command_ids:
                await self._answer_for(command_id)

    async def _take_command(self, command: Command) -> None:
        known = self._held.get(command.command_id) or await self._store.find(command.command_id)
        if known is not None and known.state != RECALLED:
            if known.command_id not in self._unreported:  # the cloud has not heard it, it seems
                known.reported = 0
                self._unreported[known.command_id] = known
            return
        if len(self._held) >= self._config.held_max:
            limited(log, "full", _LOG_EVERY_S).warning("commands_full", held=len(self._held))
            return
        self._strangers.discard(command.command_id)
        clock = self._clock
        held = held_of(
            command,
            now_us=clock.wall_us(),
            boot_id=clock.boot_id(),
            monotonic_s=clock.monotonic_s(),
            expires_never_s=_NEVER_S,
        )
        await self._store.add(held)
        self._held[held.command_id] = held
        self._unreported[held.command_id] = held

    async def _answer_for(self, command_id: str) -> None:
        """Answer for a command that the cloud believes to be here, unless it is."""
        if command_id in self._held or command_id in self._unreported:
            return
        known = await self._store.find(command_id)
        if known is None:  # on another card, say: the cloud is to send it again
            self._strangers.add(command_id)
        else:
            known.reported = 0
            self._unreported[command_id] = known

    async def _recall(self, command_id: str) -> None:
        held = self._held.get(command_id)
        if held is not None and command_id not in self._offered:
            await self._finish(held, RECALLED, "")
            return
        if held is not None:
            return  # the device has it now, or soon: its outcome comes
        known = await self._store.find(command_id)
        if known is None:
            now_us = self._clock.wall_us()
            known = HeldCommand(command_id, "", "", b"", 1, b"", now_us, now_us, "", 0.0,
                                RECALLED, "never came", now_us)  # fmt: skip
            await self._store.add(known)
        known.reported = 0
        self._unreported[command_id] = known

    # ---- delivery --------------------------------------------------------------------------------

    async def _deliver(self, held: HeldCommand) -> None:
        """Offer a command to its device, or give it up when its time is over."""
        command_id = held.command_id
        if command_id in self._offered:
            return
        clock = self._clock
        now_s = clock.monotonic_s()
        if held.expired(clock.wall_us(), clock.boot_id(), now_s):
            await self._finish(held, EXPIRED, "the device did not come for it")
            return
        assert self._broker is not None
        try:
            sessions = self._broker.subscribers(held.topic)
        except MqttError as error:
            await self._finish(held, NO_DEVICE, f"not a topic here: {error}")
            return
        own = [one for one in sessions if one.client_id == held.device]
        sessions = own or sessions
        if not sessions:
            since_s = self._absent_since_s.setdefault(command_id, now_s)
            if now_s - since_s >= self._config.wait_s:
                await self._finish(held, NO_DEVICE, "no session here subscribes to its topic")
            return
        self._absent_since_s.pop(command_id, None)
        for one in sessions:
            if one.connected:
                qos = max(1, min(held.qos, one.qos))
                left_s = held.left_s(clock.wall_us(), clock.boot_id(), now_s)
                outgoing = Outgoing(
                    held.topic, held.payload, qos, properties=held.properties,
                    expiry_s=min(ceil(left_s), NO_EXPIRY - 1),
                )  # fmt: skip
                done = self._note(command_id)
                self._offered.add(command_id)
                if self._broker.offer(one.client_id, outgoing, done, command_id):
                    return
                self._offered.discard(command_id)

    def _note(self, command_id: str) -> Callable[[bool], None]:
        def done(taken: bool) -> None:
            self._done.append((command_id, taken))
            if taken:  # what was dropped, as too large for the client say, has time
                self._wake.set()

        return done

    async def _note_done(self) -> None:
        """Note what sessions said of what they were offered."""
        while self._done:
            command_id, taken = self._done[0]
            held = self._held.get(command_id)
            if held is not None and taken:
                await self._finish(held, DELIVERED, "")
            self._done.popleft()
            self._offered.discard(command_id)
            if taken:
                assert self._broker is not None
                self._broker.forget_offer(command_id)

    async def _finish(self, held: HeldCommand, state: str, detail: str) -> None:
        before = (held.state, held.detail, held.changed_us, held.reported)
        held.state, held.detail = state, detail
        held.changed_us, held.reported = self._clock.wall_us(), 0
        try:
            await self._store.save(held)
        except BaseException:
            held.state, held.detail, held.changed_us, held.reported = before
            raise
        self.counts[state] = self.counts.get(state, 0) + 1
        self._held.pop(held.command_id, None)
        self._absent_since_s.pop(held.command_id, None)
        self._unreported[held.command_id] = held

    # ---- reports ---------------------------------------------------------------------------------

    def _report(self) -> None:
        """Say outcomes that the cloud has not acknowledged, a few at a time."""
        for command_id, held in list(self._unreported.items()):
            if self._link is None or self._hello_due or len(self._reporting) >= _REPORTS_MAX:
                return
            if command_id in self._reporting:
                continue
            outcome = Outcome(command_id, held.state, held.detail, held.changed_us)
            if not self._link.say(seal_message(outcome), self._answer(command_id, held.state)):
                return
            self._reporting.add(command_id)
        self._disown()

    def _disown(self) -> None:
        """Say of commands that they are not here; the cloud sends them again."""
        for command_id in list(self._strangers):
            if self._link is None or self._hello_due or len(self._reporting) >= _REPORTS_MAX:
                return
            outcome = Outcome(command_id, RECALLED, "not here", self._clock.wall_us())
            if not self._link.say(seal_message(outcome), self._answer(command_id, RECALLED)):
                return
            self._strangers.discard(command_id)
            self._reporting.add(command_id)

    def _answer(self, command_id: str, state: str) -> Callable[[int], None]:
        def answered(code: int) -> None:
            self._answers.append((command_id, state, code))
            self._wake.set()

        return answered

    async def _note_answers(self) -> None:
        while self._answers:
            command_id, state, code = self._answers[0]
            held = self._unreported.get(command_id)
            if held is not None and held.state == state and not code & 0x80:
                held.reported = 1
                await self._store.save(held)
                del self._unreported[command_id]
                if not self._unreported:
                    await self._store.forget_old()
            self._answers.popleft()
            self._reporting.discard(command_id)
