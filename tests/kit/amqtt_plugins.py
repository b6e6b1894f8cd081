"""amqtt plugins of a test's own: they count, wait, fail and remember what they were asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, ClassVar

from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin

__all__ = ["RecordingAuth", "SlowTopics"]


class RecordingAuth(BaseAuthPlugin):
    """Lets in who says "open"; has no opinion of who has no name; remembers everybody."""

    seen: ClassVar[list[Any]] = []

    async def authenticate(self, *, session: Any) -> bool | None:
        """Answer."""
        self.seen.append(session)
        await asyncio.sleep(0)
        if session.username is None:
            return None
        return session.password == self.config.word

    @dataclass
    class Config:
        """What it is configured with."""

        word: str = "open"


class SlowTopics(BaseTopicPlugin):
    """Allows what is configured, when the test lets it answer; counts how often it is asked."""

    asked: ClassVar[list[tuple[str, str, str]]] = []
    gate: ClassVar[asyncio.Event | None] = None
    fails: ClassVar[bool] = False

    async def topic_filtering(
        self, *, session: Any = None, topic: str | None = None, action: Any = None
    ) -> bool | None:
        """Answer."""
        self.asked.append((session.client_id, str(action.value), topic or ""))
        if SlowTopics.gate is not None:
            await SlowTopics.gate.wait()
        if SlowTopics.fails:
            raise RuntimeError("the directory is away")
        return any(str(topic).startswith(prefix) for prefix in self.config.prefixes)

    @dataclass
    class Config:
        """What it is configured with."""

        prefixes: list[str] = field(default_factory=list)
