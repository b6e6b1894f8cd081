"""What a listener is told: where, by which transport, with which certificate, within which limits.

Defaults hold on a gateway with 1 GB of memory. Rates are a token bucket's: so many a second on
average, a burst on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from runtime.config import setting

__all__ = ["ListenerConfig", "is_loopback"]

TRANSPORTS = ("tcp", "tls", "ws", "wss", "unix")
CLIENT_CERTIFICATES = ("none", "optional", "required")
CERTIFICATE_NAMES = ("cn", "san")
_DEFAULT_PORTS = {"tcp": 1883, "tls": 8883, "ws": 8083, "wss": 8084, "unix": 0}
_ADDRESS_MAX = 64  # characters, and room for an interface's name


def is_loopback(host: str) -> bool:
    """Return True for an address or name that only this machine reaches."""
    if host == "localhost":
        return True
    may_be = (":" in host or host.startswith("127.")) and len(host) <= _ADDRESS_MAX
    return may_be and _is_loopback_address(host)


@lru_cache(maxsize=256)  # each client that connects asks
def _is_loopback_address(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:  # some name, which may look like an address: 127.example.org
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """One way in."""

    transport: str = setting(
        "tcp",
        choices=TRANSPORTS,
        help="tcp; tls; ws and wss: MQTT over WebSocket, without and with TLS; unix: a socket "
        "in the file system.",
    )
    host: str = setting(
        "127.0.0.1",
        help="Address to listen on: 0.0.0.0 for all of IPv4, :: for all of IPv6, or a name.",
    )
    port: int = setting(
        -1,
        minimum=-1,
        maximum=65_535,
        help="Port; 0 takes a free one, -1 the usual one: tcp 1883, tls 8883, ws 8083, wss 8084.",
    )
    path: Path | None = setting(None, help="The socket's file, for transport unix.")
    unix_mode: str = setting("0660", help="Permissions of the socket's file, as octal digits.")
    websocket_path: str = setting(
        "/mqtt", help="The only path at which WebSockets are accepted; empty accepts any."
    )
    websocket_origins: tuple[str, ...] = setting(
        (),
        help="Web pages, as https://host[:port], whose scripts may connect; '*' for all. Without "
        "any, only pages served by the same host name. Clients that are no browsers are not asked.",
    )
    proxy_protocol: bool = setting(
        False,
        help="Expect a PROXY protocol v2 header before anything else, as load balancers send it. "
        "Whoever reaches the port can claim any address, so open it to the balancer only.",
    )
    tls_cert_file: Path | None = setting(
        None, help="The server's certificate chain, as PEM; read again when it changes."
    )
    tls_key_file: Path | None = setting(
        None, help="The key of that certificate, as PEM; may lie in the same file."
    )
    tls_ca_file: Path | None = setting(
        None, help="Authorities whose client certificates are trusted, as PEM."
    )
    tls_crl_file: Path | None = setting(
        None, help="Their lists of revoked certificates, as PEM; needed from each, if given."
    )
    tls_client_certificate: str = setting(
        "",
        help="Whether clients show a certificate: none, optional or required; empty: required "
        "when tls_ca_file is given.",
        choices=("", *CLIENT_CERTIFICATES),
    )
    tls_minimum: str = setting(
        "1.2", choices=("1.2", "1.3"), help="The oldest version of TLS that is spoken."
    )
    certificate_name: str = setting(
        "cn",
        choices=CERTIFICATE_NAMES,
        help="What of a client's certificate names it (%n in rules): the subject's common name, "
        "or its first alternative name (DNS, URI, e-mail or address).",
    )
    handshake_timeout_s: float = setting(
        10.0,
        unit="s",
        minimum=0.1,
        maximum=300,
        help="How long a PROXY header and a TLS handshake may take; CONNECT has "
        "broker.connect_timeout_s, WebSocket handshake included.",
    )
    connections_max: int = setting(
        0, minimum=0, help="Clients connected to this listener at once; 0 = as the broker."
    )
    half_open_max: int = setting(
        500,
        minimum=1,
        help="Connections that have not sent CONNECT; more wait to be accepted for a second, then "
        "the one that waits for longest is cut off.",
    )
    handshakes_max: int = setting(
        100, minimum=1, help="TLS handshakes at once; more wait in the system's queue."
    )
    address_connections_max: int = setting(
        0, minimum=0, help="Connections from one address at once; 0 = any number."
    )
    connect_rate_s: float = setting(
        0.0, minimum=0, help="New connections a second, burst of 2 s; more are cut off; 0 = any."
    )
    publish_rate_s: float = setting(
        0.0,
        minimum=0,
        help="Publishes a second from one client, burst of 2 s. Beyond it an MQTT 5 client is "
        "answered 0x97, a 3.1.1 client is not read from for a while; 0 = any.",
    )
    publish_bytes_s: float = setting(
        0.0,
        minimum=0,
        help="The same for bytes of publishes a second from one client; 0 = any.",
    )
    maximum_packet_size_bytes: int = setting(
        0,
        unit="bytes",
        minimum=0,
        maximum=268_435_460,
        help="Largest MQTT packet taken here; 0 = as the broker.",
    )

    def __post_init__(self) -> None:
        self._check_place()
        self._check_tls()

    def _check_place(self) -> None:
        if self.transport == "unix":
            if self.path is None:
                raise ValueError("transport unix needs 'path', the socket's file")
            if not 0 <= _octal(self.unix_mode) <= 0o777:
                raise ValueError(f"'unix_mode' {self.unix_mode!r} is not like 0660")
        elif self.path is not None:
            raise ValueError(f"'path' is for transport unix, not {self.transport}")
        if self.websocket_path and not self.websocket_path.startswith("/"):
            raise ValueError(f"'websocket_path' {self.websocket_path!r} does not begin with '/'")
        if 0 < self.maximum_packet_size_bytes < 256:
            raise ValueError("'maximum_packet_size_bytes' is less than 256")

    def _check_tls(self) -> None:
        named = [
            name
            for name in ("tls_cert_file", "tls_key_file", "tls_ca_file", "tls_crl_file")
            if getattr(self, name) is not None
        ]
        if not self.tls:
            if named:
                raise ValueError(f"'{named[0]}' is for transports tls and wss")
            return
        if self.tls_cert_file is None:
            raise ValueError(f"transport {self.transport} needs 'tls_cert_file'")
        if self.tls_ca_file is None:
            if self.client_certificate != "none":
                raise ValueError("'tls_client_certificate' needs 'tls_ca_file'")
            if self.tls_crl_file is not None:
                raise ValueError("'tls_crl_file' needs 'tls_ca_file'")

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return self.transport in ("tls", "wss")

    @property
    def websocket(self) -> bool:
        """Whether MQTT travels in WebSocket messages."""
        return self.transport in ("ws", "wss")

    @property
    def client_certificate(self) -> str:
        """Whether clients show a certificate: none, optional or required."""
        if self.tls_client_certificate:
            return self.tls_client_certificate
        return "required" if self.tls_ca_file is not None else "none"

    @property
    def bound_port(self) -> int:
        """The port to ask the system for."""
        return _DEFAULT_PORTS[self.transport] if self.port < 0 else self.port

    @property
    def mode(self) -> int:
        """Permissions of the Unix socket's file."""
        return _octal(self.unix_mode)

    @property
    def name(self) -> str:
        """What logs and error messages call it."""
        if self.transport == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.transport}://{host}:{self.bound_port}"

    @property
    def place(self) -> tuple[object, ...]:
        """What cannot change while it is open."""
        return (self.transport, self.host, self.port, self.path, self.proxy_protocol)

    @property
    def open_to_network(self) -> bool:
        """Whether other machines can reach it."""
        return self.transport != "unix" and not is_loopback(self.host)


def _octal(text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        return -1
