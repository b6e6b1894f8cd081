"""Shared subscriptions over a cluster: the messages this node was chosen for.

With QoS 1 and 2 such a message is in the log, under the instance whose member was chosen, until
that member has acknowledged it. If no member is left here it goes back into the log for another
node's; if the instance dies, its heir does that with everything behind the last known number.

Invariant: `done` names a number only when no message at or below it waits for a member here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from cloud.cluster.mqtt_wire import position_of
from mqtt.broker.router import Router
from mqtt.server_messages import Message

__all__ = ["Shares"]


class Shares:
    """Messages for members here that are not acknowledged.

    Args:
        router: Chooses the member.
        elsewhere: Finds a member anywhere for a message that none here can take, and calls back
            when the log has it; False when there is nobody.
        done: Called with the number of the log up to which all is acknowledged.
    """

    def __init__(
        self,
        router: Router,
        elsewhere: Callable[[str, Message, Callable[[], object]], bool],
        done: Callable[[int], None],
    ) -> None:
        self.waiting: OrderedDict[int, None] = OrderedDict()  # positions in the log
        self.moved = 0  # messages that went to another node
        self.nobody = 0  # messages that had no member anywhere
        self._router = router
        self._elsewhere = elsewhere
        self._done = done
        self._seen = 0

    def give(self, seq: int, index: int, group: str, message: Message, now_s: float) -> None:
        """Give a message of the log to a member here."""
        position = position_of(seq, index)
        self.waiting[position] = None
        members = self._router.group(group)
        entry = members.choose(message.size) if members is not None else None
        if members is None or entry is None or entry.session.link is None:
            self.move(position, group, message)
            return
        message.tracker = partial(self._told, position)
        qos = min(message.qos, entry.qos)
        keep = message.retain and entry.retain_as_published
        taken = entry.session.offer(message, qos, keep, entry.identifiers, now_s, members)
        if not taken or not qos:
            self._end(position)

    def move(self, position: int, group: str, message: Message) -> None:
        """Find a member elsewhere."""
        message.tracker = None
        if self._elsewhere(group, message, partial(self._end, position)):
            self.moved += 1
        else:
            self.nobody += 1
            self._end(position)

    def passed(self, seq: int) -> None:
        """Note that the log was read up to a number."""
        self._seen = seq
        if not self.waiting:
            self._done(seq)

    def _told(self, position: int, taken: bool) -> None:  # noqa: ARG002 - dropped is done with too
        self._end(position)

    def _end(self, position: int) -> None:
        self.waiting.pop(position, None)
        first = next(iter(self.waiting), None)
        self._done(self._seen if first is None else (first >> 16) - 1)
