"""Which nodes of a cluster are there, and who settles what a dead one has left.

A node that joins becomes an *instance*, a name of its own, and has a lease as long as it renews
it. When the lease is over, every other node knows; one of them, the heir, publishes the wills the
dead instance held, gives its unacknowledged shared messages to other members, and notes when its
clients were lost. Until that is done the *estate* stays, and passes on if the heir dies.

Invariants:
- an estate is written before the instance serves anybody, and goes only when it is settled;
- an instance that could not renew its lease in time, or sees that it is gone, stops being it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import blake2b
from typing import Final

import structlog

from cloud.cluster.mqtt_fabric import Conflict, Fabric, FabricError, State
from cloud.cluster.mqtt_wire import WireError, decode, encode
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["LEASE_S", "Presence"]

log = structlog.get_logger(component="mqtt-cluster")

LEASE_S: Final = 12.0  # shorter ones are lost when the leader of the states dies
_RENEW_S: Final = 2.0
_LOG_EVERY_S: Final = 10.0


class Presence:
    """This node's place in the cluster, and the others'.

    Args:
        fabric: The engine.
        clock: Time.
        node: The node's name.
        settle: Settles the estate of an instance, given the number of the log up to which its
            shared messages are done with; called again, by somebody, if it raises or is cut short.
        came: Called with each instance that is there.
        gone: Called with each whose lease is over.
        fenced: Called when this instance's own lease is over.
    """

    def __init__(
        self,
        fabric: Fabric,
        clock: Clock,
        node: str,
        settle: Callable[[str, int], Awaitable[None]],
        came: Callable[[str], None],
        gone: Callable[[str], None],
        fenced: Callable[[], None],
    ) -> None:
        self.instance = ""
        self.there: dict[str, int] = {}  # instance -> revision of its newest renewal
        self._fabric = fabric
        self._clock = clock
        self._node = node
        self._settle = settle
        self._came = came
        self._gone = gone
        self._fenced = fenced
        self._estates: dict[str, State] = {}
        self._renewed_s = 0.0
        self._done = 0  # of our own shared messages
        self._done_written = 0
        self._joined = False
        self._lease = 0  # revisions
        self._estate = 0
        self._settling: dict[str, asyncio.Task[None]] = {}

    def new_instance(self) -> str:
        """Take a name that nobody ever had."""
        self.instance = f"{self._node}-{secrets.token_hex(6)}"
        return self.instance

    async def join(self, log_end: int) -> None:
        """Be there; raises FabricError."""
        self._done = self._done_written = log_end
        self._renewed_s = self._clock.monotonic_s()
        self._lease = await self._fabric.put(
            f"n.{self.instance}", encode([self._node]), None, LEASE_S
        )
        self._estate = await self._fabric.put(f"e.{self.instance}", encode([log_end, ""]), None)
        self._joined = True
        self.look()

    async def leave(self) -> None:
        """Be gone: the others settle what there is now, at once; raises FabricError."""
        if not self._joined:
            return
        await self.stop()
        await self._fabric.put(f"n.{self.instance}", None, None)

    def done(self, seq: int) -> None:
        """Note up to which entry of the log this instance's shared messages are done with."""
        self._done = seq

    def seen(self, state: State) -> None:
        """Take a lease or an estate as the cluster has it."""
        kind, _, instance = state.key.partition(".")
        if kind == "e":
            if state.value is None:
                self._estates.pop(instance, None)
            else:
                self._estates[instance] = state
        elif state.value is not None:
            fresh = instance not in self.there
            self.there[instance] = state.revision
            if fresh:
                self._came(instance)
        elif self.there.pop(instance, None) is not None:
            self._gone(instance)
            if instance == self.instance and self._joined:
                self._lost()
        self.look()

    @property
    def settled(self) -> int:
        """The number noted by `done` that an heir would know."""
        return self._done_written

    def acknowledged(self) -> dict[str, int]:
        """Return, of each instance with an estate, the number it has noted by `done`."""
        found: dict[str, int] = {}
        for instance, state in self._estates.items():
            with contextlib.suppress(WireError):
                found[instance] = _done_of(state)
        return found

    def look(self) -> None:
        """Settle the estates that have fallen to this instance."""
        if not self._joined or self.instance not in self.there:
            return
        for instance in self._estates:
            if instance in self.there or instance in self._settling or instance == self.instance:
                continue
            if max(self.there, key=lambda one: _weight(one, instance)) != self.instance:
                continue
            task = asyncio.get_running_loop().create_task(
                self._settle_one(instance), name=f"mqtt-estate-{instance}"
            )
            self._settling[instance] = task
            task.add_done_callback(partial(self._settled, instance))

    def _settled(self, instance: str, _task: asyncio.Task[None]) -> None:
        self._settling.pop(instance, None)

    async def run(self) -> None:
        """Renew the lease until cancelled."""
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                await self.renew()
            except FabricError as error:
                limited(log, "lease", _LOG_EVERY_S).warning("mqtt_lease", error=str(error))
            self.look()

    async def renew(self) -> None:
        """Renew the lease once; raises FabricError."""
        if not self._joined:
            return
        if self._clock.monotonic_s() - self._renewed_s > LEASE_S:
            self._lost()
            return
        began_s = self._clock.monotonic_s()
        try:
            self._lease = await self._put(f"n.{self.instance}", [self._node], self._lease, LEASE_S)
            self._renewed_s = began_s
            if self._done > self._done_written:
                done = self._done
                self._estate = await self._put(f"e.{self.instance}", [done, ""], self._estate)
                self._done_written = done
        except Conflict:
            self._lost()

    async def _put(self, key: str, value: list[object], revision: int, ttl_s: float = 0) -> int:
        """Write what only this instance writes; raises Conflict when it has gone."""
        try:
            return await self._fabric.put(key, encode(value), revision, ttl_s)
        except Conflict:
            state = await self._fabric.get(key)  # a write whose outcome was not known
            if state is None or decode(state.value or b"")[-1] not in ("", self._node):
                raise
            return await self._fabric.put(key, encode(value), state.revision, ttl_s)

    async def stop(self) -> None:
        """End, without leaving."""
        self._joined = False
        for task in list(self._settling.values()):
            task.cancel()
        await asyncio.gather(*self._settling.values(), return_exceptions=True)

    def _lost(self) -> None:
        log.error("mqtt_lease_lost", instance=self.instance)
        self._joined = False
        self._fenced()

    async def _settle_one(self, instance: str) -> None:
        """Claim an estate, settle it, remove it; whoever looks next tries again after a fault."""
        state = self._estates[instance]
        try:
            done = _done_of(state)
            revision = await self._fabric.put(
                state.key, encode([done, self.instance]), state.revision
            )
            await self._settle(instance, done)
            await self._fabric.put(state.key, None, revision)
        except Conflict:
            return  # somebody else has it, or our own claim is yet to be seen
        except (FabricError, WireError) as error:
            limited(log, "estate", _LOG_EVERY_S).warning(
                "mqtt_estate_not_settled", instance=instance, error=str(error)
            )
        else:
            log.info("mqtt_estate_settled", instance=instance)


def _done_of(state: State) -> int:
    """Return the number that an estate has noted; raises WireError."""
    try:
        done, _ = decode(state.value or b"")
        return int(done)
    except (TypeError, ValueError) as error:
        raise WireError(f"no estate: {error}") from None


def _weight(heir: str, instance: str) -> bytes:
    """Return how much an heir has a claim on an estate: all nodes find the same one highest."""
    return blake2b(f"{heir} {instance}".encode(), digest_size=8).digest()
