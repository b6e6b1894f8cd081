"""What gateways say of their journals, answered: those of many gateways at once.

A hello may wait for the stream (a gateway's new run is an entry of it), and after a power cut in a
region a thousand come in the same second: none waits for another's, nor does a command.

Invariants:
- A hello is acknowledged once its answer was sent; until then it is tried again.
- Of one gateway they are answered one after the other, in their order.

docs/commands.md, docs/ledger.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from bridge.commands import Hello, Welcome
from cloud.commands.dispatch import Dispatch
from cloud.database import DatabaseError
from cloud.parts import CloudNode
from cloud.stream.contract import StreamError
from runtime.logs import limited

__all__ = ["Hellos"]

log = structlog.get_logger(component="commands")

_AT_ONCE = 64
_RETRY_S = 0.5
_LOG_EVERY_S = 10.0


class Hellos:
    """The hellos of one node's gateways.

    Args:
        node: The node.
        dispatch: Sends the answers, and what a gateway lacks after them.
    """

    def __init__(self, node: CloudNode, dispatch: Dispatch) -> None:
        self._node = node
        self._dispatch = dispatch
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._last: dict[str, asyncio.Task[None]] = {}  # by gateway
        self._stopping = False

    def take(
        self, said: Sequence[tuple[str, Hello]], heard_us: int, answered: Callable[[], None]
    ) -> None:
        """Answer hellos of one client, as they were heard then; `answered` is called after."""
        gateway = said[0][0]
        work = self._answer(said, heard_us, answered, self._last.get(gateway))
        task = self._last[gateway] = asyncio.create_task(work, name=f"hello-{gateway}")
        task.add_done_callback(lambda ended: self._ended(gateway, ended))

    async def stop(self) -> None:
        """End what is under way; what cannot be answered now stays without an answer."""
        self._stopping = True
        await asyncio.gather(*self._last.values(), return_exceptions=True)

    def _ended(self, gateway: str, task: asyncio.Task[None]) -> None:
        if self._last.get(gateway) is task:
            del self._last[gateway]

    async def _answer(
        self,
        said: Sequence[tuple[str, Hello]],
        heard_us: int,
        answered: Callable[[], None],
        before: asyncio.Task[None] | None,
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        for gateway, hello in said:
            while not await self._tried(gateway, hello, heard_us):
                if self._stopping:
                    return
                await asyncio.sleep(_RETRY_S)
        answered()

    async def _tried(self, gateway: str, hello: Hello, heard_us: int) -> bool:
        async with self._room:
            try:
                await self._welcome(gateway, hello, heard_us)
            except (DatabaseError, StreamError) as error:
                limited(log, "commands", _LOG_EVERY_S).error("commands_failed", error=str(error))
            except Exception:  # noqa: BLE001 - the task's root: what failed is tried again
                limited(log, "commands_broke", _LOG_EVERY_S).exception("commands_broke")
            else:
                return True
        return False

    async def _welcome(self, gateway: str, hello: Hello, heard_us: int) -> None:
        """A gateway listens: tell it what is known of its journal; all it lacks goes out again."""
        node = self._node
        greeting = await node.capture.batches.runs.greet(gateway, hello)
        highest = greeting.highest_seq
        if greeting.fork is None and highest > hello.last_seq:
            newest = await node.stream.arrival(gateway, hello.epoch, highest)
            # behind an election its batches have come meanwhile: they say nothing of its journal
            if newest is None or newest.arrived_us < heard_us:
                log.error("journal_is_older", gateway=gateway, epoch=f"{hello.epoch:016x}",
                          last_seq=hello.last_seq, held_seq=highest)  # fmt: skip
        now_us = node.clock.wall_us()
        welcome = Welcome(hello.epoch, highest, now_us, greeting.run, greeting.fork)
        await self._dispatch.greeted(gateway, welcome)
