"""Services start in order, stop in reverse, and one that fails does not keep the others up."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from runtime.service import StartError, run, running, stop_on_signals


class Recorder:
    def __init__(self, name: str, diary: list[str], *, fails: str = "") -> None:
        self.name, self.diary, self.fails = name, diary, fails

    async def start(self) -> None:
        self.diary.append(f"start {self.name}")
        if self.fails == "start":
            raise StartError("port 1883 is in use")

    async def stop(self) -> None:
        self.diary.append(f"stop {self.name}")
        if self.fails == "stop":
            raise RuntimeError("broken")
        if self.fails == "hang":
            await asyncio.Event().wait()


async def nothing() -> None:
    return None


async def test_stops_in_reverse_order() -> None:
    diary: list[str] = []
    await running([Recorder("a", diary), Recorder("b", diary)], nothing)
    assert diary == ["start a", "start b", "stop b", "stop a"]


async def test_a_failed_start_stops_what_was_started() -> None:
    diary: list[str] = []
    with pytest.raises(StartError):
        await running([Recorder("a", diary), Recorder("b", diary, fails="start")], nothing)
    assert diary == ["start a", "start b", "stop b", "stop a"]


@pytest.mark.parametrize("fails", ["stop", "hang"])
async def test_one_that_cannot_stop_does_not_keep_the_others(fails: str) -> None:
    diary: list[str] = []
    services = [Recorder("a", diary), Recorder("b", diary, fails=fails)]
    await running(services, nothing, timeout_s=0.05)
    assert diary[-2:] == ["stop b", "stop a"]


def test_a_signal_asks_for_the_stop() -> None:
    async def main() -> int:
        stop = stop_on_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        return 7

    assert run(main()) == 7
