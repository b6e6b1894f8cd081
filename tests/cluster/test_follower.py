"""A follower's judgement of a stream that says it ends before what was read from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cloud.cluster import follower
from cloud.cluster.connection import Unanswered
from cloud.cluster.follower import Follower


class Servers:
    """A stream of ten messages, all of them gone; leaders that answer what they are told to."""

    patience_s = 60.0

    def __init__(self) -> None:
        self.last = 10
        self.first: Callable[[], int] = lambda: 1
        self.created = "2026-11-21T00:00:00Z"
        self.asked = 0

    async def subscribe(self, subject: str, callback: Callable[..., Any]) -> None:
        return None

    async def flush(self) -> None:
        pass

    def on_line(self, callback: Callable[[bool], None]) -> None:
        pass

    async def direct_get(self, stream: str, asked: dict[str, Any]) -> list[Any]:
        return []

    async def api(self, path: str, body: Any = None) -> dict[str, Any]:
        if path.startswith("STREAM.MSG.GET"):
            raise follower.ApiError(404, 10037, "no message found")
        self.asked += 1
        state = {"first_seq": self.first(), "last_seq": self.last}
        return {"config": {}, "created": self.created, "state": state}

    async def until_asked(self, more: int) -> None:
        wanted = self.asked + more
        async with asyncio.timeout(60):
            while self.asked < wanted:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("change", ["lags", "stays behind", "replaced"])
async def test_a_leader_that_answers_from_the_past_is_not_a_stream_that_went_back(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a partition: a new leader has not applied all that was committed before it led."""
    monkeypatch.setattr(follower, "_BEHIND_S", 0.2 if change == "stays behind" else 1e6)
    servers: Any = Servers()
    altered: list[str] = []
    one = Follower(servers, "S", "live", lambda _message: None, poll_s=0.001,
                   altered=altered.append)  # fmt: skip
    await one.start()
    assert one.next_seq == 11
    servers.last = 6
    if change == "replaced":
        servers.created = "2026-11-21T09:00:00Z"
    if change == "lags":
        await servers.until_asked(20)
        servers.last = 12
        await servers.until_asked(3)
        assert one.next_seq == 13
        assert not altered
    else:
        async with asyncio.timeout(60):
            while not altered:
                await asyncio.sleep(0.001)
        assert (
            altered[0] == "S: its last sequence went back from 10 to 6: it was replaced or restored"
        )
    await one.stop()


async def test_one_that_was_made_again_and_went_on_is_judged_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follower, "_BEHIND_S", 1e6)
    servers: Any = Servers()
    altered: list[str] = []
    one = Follower(servers, "S", "live", lambda _message: None, poll_s=0.001,
                   altered=altered.append)  # fmt: skip
    await one.start()
    servers.created = "2026-11-21T09:00:00Z"
    servers.last = 20
    async with asyncio.timeout(60):
        while one.next_seq < 21:
            await asyncio.sleep(0.001)
    await servers.until_asked(3)
    servers.last = 15  # a leader that answers from the past
    await servers.until_asked(20)
    assert not altered
    await one.stop()


async def test_what_a_look_was_behind_of_is_not_taken_for_purged() -> None:
    """What was replaced while it was read may lie past the end that the look saw."""
    servers: Any = Servers()
    began: list[int] = []
    one = Follower(servers, "S", "live", lambda _message: None, poll_s=0.001,
                   begins=began.append)  # fmt: skip
    await one.start()
    servers.first = lambda: 11 if one.next_seq > servers.last else 12
    servers.last = 12
    async with asyncio.timeout(60):
        while 11 not in began:
            await asyncio.sleep(0.001)
    assert one.next_seq == 13
    assert 12 not in began
    await one.stop()


class Halting(Servers):
    """Answers a question with one message, and the next not at all."""

    patience_s = 0.0

    def __init__(self, stops_at: int) -> None:
        super().__init__()
        self._halts = False
        self._stops_at = stops_at

    async def direct_get(self, stream: str, asked: dict[str, Any]) -> list[Any]:
        self._halts = not self._halts
        if not self._halts or asked["seq"] >= self._stops_at:
            raise Unanswered("no more answers in 2 s")
        return [SimpleNamespace(data=b"", headers={"Nats-Sequence": str(asked["seq"])})]


@pytest.mark.parametrize("stops_at", [5, 99])
async def test_a_long_stream_is_read_to_its_end_as_long_as_it_gets_on(
    stops_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_RETRY_S", 0.001)
    servers: Any = Halting(stops_at)
    read: list[int] = []
    one = Follower(servers, "S", "live", lambda message: read.append(message.seq))
    try:
        if stops_at < 99:
            with pytest.raises(Unanswered):
                await one.start()
            assert read == [1, 2, 3, 4]
        else:
            await one.start()
            assert read == list(range(1, 11))
    finally:
        await one.stop()


async def test_what_a_stream_says_of_itself_is_known_before_sequences_are_passed_over() -> None:
    """Its metadata may say why nothing is there: it was made again, and goes on further on."""
    servers: Any = Servers()
    said: list[int] = []
    one = Follower(
        servers, "S", "live", lambda _message: None, described=lambda _: said.append(one.next_seq)
    )
    try:
        await one.start()
        assert one.next_seq == 11
        assert said[:2] == [1, 1]  # at the start, and once more before it went on
    finally:
        await one.stop()
