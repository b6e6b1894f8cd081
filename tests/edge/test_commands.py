"""When the first readings of a process may go: the cloud has said what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from bridge.commands import Command, Hello, Welcome, open_message, seal_message
from bridge.runs import Run
from edge.command_store import CommandStore, CommandStoreError
from edge.commands import Commands
from edge.config import CommandsConfig
from edge.journal_schema import JournalError
from runtime.clock import ManualClock
from tests.kit.command_devices import Devices
from tests.kit.sites import until

EPOCH = 7


class Gateway:
    """Commands with a link that keeps hellos and a journal that notes what it is told."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.hellos: list[Callable[[int], None]] = []  # unanswered
        self.epoch = EPOCH
        self.runs: tuple[Run, ...] = ()
        self.last_seq = 3
        self.told: list[int] = []
        self.fault: JournalError | None = None
        self.was_told = asyncio.Event()
        self.store = CommandStore(path)
        self.commands = Commands(
            self.store,
            CommandsConfig(),
            self.clock,
            lambda: Hello(self.epoch, self.last_seq, self.runs),
            meet=self.meet,
        )

    def say(self, payload: bytes, answered: Callable[[int], None]) -> bool:
        assert isinstance(open_message(payload), Hello)
        self.hellos.append(answered)
        return True

    async def meet(self, welcome: Welcome) -> None:
        self.told.append(welcome.assigned)
        self.last_seq = max(self.last_seq, welcome.assigned)
        self.was_told.set()
        if self.fault is not None:
            raise self.fault

    async def greets(self) -> Callable[[int], None]:
        """Connect; return what answers the hello."""
        self.hellos.clear()
        self.commands.linked(self)
        async with asyncio.timeout(60):
            while not self.hellos:
                await asyncio.sleep(0)
        return self.hellos[0]

    async def ready(self) -> None:
        """Wait until readings may go."""
        async with asyncio.timeout(60):
            while not self.commands.ready():
                await asyncio.sleep(0)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway(tmp_path / "commands.db")
    await gateway.commands.start(Devices())
    yield gateway
    await gateway.commands.stop()


async def turns() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def welcome(held_seq: int, epoch: int = EPOCH) -> bytes:
    return seal_message(Welcome(epoch, held_seq))


async def test_readings_wait_for_the_clouds_word(gateway: Gateway) -> None:
    await gateway.greets()
    assert not gateway.commands.ready()
    gateway.commands.received(welcome(9))
    await gateway.ready()
    assert gateway.told == [9]


async def test_a_journal_that_two_gateways_go_on_with_is_told(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    await gateway.greets()
    gateway.commands.received(welcome(900))  # an older copy: it goes past that
    await gateway.ready()
    gateway.commands.unlinked()
    await gateway.greets()
    gateway.commands.received(welcome(gateway.last_seq))  # all is its own
    assert "journal_used_twice" not in capsys.readouterr().out
    gateway.commands.received(welcome(gateway.last_seq + 1))  # what it never gave out
    assert "journal_used_twice" in capsys.readouterr().out


async def test_nothing_goes_uncompared_however_long_the_cloud_is_silent(gateway: Gateway) -> None:
    for _ in range(3):
        answered = await gateway.greets()
        gateway.clock.advance(3600)
        assert not gateway.commands.ready()
        answered(0)
        gateway.commands.received(welcome(9, EPOCH + 1))  # of another journal
        gateway.clock.advance(3600)
        assert not gateway.commands.ready()
        assert gateway.commands.unheard()
        gateway.commands.unlinked()
    assert gateway.told == []


async def test_a_word_that_came_before_the_journal_parted_is_not_of_its_new_epoch(
    gateway: Gateway,
) -> None:
    await gateway.greets()
    gateway.commands.received(welcome(9))
    gateway.epoch = EPOCH + 1  # before the word was compared
    await turns()
    assert gateway.told == []
    assert not gateway.commands.ready()
    await until("hello is said anew", lambda: len(gateway.hellos) == 2)
    gateway.commands.received(welcome(7, EPOCH + 1))
    await gateway.ready()
    assert gateway.told == [7]


@pytest.mark.parametrize("code", [0, 0x83])
async def test_a_hello_whose_welcome_was_lost_or_refused_is_said_again(
    gateway: Gateway, code: int
) -> None:
    answered = await gateway.greets()
    gateway.hellos.clear()
    answered(code)
    gateway.clock.advance(4)
    assert not gateway.commands.ready()
    await turns()
    assert gateway.hellos == []
    gateway.clock.advance(2)
    assert not gateway.commands.ready()
    await until("it is said again", lambda: gateway.hellos)
    gateway.clock.advance(3600)  # not before it is answered
    assert not gateway.commands.ready()
    await turns()
    assert len(gateway.hellos) == 1
    gateway.commands.received(welcome(9))
    await gateway.ready()
    assert gateway.told == [9]


async def test_nothing_goes_while_the_journal_cannot_be_compared(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.commands._RETRY_S", 0.0)
    gateway.fault = JournalError(Path("journal.db"), 4, "the disk is full", "full")
    answered = await gateway.greets()
    answered(0)
    gateway.commands.received(welcome(9))
    async with asyncio.timeout(60):
        await gateway.was_told.wait()
    gateway.clock.advance(3600)
    assert not gateway.commands.ready()
    gateway.fault = None
    await gateway.ready()
    assert set(gateway.told) == {9}


async def test_commands_that_cannot_be_kept_hold_up_no_readings(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_command_id: str) -> None:
        raise CommandStoreError("the disk is full")

    monkeypatch.setattr("edge.commands._RETRY_S", 0.0)
    monkeypatch.setattr(gateway.store, "find", full)
    await gateway.greets()
    command = Command("c-1", "d1", "devices/d1/cmd", b"x", 1, b"", 60)
    gateway.commands.received(seal_message(command))
    gateway.commands.received(welcome(9))
    await gateway.ready()
    assert gateway.told == [9]
