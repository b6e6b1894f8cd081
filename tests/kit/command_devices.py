"""Commands of one gateway, and its devices as they see them: sessions, offers, a session store.

No broker: what a test wants to happen happens. `LASTING` has a session that outlives its gateway's
process, with QoS 2; sessions of the others end with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edge.commands import Commands
from mqtt.broker.broker import Outgoing, Subscriber

__all__ = ["LASTING", "CountedCommands", "Devices"]

LASTING = "d1"


class CountedCommands(Commands):
    """Commands that a test can wait for.

    Attributes:
        turns: How often they have looked at everything since they were started.
    """

    turns = 0

    async def _turn(self) -> None:
        await super()._turn()
        self.turns += 1

    async def look(self) -> None:
        """Let them look at everything once."""
        before = self.turns
        async with asyncio.timeout(60):
            while self.turns == before:
                self._wake.set()
                await asyncio.sleep(0)


class Devices:
    """The broker as commands see it: sessions, some away, and what they were offered."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.here: set[str] = set()
        self.offered: dict[str, list[tuple[str, Callable[[bool], None]]]] = {}
        self.kept: dict[str, bool] = {}  # the session store: tokens, and whether they were taken

    def subscribers(self, topic_name: str) -> list[Subscriber]:
        device = topic_name.split("/")[1]
        return [Subscriber(device, device in self.here, 2)] if device in self.known else []

    def offer(
        self, client_id: str, outgoing: Outgoing, done: Callable[[bool], None], token: str
    ) -> bool:
        if client_id not in self.here:
            return False
        assert token == outgoing.payload.decode()
        self.offered.setdefault(client_id, []).append((token, done))
        if client_id == LASTING:
            assert token not in self.kept, "one packet a command"
            self.kept[token] = False
        return True

    def resume_offers(self, follow: Callable[[str], Callable[[bool], None]]) -> dict[str, bool]:
        waiting = [token for token, taken in self.kept.items() if not taken]
        if waiting:
            self.offered[LASTING] = [(token, follow(token)) for token in waiting]
        return dict(self.kept)

    def forget_offer(self, token: str) -> None:
        self.kept.pop(token, None)

    def take(self, client_id: str, *, stored: bool = True) -> list[str]:
        """A client acknowledges what it was offered; `stored`: the session store has that."""
        taken = self.offered.pop(client_id, [])
        for token, done in taken:
            if stored and token in self.kept:
                self.kept[token] = True
            done(True)
        return [token for token, _ in taken]

    def end(self, client_id: str) -> None:
        """A session ends with what it was offered."""
        for token, done in self.offered.pop(client_id, []):
            self.kept.pop(token, None)
            done(False)
