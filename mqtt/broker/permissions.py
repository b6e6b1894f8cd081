"""Leave that has to be asked for first, and leave that is taken away.

An `Access` that cannot tell at once answers PENDING. The connection then stands still, exactly
there: what it sent before is done, what it sent behind waits, in order, until `Access.decide` has
said. What it cannot say in time is no verdict: a SUBSCRIBE is refused with 0x83, and a client that
wanted to publish is disconnected with it, so that it keeps its message and tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from mqtt.broker.seams import PENDING, Access, ClientInfo
from mqtt.packets import Connect, Subscribe
from mqtt.reason_codes import ReasonCode
from mqtt.server_routes import ClientRoutes, RouteTable, VerdictPending
from mqtt.session import Session
from mqtt.topics import matches, split_shared

if TYPE_CHECKING:
    from mqtt.broker.connection import Connection
    from mqtt.broker.core import Core

__all__ = [
    "decide_anew",
    "decide_subscriptions",
    "drop_forbidden",
    "drop_wills",
    "on_verdict_pending",
    "routes_of",
    "wait_for_subscribe",
]


def routes_of(core: Core, client: ClientInfo) -> RouteTable | ClientRoutes:
    """Return where a client's publishes go: routes of its own, with its verdicts, where it may not
    publish to everything, else those of all."""
    access = core.access
    if access is None or not getattr(access, "restricts_publishing", True):
        return core.router.routes
    return ClientRoutes(core.router.routes, partial(access.publish, client))


def on_verdict_pending(connection: Connection, pending: VerdictPending) -> None:
    """Ask whether a client may publish to a topic; its reading goes on when that is known."""
    client = connection.machine.client
    if client is not None and connection.pause_for_verdict():
        _spawn(connection, _publish_later(connection, client, pending.topic_name))


async def _publish_later(connection: Connection, client: ClientInfo, topic_name: str) -> None:
    failed = await _decide(connection.core, client, "publish", [topic_name])
    if connection.closed:
        return
    if failed:
        connection.disconnect(ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
        return
    connection.resume_after_verdict()
    if not connection.closed:
        connection.handle_waiting()


def wait_for_subscribe(
    connection: Connection, packet: Subscribe, proceed: Callable[[], None]
) -> bool:
    """Ask what has to be asked about a SUBSCRIBE; False when there is nothing.

    Args:
        connection: Whose it is.
        packet: The SUBSCRIBE.
        proceed: Called when the verdicts are there, before anything that came behind it.
    """
    access, client = connection.core.access, connection.machine.client
    if access is None or client is None:
        return False
    filters = [split_shared(each.topic_filter)[1] for each in packet.subscriptions]
    waiting = [each for each in filters if access.subscribe(client, each) == PENDING]
    if not waiting:
        return False
    connection.hold()
    _spawn(connection, _subscribe_later(connection, client, waiting, proceed))
    return True


async def _subscribe_later(
    connection: Connection, client: ClientInfo, waiting: list[str], proceed: Callable[[], None]
) -> None:
    await _decide(connection.core, client, "subscribe", waiting)
    if connection.closed:
        return
    proceed()
    connection.release()


async def decide_subscriptions(
    connection: Connection, connect: Connect, client: ClientInfo
) -> None:
    """Ask about the subscriptions of the session that a CONNECT will resume."""
    session = connection.core.registry.sessions.get(client.client_id)
    if session is not None and not connect.clean_start:
        await decide_anew(connection, session, client)


async def decide_anew(connection: Connection, session: Session, client: ClientInfo) -> None:
    """Ask about the subscriptions of a session, where that has to be asked for."""
    core = connection.core
    if core.access is None:
        return
    filters = [split_shared(each)[1] for each in session.subscriptions or ()]
    waiting = [each for each in filters if core.access.subscribe(client, each) == PENDING]
    if waiting:
        await _decide(connection.core, client, "subscribe", waiting)


def drop_forbidden(connection: Connection, session: Session, client: ClientInfo) -> int:
    """End the subscriptions of a session that its client may not have (any more); count them.

    Nor does it get what they brought: rules may have changed, or its user may be another one.
    """
    core = connection.core
    access = core.access
    if access is None:
        return 0
    forbidden = [
        each
        for each in session.subscriptions or ()
        if access.subscribe(client, split_shared(each)[1])
    ]
    for topic_filter in forbidden:
        core.router.unsubscribe(session, topic_filter)
        if session.recorder is not None and core.recorder is not None:
            core.recorder.subscription_ended(session, topic_filter)
    if forbidden:
        core.log.warning(
            "mqtt_subscriptions_taken_away", client_id=client.client_id, count=len(forbidden)
        )
        connection.stop_feeding(forbidden)
    _drop_messages(core, session, client, access)
    return len(forbidden)


def _drop_messages(core: Core, session: Session, client: ClientInfo, access: Access) -> None:
    """Drop what waits for a client that may not subscribe to it, or give it to whoever shares it.

    Not what the client is in the middle of acknowledging, nor what the host has for it alone.
    """
    verdicts: dict[bytes, bool] = {}
    for packet_id, delivery in list((session.outbound or {}).items()):
        message = delivery.message
        sent = delivery.dup and session.link is not None
        if sent or delivery.released or delivery.moving or message.token:
            continue
        may = verdicts.get(message.topic)
        if may is None:
            topic_name = message.topic.decode()
            code = access.subscribe(client, topic_name)
            may = verdicts[message.topic] = not code or (
                code == PENDING  # of each subscription that is left it has said yes
                and any(
                    matches(split_shared(each)[1], topic_name)
                    for each in session.subscriptions or ()
                )
            )
        if not may and not (
            delivery.movable
            and core.router.hand_over(session, packet_id, delivery, core.refresh(), to_absent=True)
        ):
            session.drop(packet_id, delivery, "not_authorized")


async def drop_wills(core: Core) -> None:
    """Forget the wills of clients that may not publish them any more."""
    access = core.access
    if access is None:
        return
    for session in list(core.registry.sessions.values()):
        will = session.will
        connection, away = session.owner, session.timer
        client = connection.machine.client if connection is not None else away and away.client
        if will is None or client is None:
            continue
        topic_name = will.topic.decode()
        if access.publish(client, topic_name) == PENDING:
            await _decide(core, client, "publish", [topic_name])
        if access.publish(client, topic_name) and session.will is will:
            core.registry.forget_will(session, core.refresh())
            core.log.warning("mqtt_will_taken_away", client_id=session.client_id)


async def _decide(core: Core, client: ClientInfo, action: str, topics: Iterable[str]) -> bool:
    """Have the access decide; True when it could not, or not in time."""
    access = core.access
    assert access is not None
    try:
        async with asyncio.timeout(core.config.connect_timeout_s):
            for topic in topics:
                await access.decide(client, action, topic)
    except Exception as error:  # noqa: BLE001 - a plugin's fault must not let anything through
        core.log.warning("mqtt_access_failed", client_id=client.client_id, error=repr(error))
        return True
    return False


def _spawn(connection: Connection, work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(work, name=f"mqtt-permission-{connection.peer()}")
    connection.core.spawn(task)
