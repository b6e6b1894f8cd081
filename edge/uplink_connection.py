"""One MQTT 5 connection of the uplink, on paho-mqtt driven by the event loop.

paho is used through its interface for foreign event loops (`loop_read`, `loop_write`, `loop_misc`
and the socket callbacks). aiomqtt, which wraps the same, hides the reason code of a PUBACK, on
which everything here depends. A new paho client is made for each connection, so nothing unsent or
unacknowledged of an old one can ever be sent again by the library.

Connecting and the TLS handshake, which paho does blocking, are done before paho gets the socket
(edge/uplink_addresses.py, edge/uplink_socket.py), so that everything runs on the loop and nothing
holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from bridge.commands import CTL_PREFIX
from bridge.envelope import CONTENT_TYPE
from bridge.errors import LinkError
from bridge.link_pacing import DOWN_ALL, DOWN_PREFIX, UPLINK_CLIENT_PREFIX, retry_after
from edge.uplink_addresses import Addresses, open_socket
from edge.uplink_config import Endpoint
from edge.uplink_socket import LinkBytes, reason_of, tls_handshake

if TYPE_CHECKING:  # paho defines it for type checkers only
    from paho.mqtt.client import SocketLike

__all__ = ["ConnectionOptions", "UplinkConnection"]

_TOPIC_ALIAS = 1
_SAYS_MAX = 16
_TICK_S = 1.0  # how often paho looks at its keep alive
_SILENT = logging.getLogger("tidegate.paho")
_SILENT.setLevel(logging.CRITICAL + 1)  # what it tells, we are told by its callbacks


@dataclass(slots=True, frozen=True)
class ConnectionOptions:
    """What a connection needs besides an endpoint."""

    gateway: str
    purpose: str = ""  # ends the client id of a connection beside the uplink's own
    username: str = ""
    password: str = ""
    keep_alive_s: int = 30
    connect_timeout_s: float = 10.0
    tls: ssl.SSLContext | None = None
    addresses: Addresses = field(default_factory=Addresses)  # of the endpoint, known so far


class _PahoClient(paho.Client):
    """paho on a socket that is connected, and has its TLS, already: connecting never blocks."""

    ready_socket: socket.socket

    def _create_socket_connection(self) -> socket.socket:
        return self.ready_socket


class UplinkConnection:
    """A connection that was accepted by the server.

    Attributes:
        endpoint: Where to.
        receive_maximum: Unacknowledged publishes the server takes.
        packet_bytes_max: The largest packet it takes; None without a limit.
        retry_after_s: After how long a server that refused wants to be dialled again; 0: it did
            not say.
        dial_bytes_s: Bytes that dialling sent, over the time it took: the link moves as many.
        lost: Set once the connection is gone; `cause` and `reason_code` then say why.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: ConnectionOptions,
        on_puback: Callable[[int, int, str], None],
        on_lost: Callable[[], None],
        on_control: Callable[[bytes, bool], None] = lambda _payload, _own: None,
    ) -> None:
        self.endpoint = endpoint
        self.receive_maximum = 65_535
        self.packet_bytes_max: int | None = None
        self.retry_after_s = 0.0
        self.dial_bytes_s = 0.0
        self.lost = False
        self.cause = ""
        self.reason_code = 0
        self._options = options
        self._on_puback = on_puback
        self._on_lost = on_lost
        self._on_control = on_control
        self._loop = asyncio.get_running_loop()
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._topic = f"tidegate/v1/up/{options.gateway}"
        self._first_properties = _properties(PacketTypes.PUBLISH)
        self._first_properties.ContentType = CONTENT_TYPE
        self._later_properties: Properties | None = None
        self._later_topic = self._topic
        self._first = True
        self._said: dict[int, Callable[[int], None]] = {}  # by packet id: who awaits the answer
        self._packet_bytes_out = 0
        self._bytes = LinkBytes()
        self._socket: SocketLike | None = None
        self._dialling: socket.socket | None = None  # until paho has it
        self._address: Hashable = None  # of the server, once its TCP has accepted
        self._tick: asyncio.TimerHandle | None = None
        self._paho = self._make_client()

    def _make_client(self) -> _PahoClient:
        options = self._options
        client = _PahoClient(
            CallbackAPIVersion.VERSION2,
            client_id=f"{UPLINK_CLIENT_PREFIX}{options.gateway}{options.purpose}",
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(0)  # the window is ours
        client.enable_logger(_SILENT)
        if options.username:
            client.username_pw_set(options.username, options.password)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_publish = self._published
        client.on_message = self._message
        client.on_socket_open = self._socket_open
        client.on_socket_close = self._socket_close
        client.on_socket_register_write = self._register_write
        client.on_socket_unregister_write = self._unregister_write
        return client

    # ---- dialling

    async def dial(self) -> None:
        """Connect and wait for the server's CONNACK.

        Raises:
            LinkError: it could not be had in time, or was refused; the connection is closed.
        """
        timeout_s = self._options.connect_timeout_s
        began_s = self._loop.time()
        try:
            async with asyncio.timeout(timeout_s):
                self._dialling = await open_socket(
                    self.endpoint, self._options.addresses, timeout_s, self._bytes
                )
                self._address = self._dialling.getpeername()
                if self.endpoint.tls:
                    context = self._options.tls or ssl.create_default_context()
                    self._dialling = await tls_handshake(
                        self._dialling, context, self.endpoint.host, self._bytes
                    )
                self._paho.ready_socket = self._dialling
                self._start_paho()
                await self._accepted
            self.dial_bytes_s = self.link_bytes().out / max(1e-6, self._loop.time() - began_s)
            down = SubscribeOptions(qos=0)
            gateway = self._options.gateway
            self._paho.subscribe([(DOWN_ALL, down), (DOWN_PREFIX + gateway, down)])
        except TimeoutError:
            raise self._failed(f"no answer within {timeout_s:g} s") from None
        except (OSError, ValueError) as error:
            raise self._failed(reason_of(error)) from None
        except LinkError as error:
            raise self._failed(str(error)) from None
        except BaseException:
            self._drop("cancelled")
            raise

    def _failed(self, detail: str) -> LinkError:
        self._drop(detail)
        return LinkError(f"{self.endpoint}: {detail}")

    def _start_paho(self) -> None:
        """Have paho send CONNECT on the socket."""
        properties = _properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 0
        self._paho.connect(
            self.endpoint.host,
            self.endpoint.port,
            keepalive=self._options.keep_alive_s,
            clean_start=True,
            properties=properties,
        )

    # ---- sending

    def publish(self, payload: bytes) -> int:
        """Send one batch; return its packet id.

        Raises:
            LinkError: the connection is gone.
        """
        first, self._first = self._first, False
        topic = self._topic if first else self._later_topic
        properties = self._first_properties if first else self._later_properties
        info = self._paho.publish(topic, payload, qos=1, properties=properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LinkError(f"{self.endpoint}: {paho.error_string(info.rc)}")
        self._packet_bytes_out += len(payload) + 8
        return info.mid

    def packet_bytes(self, payload_bytes: int) -> int:
        """Return how large a PUBLISH with such a payload gets at most."""
        return payload_bytes + len(self._topic.encode()) + len(CONTENT_TYPE) + 20

    async def close(self) -> None:
        """Say DISCONNECT and close; safe at any time."""
        if not self.lost:
            with contextlib.suppress(OSError, ValueError):
                self._paho.disconnect()
                self._paho.loop_write()
        self._drop("closed")

    def abort(self, cause: str) -> None:
        """Close without a word: the peer does not answer anyway."""
        self._drop(cause)

    def link_bytes(self) -> LinkBytes:
        """Return what was moved until now."""
        if self._socket is not None:
            self._sample(self._socket)
        return self._bytes

    def say(self, payload: bytes, answered: Callable[[int], None]) -> bool:
        """Publish on the gateway's control topic (edge/commands.py's CommandLink)."""
        if self.lost or len(self._said) >= self.says_max:
            return False
        topic = CTL_PREFIX + self._options.gateway
        info = self._paho.publish(topic, payload, qos=1)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return False
        self._said[info.mid] = answered
        self._packet_bytes_out += len(payload) + len(topic) + 8
        return True

    @property
    def says_max(self) -> int:
        """How many words on the control topic may wait for an answer: the batches have the rest."""
        return min(_SAYS_MAX, self.receive_maximum // 2)

    # ---- paho's callbacks

    def _connected(
        self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if self._accepted.done():
            return
        if reason.is_failure:
            self.retry_after_s = retry_after(getattr(properties, "UserProperty", ()))
            if self.retry_after_s:
                self._options.addresses.answered(self._address)
            self._accepted.set_exception(LinkError(f"refused: {reason} (0x{reason.value:02x})"))
            return
        self.receive_maximum = getattr(properties, "ReceiveMaximum", 65_535)
        self.packet_bytes_max = getattr(properties, "MaximumPacketSize", None)
        if getattr(properties, "TopicAliasMaximum", 0) >= _TOPIC_ALIAS:
            self._first_properties.TopicAlias = _TOPIC_ALIAS
            self._later_properties = _properties(PacketTypes.PUBLISH)
            self._later_properties.TopicAlias = _TOPIC_ALIAS
            self._later_topic = ""
        self._accepted.set_result(None)

    def _published(
        self, _client: Any, _data: Any, packet_id: int, reason: ReasonCode, properties: Any
    ) -> None:
        self._options.addresses.answered(self._address)
        answered = self._said.pop(packet_id, None)
        if answered is not None:
            answered(reason.value)
            return
        self._on_puback(packet_id, reason.value, getattr(properties, "ReasonString", ""))

    def _message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self._on_control(bytes(message.payload), message.topic != DOWN_ALL)

    def _disconnected(
        self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self.reason_code = reason.value
            self._drop(f"the server ended the connection: {reason} (0x{reason.value:02x})")
        elif not self._accepted.done():  # an HTTP port, or one for TLS and plain MQTT on it
            kind = "MQTT over TLS" if self.endpoint.tls else "MQTT without TLS"
            self._drop(f"closed without an answer to CONNECT; is that a port for {kind}?")
        else:
            self._drop(f"the connection was lost: {reason}")

    def _socket_open(self, _client: Any, _data: Any, sock: SocketLike) -> None:
        self._loop.call_soon(self._watch, sock)

    def _watch(self, sock: SocketLike) -> None:
        if self.lost or sock.fileno() < 0:
            return
        self._socket = sock
        self._loop.add_reader(sock.fileno(), self._read)
        self._tick = self._loop.call_later(_TICK_S, self._misc)

    def _socket_close(self, _client: Any, _data: Any, sock: SocketLike) -> None:
        if self._socket is sock:
            self._sample(sock)
            self._socket = None
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())

    def _register_write(self, _client: Any, _data: Any, sock: SocketLike) -> None:
        self._loop.call_soon(self._watch_write, sock)

    def _watch_write(self, sock: SocketLike) -> None:
        if self._socket is sock and self._paho.want_write():
            self._loop.add_writer(sock.fileno(), self._write)

    def _unregister_write(self, _client: Any, _data: Any, sock: SocketLike) -> None:
        if self._socket is sock:
            self._loop.remove_writer(sock.fileno())

    # ---- the loop's callbacks

    def _read(self) -> None:
        try:
            while not self.lost:
                self._paho.loop_read()
                pending = getattr(self._socket, "pending", None)  # TLS decrypts ahead
                if pending is None or not pending():
                    break
        except Exception as error:  # noqa: BLE001 - whatever a peer's bytes do to paho
            self._drop(f"the server sent what cannot be read: {reason_of(error)}")

    def _write(self) -> None:
        try:
            self._paho.loop_write()
        except OSError as error:
            self._drop(reason_of(error))

    def _misc(self) -> None:
        if self.lost:
            return
        self._tick = self._loop.call_later(_TICK_S, self._misc)
        self._paho.loop_misc()

    def _drop(self, cause: str) -> None:
        """Close the socket and tell the owner, once."""
        if self.lost:
            return
        self.lost, self.cause = True, cause
        if self._tick is not None:
            self._tick.cancel()
        sock: Any = self._socket
        self._socket = None
        if sock is None:
            self._sample(self._dialling)
        else:
            self._sample(sock)
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
        ready = getattr(self._paho, "ready_socket", None)
        theirs: Any = self._paho.socket()
        for one in {sock, ready, theirs} - {None}:
            with contextlib.suppress(OSError):
                one.close()
        if not self._accepted.done():
            self._accepted.set_exception(LinkError(cause))
            self._accepted.exception()  # retrieved, should nobody wait any more
        self._on_lost()

    def _sample(self, sock: Any) -> None:
        """Take the kernel's counts of the socket; without one, what is known of packets."""
        self._bytes.out = max(self._bytes.out, self._packet_bytes_out)
        self._bytes.sample(sock)


def _properties(packet_type: int) -> Properties:
    return Properties(packet_type)  # type: ignore[no-untyped-call]  # paho has no types there
