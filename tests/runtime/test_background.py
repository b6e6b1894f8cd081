"""What goes on in the background has ended once it was stopped."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from runtime.background import Background


async def test_it_goes_on_until_it_is_stopped_and_may_begin_again() -> None:
    said: list[str] = []
    began = asyncio.Event()

    async def work() -> None:
        said.append("began")
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            said.append("ended")

    background = Background(work, "test")
    await background.stop()
    for _ in range(2):
        background.start()
        await began.wait()
        began.clear()
        await background.stop()
        await background.stop()
    assert said == ["began", "ended"] * 2


async def test_what_fails_is_logged_and_stopped_without_a_word() -> None:
    failed = asyncio.Event()

    async def work() -> None:
        failed.set()
        raise ValueError("of a bug")

    background = Background(work, "test")
    with capture_logs() as logs:
        background.start()
        await failed.wait()
        await background.stop()
    assert [(one["event"], one["work"]) for one in logs] == [("background_failed", "test")]
