"""Enhanced authentication: AUTH packets between CONNECT and CONNACK, and later to prove it again.

MQTT 5.0 sections 3.15 and 4.12. A method's steps run as tasks, so that one that asks somebody
else holds up nobody; at most one runs for a connection, and a client that does not wait for its
answer is at fault. While a client proves itself again, everything else goes on [MQTT-4.12.1].
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mqtt.broker.access.enhanced import AuthRefusedError, AuthStep, Exchange
from mqtt.broker.seams import ClientInfo
from mqtt.errors import ProtocolError
from mqtt.packets import Auth
from mqtt.properties import AUTHENTICATION_DATA, AUTHENTICATION_METHOD, Properties
from mqtt.reason_codes import ReasonCode
from mqtt.server_events import State

if TYPE_CHECKING:
    from mqtt.broker.connection import Connection

__all__ = ["Authentication", "begin_authentication", "on_auth"]

_CONTINUE, _AGAIN = 0x18, 0x19
_STEPS_MAX: Final = 16  # of one exchange


@dataclass(slots=True)
class Authentication:
    """How a connection authenticates."""

    method: str
    client: ClientInfo
    exchange: Exchange | None  # None when none is going on
    proceed: Callable[[], None]  # goes on with the CONNECT once proven
    refuse: Callable[[int, str], None]  # answers the CONNECT with a refusal
    is_busy: bool = False  # a step is running
    steps: int = 0
    data: bytes = b""  # for CONNACK: the method's last word


def begin_authentication(
    connection: Connection,
    method: str,
    data: bytes,
    client: ClientInfo,
    proceed: Callable[[], None],
    refuse: Callable[[int, str], None],
) -> None:
    """Begin with the method and data of a CONNECT [MQTT-4.12.0-1]..[MQTT-4.12.0-3]."""
    known = connection.core.auth_methods.get(method)
    if known is None:
        refuse(ReasonCode.BAD_AUTHENTICATION_METHOD, "no such authentication method")
        return
    auth = Authentication(method, client, known.begin(client), proceed, refuse)
    connection.auth = auth
    connection.pause_connecting()
    _spawn(connection, auth, data)


def on_auth(connection: Connection, packet: Auth) -> None:
    """Take an AUTH of the client."""
    auth = connection.auth
    fault = _fault(connection, auth, packet)
    if fault is not None or auth is None:
        connection.fail(fault or ProtocolError(ReasonCode.PROTOCOL_ERROR, "AUTH out of place"))
        return
    if packet.reason_code == _AGAIN:  # [MQTT-4.12.1-1]
        auth.exchange = connection.core.auth_methods[auth.method].begin(auth.client)
        auth.steps = 0
    if connection.machine.state is State.CONNECTING:
        connection.pause_connecting()
    _spawn(connection, auth, packet.properties.get(AUTHENTICATION_DATA, b""))


def _fault(
    connection: Connection, auth: Authentication | None, packet: Auth
) -> ProtocolError | None:
    """Return what is wrong with an AUTH, None when nothing is."""
    code = int(ReasonCode.PROTOCOL_ERROR)
    if auth is None:  # [MQTT-4.12.0-6]
        return ProtocolError(code, "AUTH without an authentication method", "MQTT-4.12.0-6")
    if packet.properties.get(AUTHENTICATION_METHOD) != auth.method:  # [MQTT-4.12.0-5]
        return ProtocolError(code, "AUTH with another authentication method", "MQTT-4.12.0-5")
    if auth.is_busy:
        return ProtocolError(code, "AUTH before the last one was answered")
    connected = connection.machine.state is State.CONNECTED
    if packet.reason_code == _AGAIN:
        if not connected or auth.exchange is not None:
            return ProtocolError(code, "re-authentication out of place")
        if auth.method not in connection.core.auth_methods:  # taken away by a reload
            return ProtocolError(
                ReasonCode.BAD_AUTHENTICATION_METHOD, "the method is not offered any more"
            )
    elif packet.reason_code != _CONTINUE or auth.exchange is None or auth.steps >= _STEPS_MAX:
        return ProtocolError(code, f"AUTH with reason 0x{packet.reason_code:02x} out of place")
    return None


def _spawn(connection: Connection, auth: Authentication, data: bytes) -> None:
    auth.is_busy = True
    task = asyncio.get_running_loop().create_task(
        _step(connection, auth, data), name=f"mqtt-auth-{auth.client.peer}"
    )
    connection.core.spawn(task)


async def _step(connection: Connection, auth: Authentication, data: bytes) -> None:
    """Have the method take a step and answer what it says; what it cannot say in time is a no."""
    core = connection.core
    exchange = auth.exchange
    assert exchange is not None
    auth.steps += 1
    refusal, detail, step = 0, "", AuthStep()
    try:
        async with asyncio.timeout(core.config.connect_timeout_s):
            step = await exchange.step(data)
    except AuthRefusedError as error:
        refusal, detail = error.reason_code, str(error)
    except Exception as error:  # noqa: BLE001 - a method's fault must not let anybody in
        refusal, detail = int(ReasonCode.SERVER_UNAVAILABLE), repr(error)
    auth.is_busy = False
    if connection.closed:
        return
    if refusal:
        core.log.warning(
            "mqtt_authentication_failed", peer=auth.client.peer, method=auth.method, reason=detail
        )
        _refused(connection, auth, refusal)
    elif not step.done:
        _say(connection, auth, _CONTINUE, step.data)  # [MQTT-4.12.0-2]
        connection.machine.waiting_since_s = core.now_s
        connection.resume_connecting()
        if connection.machine.state is State.CONNECTING:
            connection.handle_waiting()
    else:
        auth.exchange = None
        _proven(connection, auth, step)


def _proven(connection: Connection, auth: Authentication, step: AuthStep) -> None:
    client = auth.client
    if connection.machine.state is State.CONNECTED:
        if step.username != client.username:
            connection.disconnect(ReasonCode.NOT_AUTHORIZED, "authenticated as somebody else")
            return
        _say(connection, auth, 0, step.data)  # section 4.12.1
        return
    client.username = step.username
    client.auth_method = auth.method
    auth.data = step.data
    auth.proceed()


def _refused(connection: Connection, auth: Authentication, code: int) -> None:
    if connection.machine.state is State.CONNECTED:  # [MQTT-4.12.1-2]
        connection.disconnect(code)
    else:
        auth.refuse(code, "")  # [MQTT-4.12.0-4]


def _say(connection: Connection, auth: Authentication, reason_code: int, data: bytes) -> None:
    properties: Properties = {AUTHENTICATION_METHOD: auth.method}
    if data:
        properties[AUTHENTICATION_DATA] = data
    connection.machine.send_packet(Auth(reason_code, properties))
