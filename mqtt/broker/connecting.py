"""From CONNECT to CONNACK: may this client connect, whose session is it, what is it told.

MQTT 5.0 and 3.1.1 sections 3.1, 3.2, 4.8 and 4.12. The order is: leave to connect, end of the
connection that had the client id, session, CONNACK once the store has what changed, then what
the client sent behind its CONNECT, then what waits for it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from functools import partial

from mqtt.broker.authenticating import begin_authentication
from mqtt.broker.connection import Connection
from mqtt.broker.permissions import decide_subscriptions, drop_forbidden, routes_of
from mqtt.broker.seams import PENDING, Access, ClientInfo
from mqtt.packets import Connack, Connect
from mqtt.properties import (
    ASSIGNED_CLIENT_IDENTIFIER,
    AUTHENTICATION_DATA,
    AUTHENTICATION_METHOD,
    MAXIMUM_PACKET_SIZE,
    RECEIVE_MAXIMUM,
    SERVER_KEEP_ALIVE,
    SESSION_EXPIRY_INTERVAL,
    TOPIC_ALIAS_MAXIMUM,
    Properties,
)
from mqtt.reason_codes import ReasonCode
from mqtt.server_events import State
from mqtt.session import Session
from mqtt.topics import topic_name_fault

__all__ = ["on_connect"]

_CLIENT_ID_BYTES_MAX = 1024


def on_connect(connection: Connection, connect: Connect) -> None:
    """Answer a CONNECT, now or when the access check is through."""
    refusal = _refusal(connection, connect)
    if refusal:
        _refuse(connection, *refusal)
        return
    assigned = not connect.client_id
    if assigned:  # [MQTT-3.1.3-6] [MQTT-3.1.3-7]
        connect.client_id = f"auto-{secrets.token_hex(10)}"
    client = ClientInfo(
        connect.client_id,
        connect.protocol_version,
        connect.username,
        connection.peer(),
        address=connection.address,
        is_local=connection.is_local(),
        keep_alive_s=connect.keep_alive,
        clean_start=connect.clean_start,
    )
    if connection.listener is not None:
        connection.listener.connected(connection)
        _identify(connection, client)
    wait_s = connection.core.hooks.connect_wait_s(client) if connection.core.hooks else 0.0
    if wait_s > 0:
        _refuse(connection, ReasonCode.SERVER_BUSY, "come again later", wait_s)
        return
    method = connect.properties.get(AUTHENTICATION_METHOD)
    if method is None:
        _ask_access(connection, connect, client, assigned=assigned)
    else:
        begin_authentication(
            connection,
            method,
            connect.properties.get(AUTHENTICATION_DATA, b""),
            client,
            partial(_ask_access, connection, connect, client, assigned=assigned),
            partial(_refuse, connection),
        )


def _ask_access(
    connection: Connection, connect: Connect, client: ClientInfo, *, assigned: bool
) -> None:
    """Ask the host, if it has a say, whether the client may connect."""
    core = connection.core
    if core.access is None:
        _connect(connection, connect, client, assigned=assigned)
        return
    connection.pause_connecting()
    core.spawn(
        asyncio.get_running_loop().create_task(
            _check_access(connection, connect, client, assigned=assigned),
            name=f"mqtt-access-{client.peer}",
        )
    )


def _refusal(connection: Connection, connect: Connect) -> tuple[int, str] | None:
    """Return why a CONNECT is refused whoever it comes from, None when it is not."""
    core = connection.core
    if core.stopping:
        return ReasonCode.SERVER_UNAVAILABLE, "shutting down"
    listener = connection.listener
    if len(core.connections) > core.config.connections_max or (
        listener is not None and listener.full()
    ):
        return ReasonCode.SERVER_BUSY, "too many connections"
    sessions = core.registry.sessions
    if len(sessions) >= core.config.sessions_max and connect.client_id not in sessions:
        return ReasonCode.QUOTA_EXCEEDED, "too many sessions"
    client_id = connect.client_id
    if (
        len(client_id) * 4 > _CLIENT_ID_BYTES_MAX and len(client_id.encode()) > _CLIENT_ID_BYTES_MAX
    ):  # [MQTT-3.1.3-8]
        return ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "client id is too long"
    will = connect.will
    if will is not None and (
        topic_name_fault(
            will.topic_name,
            levels_max=core.config.topic_levels_max,
            bytes_max=core.config.topic_bytes_max,
        )
        or will.topic_name.startswith(("$SYS/", "$share/"))
    ):
        return ReasonCode.TOPIC_NAME_INVALID, "topic of the will"
    return None


def _identify(connection: Connection, client: ClientInfo) -> None:
    """Take the name of the client's certificate, which the handshake has verified."""
    listener = connection.listener
    assert listener is not None
    client.listener = listener.name
    if not listener.asks_certificates:
        return
    tls = connection.transport.get_extra_info("ssl_object")
    if tls is not None:
        from mqtt.broker.net.tls import certificate_name  # noqa: PLC0415 - ssl is heavy

        client.tls = tls
        client.certificate_name = certificate_name(
            tls.getpeercert(), listener.config.certificate_name
        )


async def _check_access(
    connection: Connection, connect: Connect, client: ClientInfo, *, assigned: bool
) -> None:
    """Ask the host's access rules; what they cannot tell in time is a no."""
    core = connection.core
    access = core.access
    assert access is not None
    refusal = int(ReasonCode.SERVER_UNAVAILABLE)
    connection.let_in_by = core.access_changes
    try:
        async with asyncio.timeout(core.config.connect_timeout_s):
            refusal = await access.connect(client, connect.password)
            if not refusal:
                refusal = await _may_send_will(access, client, connect)
                await decide_subscriptions(connection, connect, client)
    except Exception as error:  # noqa: BLE001 - a plugin's fault must not let anybody in
        core.log.warning("mqtt_access_failed", client_id=client.client_id, error=repr(error))
    if connection.closed:
        return
    if refusal:
        _refuse(connection, refusal, "")
    else:
        connection.machine.routes = routes_of(core, client)
        _connect(connection, connect, client, assigned=assigned)
    if connection.closed or connection.machine.state is State.CONNECTED:
        connection.resume_connecting()


async def _may_send_will(access: Access, client: ClientInfo, connect: Connect) -> int:
    """Return 0 when a client may publish its will, if it has one; else why not."""
    if connect.will is None:
        return 0
    code = access.publish(client, connect.will.topic_name)
    if code == PENDING:
        code = await access.decide(client, "publish", connect.will.topic_name)
    return code


def _refuse(
    connection: Connection, reason_code: int, reason: str, retry_after_s: float = 0.0
) -> None:
    core = connection.core
    core.log.warning(
        "mqtt_connect_refused", cause=int(reason_code), peer=connection.peer(), reason=reason
    )
    connection.machine.refuse(reason_code, reason, retry_after_s)
    connection.close(reason_code)  # [MQTT-3.2.2-7]


def _connect(
    connection: Connection, connect: Connect, client: ClientInfo, *, assigned: bool
) -> None:
    """See to it that the session is this node's, and go on."""
    bus = connection.core.bus
    if bus is None:
        _open_session(connection, connect, client, assigned=assigned)
        return
    proceed = partial(_open_session, connection, connect, client, assigned=assigned)
    if bus.claim(connect, partial(_claimed, connection, proceed)):
        proceed()
    else:
        connection.pause_connecting()


def _claimed(connection: Connection, proceed: Callable[[], None]) -> None:
    """Another node has let go of the session."""
    if connection.closed:
        return
    proceed()
    if connection.closed or connection.machine.state is State.CONNECTED:
        connection.resume_connecting()


def _open_session(
    connection: Connection, connect: Connect, client: ClientInfo, *, assigned: bool
) -> None:
    """Find the session, ending the connection it is on [MQTT-3.1.4-3], and answer."""
    core = connection.core
    properties: Properties = {}
    if assigned:
        properties[ASSIGNED_CLIENT_IDENTIFIER] = client.client_id  # [MQTT-3.2.2-16]
    if connection.auth is not None:  # [MQTT-4.12.0-5]
        properties[AUTHENTICATION_METHOD] = connection.auth.method
        if connection.auth.data:
            properties[AUTHENTICATION_DATA] = connection.auth.data
    known = core.registry.sessions.get(connect.client_id)
    if known is not None and known.owner is not None:
        known.owner.disconnect(ReasonCode.SESSION_TAKEN_OVER)
    recorder = core.recorder
    before = recorder.position if recorder is not None else 0
    session, present = core.registry.open(connect, core.refresh())
    session.owner = connection
    connection.session = session
    if core.bus is not None:
        core.bus.session_moved(session, here=True)
    if present:
        drop_forbidden(connection, session, client)
    if connect.protocol_version >= 5:
        _tell_limits(connection, connect, session, properties)
    else:
        properties = {}
    connack = Connack(present, 0, properties)  # [MQTT-3.2.2-2] [MQTT-3.2.2-3]
    if recorder is None or recorder.position == before:
        _established(connection, connect, client, connack)
        return
    connection.pause_connecting()
    recorder.when_durable(partial(_established, connection, connect, client, connack))


def _tell_limits(
    connection: Connection, connect: Connect, session: Session, properties: Properties
) -> None:
    """Fill in what a v5 client is told in CONNACK (section 3.2.2.3)."""
    core = connection.core
    config = core.config
    limits = connection.machine.limits
    asked = connect.properties.get(SESSION_EXPIRY_INTERVAL, 0)
    if session.expiry_s != asked:
        properties[SESSION_EXPIRY_INTERVAL] = session.expiry_s
    if limits.receive_maximum != 0xFFFF:
        properties[RECEIVE_MAXIMUM] = limits.receive_maximum
    properties[MAXIMUM_PACKET_SIZE] = limits.maximum_packet_size
    if limits.topic_alias_maximum:
        properties[TOPIC_ALIAS_MAXIMUM] = limits.topic_alias_maximum
    longest_s = config.keep_alive_max_s
    if longest_s and not 0 < connect.keep_alive <= longest_s:  # [MQTT-3.1.2-21]
        properties[SERVER_KEEP_ALIVE] = longest_s


def _established(
    connection: Connection, connect: Connect, client: ClientInfo, connack: Connack
) -> None:
    """Send CONNACK and let the session and its client meet."""
    session = connection.session
    if connection.closed or session is None or session.owner is not connection:
        return
    core = connection.core
    machine = connection.machine
    if connection.let_in_by != core.access_changes and core.access is not None:
        connection.send_will = False
        _refuse(connection, ReasonCode.SERVER_BUSY, "access has changed meanwhile")
        return
    if not machine.accept(client, session, connect, connack):
        connection.send_will = False  # it was never connected
        connection.close(ReasonCode.PACKET_TOO_LARGE)
        return
    connection.schedule_later()
    session.attach(machine)
    if core.hooks is not None:
        core.hooks.client_connected(client)
    session.send_waiting(core.refresh())
    connection.resume_connecting()
    if machine.keeps_data:
        connection.handle_waiting()
