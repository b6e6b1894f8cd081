"""What happens to a publish for a subscriber whose queue is full.

docs/adr/0006-full-queues.md has the reasons. With the policy `refuse` no publish is acknowledged
that a queue has no room for [MQTT-4.5.0-1]:
- while the subscriber is connected its publishers stand still, as they do for a slow disk; a v5
  publisher not longer than `HOLD_S`, then it is refused with 0x97;
- while the subscriber is away a v5 publisher is refused at once, a 3.1.1 one, which cannot be told,
  stands still;
- a client that would wait for itself is refused, or cut off where that is the only way to tell it;
- a queue that is not half empty again within `queue_full_patience_s` ends its session, which the
  subscriber sees by Session Present 0: one subscriber that is gone stops nobody for ever.

Invariant: whoever waits in `_waiting` is called back when a queue has eased, at the latest one
tick after its time to wait is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Final

from mqtt.broker.seams import PublishRun
from mqtt.frames import parse_publishes, split
from mqtt.reason_codes import ReasonCode
from mqtt.server_routes import Route
from mqtt.session import Session
from mqtt.session_policy import REFUSE
from mqtt.session_subscriptions import ShareGroup

if TYPE_CHECKING:
    from mqtt.broker.connection import Connection
    from mqtt.broker.core import Core

__all__ = ["HOLD_S", "FullQueues", "Way"]

HOLD_S: Final = 2.0  # how long a v5 publisher stands still for a subscriber that is connected
_NAMED_MAX: Final = 10  # sessions named in a status


class Way(Enum):
    """What becomes of a publish that found a queue full."""

    HOLD = "hold"  # it is offered again when there is room
    REFUSE = "refuse"  # 0x97
    CUT_OFF = "cut off"  # a 3.1.1 client waits for itself: it sends again when it comes back


class FullQueues:
    """Watches over the queues of all sessions of a broker.

    Attributes:
        refusals: Publishes refused because a subscriber's queue was full, since the start.
        ended: Sessions ended because their queues stayed full, since the start.
    """

    def __init__(self, core: Core) -> None:
        self.refusals = 0
        self.ended = 0
        self._core = core
        self._policy = core.policy
        self._waiting: dict[Connection, None] = {}  # in the order they came
        self._again_s = inf  # when those who wait are called back in any case
        self._is_scheduled = False
        core.policy.on_eased = self._schedule

    # -- before a publish is taken ------------------------------------------------------------

    def blocker(
        self, route: Route, qos: int, size: int, publisher: str | None, count: int = 1
    ) -> Session | None:
        """Return a session that has no room for messages to a topic, None when all have.

        Args:
            route: Of the topic, up to date.
            qos: Of the messages.
            size: Their bytes, at most.
            publisher: The client id they come from.
            count: How many they are.
        """
        if self._policy.queue_full != REFUSE:
            return None
        reached = 0
        for target in route.targets:
            if not target.qos or (target.no_local and publisher == target.session.client_id):
                continue
            reached += 1
            if not target.session.takes(size, count):
                return target.session
        for group in route.shares:
            reached += 1
            fullest = _fullest(group, size, count)
            if fullest is not None:
                return fullest
        if reached and qos and not self._policy.takes(reached * size):
            return self._largest()
        return None

    def may_block(self, run: PublishRun, routes: Iterable[Route]) -> bool:
        """Return True when a captured run may not fit as a whole: look at each of its publishes."""
        router = self._core.router
        size = len(run.frames)
        return any(
            router.receivers(route)
            and self.blocker(route, 1, size, run.client.client_id, run.count) is not None
            for route in routes
        )

    def way(self, connection: Connection, blocker: Session) -> Way:
        """Decide what becomes of a publish of a connection that a full queue blocks."""
        core = self._core
        since_s = self._policy.full.setdefault(blocker, core.now_s)
        if since_s == core.now_s:
            self._log(blocker)
        is_own = blocker is connection.session
        if connection.machine.version < 5:
            return Way.CUT_OFF if is_own else Way.HOLD
        if is_own or blocker.link is None or core.now_s - since_s >= HOLD_S:
            return Way.REFUSE
        self._again_s = min(self._again_s, since_s + HOLD_S)
        return Way.HOLD

    def wait(self, connection: Connection) -> None:
        """Call `connection.queue_eased` when its publish may find room, or has waited enough."""
        self._waiting[connection] = None

    def forget(self, connection: Connection) -> None:
        """A connection is gone and waits no more."""
        self._waiting.pop(connection, None)

    def singly(self, run: PublishRun) -> list[PublishRun]:
        """Return the publishes of a run as runs of their own."""
        if run.count == 1:
            return [run]
        machine, flags, ids, _ = run.token
        routes = self._core.router.routes
        runs = []
        at = 0
        publishes = parse_publishes(run.frames, machine.version)
        for (_, topic, _, _, _), packet_id in zip(publishes, ids, strict=True):
            frame = split(run.frames, at)
            assert frame is not None
            route = routes[topic]
            token = (machine, flags, [packet_id], [] if route.exclusive else [route])
            frames = run.frames[at : frame[2]]
            runs.append(
                PublishRun(run.client, run.lane, frames, 1, run.time_us, run.settled, token)
            )
            at = frame[2]
        return runs

    # -- as time goes by ----------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Forget who is crowded no more, end what stays full, call back who has waited enough."""
        policy = self._policy
        if policy.crowded:
            policy.crowded = {session for session in policy.crowded if session.is_crowded()}
        if policy.queue_full != REFUSE:  # since a reload: nobody waits for a queue any more
            policy.full.clear()
        if not policy.full:
            self._schedule()
            return
        for session in list(policy.full):
            policy.look_at(session)
            since_s = policy.full.get(session)
            if since_s is None:
                continue
            self._log(session)
            if now_s - since_s >= self._patience_s(session):
                self._end(session, now_s)
        if now_s >= self._again_s:
            self._schedule()

    def reconsider(self) -> None:
        """The limits have changed: look at every queue anew."""
        self._policy.crowded.update(
            session for session in self._core.registry.sessions.values() if session.is_crowded()
        )
        self._schedule()

    def names(self) -> list[str]:
        """Return client ids whose queues are full, a few at most."""
        return [session.client_id for session in self._policy.full][:_NAMED_MAX]

    @property
    def count(self) -> int:
        """How many queues are full."""
        return len(self._policy.full)

    @property
    def waiting(self) -> int:
        """How many publishers stand still for them."""
        return len(self._waiting)

    # -- inside -------------------------------------------------------------------------------

    def _patience_s(self, session: Session) -> float:
        config = self._core.config
        patience_s = config.queue_full_patience_s or inf
        # A session that ends with its connection is promised no more than a slow client is.
        return patience_s if session.expiry_s else min(patience_s, config.slow_timeout_s)

    def _end(self, session: Session, now_s: float) -> None:
        """End a session for good: it has been full for too long."""
        core = self._core
        lost = len(session.outbound or ())
        self._policy.dropped("queue_full_session_ended", lost)
        self.ended += 1
        core.log.warning(
            "mqtt_session_ended_queue_full",
            client_id=session.client_id,
            messages=lost,
            reason="its queue stayed full for broker.queue_full_patience_s; its client will find"
            " no session when it comes back",
        )
        if session.owner is not None:
            session.owner.disconnect(ReasonCode.QUOTA_EXCEEDED, "queue of messages stays full")
        if core.registry.sessions.get(session.client_id) is session:
            core.registry.end(session, now_s)
        if self._policy.full.pop(session, None) is not None:
            self._schedule()

    def _log(self, session: Session) -> None:
        """Say that a queue is full: at once, and once a minute while it stays so."""
        self._core.log.warning(
            "mqtt_queue_full",
            client_id=session.client_id,
            connected=session.link is not None,
            messages=len(session.outbound or ()),
            bytes=session.queued_bytes,
            hint="publishers to it wait or are refused with 0x97; see broker.queue_full",
        )

    def _largest(self) -> Session | None:
        """Return the session with the longest queue by bytes, None when nothing is queued."""
        sessions = [each for each in self._core.registry.sessions.values() if each.outbound]
        return max(sessions, key=lambda each: each.queued_bytes, default=None)

    def _schedule(self) -> None:
        """Call back all who wait, not from within whatever happens just now."""
        if self._waiting and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._call_back)

    def _call_back(self) -> None:
        self._is_scheduled = False
        self._again_s = inf
        waiting, self._waiting = self._waiting, {}
        for connection in waiting:
            connection.queue_eased()


def _fullest(group: ShareGroup, size: int, count: int) -> Session | None:
    """Return a member of a shared subscription when no member has room, else None."""
    last = None
    for session, entry in group.members.items():
        if not entry.qos or session.takes(size, count):
            return None
        last = session
    return last
