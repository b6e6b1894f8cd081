"""A run of publishes on its way into the capture, and from there to local subscribers.

What a subscriber's full queue has no room for is not captured either: its publisher waits, or is
refused (docs/adr/0006-full-queues.md). A run that the capture refuses is answered with its reason
where MQTT 5 has an answer for it, and else offered again. benchmarks/fan_in.py pays for what is
done a run here.

Invariants:
- a run that was taken is answered only when it is settled (`settling`), and one that went to a
  stored session not before the store has it;
- local subscribers get a run at once, but for QoS 2 of a stored session: that once it is captured,
  for if the publish came again after a crash, they would get it twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from mqtt.broker.full_queues import Way
from mqtt.broker.seams import PublishRun
from mqtt.broker.settling import HeldRun, answer
from mqtt.frames import parse_publishes
from mqtt.reason_codes import ReasonCode
from mqtt.server_events import RunToken
from mqtt.server_messages import Message
from mqtt.server_routes import are_unheard

if TYPE_CHECKING:
    from mqtt.broker.connection import Connection
    from mqtt.broker.core import Core

__all__ = ["answer_refused", "take"]


def take(connection: Connection, run: PublishRun) -> Sequence[PublishRun] | None:
    """Hand a run to the capture; return what of it is to be offered again later, if any."""
    core = connection.core
    _, flags, _, routes = run.token
    policy = core.policy
    if (
        flags & 3
        and (policy.crowded or len(run.frames) + policy.reserved_bytes > policy.leap_bytes)
        and core.queues.may_block(run, routes)
    ):
        return _take_singly(connection, run)
    return None if _capture(connection, run) else [run]


def answer_refused(run: PublishRun, reason_code: int) -> bool:
    """Answer a run that the capture did not take; False in 3.1.1, which has no answer for it.

    Its client is not read then until the capture has room, and it is to be offered again.
    """
    machine, flags, ids, _ = run.token
    connection: Connection = machine.owner
    core = connection.core
    qos = flags & 3
    if not qos:
        core.policy.dropped("capture_refused_qos0", run.count)
        return True
    core.stats.capture_refusals += run.count
    if machine.version >= 5:
        answer(machine, qos, ids, reason_code)
        return True
    connection.wait_for_capture(with_run=True)
    return False


def _take_singly(connection: Connection, run: PublishRun) -> Sequence[PublishRun] | None:
    """Take the publishes of a run one by one, as far as subscribers have room for them."""
    queues = connection.core.queues
    machine, flags, _, _ = run.token
    runs = queues.singly(run)
    for index, single in enumerate(runs):
        _, _, ids, routes = single.token
        size, client_id = len(single.frames), single.client.client_id
        blockers = [queues.blocker(route, flags & 3, size, client_id) for route in routes]
        if not any(blockers):
            if not _capture(connection, single):
                return runs[index:]
            continue
        way = connection.blocked(next(filter(None, blockers)))
        if way is not Way.REFUSE:
            return runs[index:]
        queues.refusals += 1
        answer(machine, flags & 3, ids, ReasonCode.QUOTA_EXCEEDED)
    return None


def _capture(connection: Connection, run: PublishRun) -> bool:
    """Hand a run to the capture; False when it is to be offered again later."""
    core = connection.core
    capture = core.capture
    assert capture is not None
    run.time_us = core.wall_us()
    _, flags, _, routes = run.token
    refusal = capture.take(run)
    if refusal:
        return answer_refused(run, refusal)
    stats = core.stats
    stats.captured += run.count
    stats.messages_received[flags & 3] += run.count
    if flags & 6 or not are_unheard(routes, core.router.routes.generation):
        _share(connection, run)
    if capture.saturated():
        connection.wait_for_capture()
    return True


def _share(connection: Connection, run: PublishRun) -> None:
    """Give a captured run to local subscribers too; keep it as retained where it asks so."""
    token: RunToken = run.token
    flags = token[1]
    core = connection.core
    recorder = core.recorder
    if recorder is None:
        _deliver(core, run, token)
        return
    session = connection.session
    if flags & 3 == 2 and session is not None and session.recorder is not None:
        policy = core.policy
        policy.reserved_messages += run.count
        policy.reserved_bytes += len(run.frames)
        run.token = HeldRun(token, is_stored=True, share=partial(_share_late, core, run, token))
        return
    before = recorder.position
    _deliver(core, run, token)
    is_stored = recorder.position == before
    if not is_stored or flags & 2:
        run.token = HeldRun(token, is_stored=is_stored)
    if not is_stored:
        recorder.when_durable(run.token.stored)


def _share_late(core: Core, run: PublishRun, token: RunToken, taken: bool) -> bool:
    """Give a run to local subscribers once it is captured; False if the store has to follow."""
    recorder = core.recorder
    assert recorder is not None
    policy = core.policy
    policy.reserved_messages -= run.count
    policy.reserved_bytes -= len(run.frames)
    before = recorder.position
    if taken:
        _deliver(core, run, token)
    return recorder.position == before


def _deliver(core: Core, run: PublishRun, token: RunToken) -> None:
    machine, flags, _, routes = token
    router = core.router
    retain = flags & 4
    if not retain and not any(router.receivers(route) for route in routes):
        return
    client_id = run.client.client_id
    for first, topic, _, block, payload in parse_publishes(run.frames, machine.version):
        route = router.routes[topic]
        if route.exclusive:
            continue
        message = Message(topic, payload, first >> 1 & 3, retain != 0, b"", 0.0, client_id)
        if block:
            known = core.blocks[block]
            message.properties = known.forward
            if known.expiry_s is not None:
                message.expires_s = core.refresh() + known.expiry_s
        if retain:
            router.retain(message, route.name)
        router.deliver(message, route, core.now_s)
