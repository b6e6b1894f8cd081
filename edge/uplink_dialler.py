"""Where the uplink connects to, and with which credentials and certificates.

These are what a reload may change while the uplink runs; what concerns batches and lanes stays as
it was at the start.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import replace

import structlog

from bridge.errors import LinkError
from edge.uplink_addresses import Addresses
from edge.uplink_config import Endpoint, UplinkConfig
from edge.uplink_connection import ConnectionOptions, UplinkConnection
from edge.uplink_socket import tls_context
from runtime.logs import limited

__all__ = ["RELOADABLE_KEYS", "Dialler"]

# what a reload takes while the uplink runs
RELOADABLE_KEYS = (
    "endpoints",
    "username",
    "password",
    "tls_ca_file",
    "tls_cert_file",
    "tls_key_file",
    "keep_alive_s",
    "connect_timeout_s",
)

_LOG_EVERY_S = 30.0


class Dialler:
    """Makes the connections of one uplink.

    Args:
        config: Endpoints, credentials, certificates, times.
        gateway: The gateway's id.
        purpose: Ends the client id of connections beside the uplink's own.

    Attributes:
        endpoints: Where to, in the order they are tried.
        purpose: As above, of the connections to be made.
    """

    def __init__(self, config: UplinkConfig, gateway: str, purpose: str = "") -> None:
        self.endpoints = [Endpoint.parse(url) for url in config.endpoints]
        self._addresses = {endpoint: Addresses() for endpoint in self.endpoints}
        self._config = config
        self._made_by = config  # the newest connection
        self._gateway = gateway
        self.purpose = purpose
        self._tls: ssl.SSLContext | None = None  # the last that could be made
        self._log = structlog.get_logger(component="uplink").bind(gateway=gateway)

    def reconfigure(self, config: UplinkConfig) -> bool:
        """Take what RELOADABLE_KEYS names from `config`; return True when anything is new."""
        changes = {key: getattr(config, key) for key in RELOADABLE_KEYS}
        after = replace(self._config, **changes)
        if after == self._config:
            return False
        self._config = after
        self.endpoints = [Endpoint.parse(url) for url in after.endpoints]
        known = self._addresses
        self._addresses = {one: known.get(one) or Addresses() for one in self.endpoints}
        return True

    def outdated(self, endpoint: Endpoint) -> bool:
        """Return True when the newest connection, to `endpoint`, would now be made otherwise."""
        same = replace(self._made_by, endpoints=()) == replace(self._config, endpoints=())
        return not same or endpoint not in self.endpoints

    def connection(
        self,
        endpoint: Endpoint,
        on_puback: Callable[[int, int, str], None],
        on_lost: Callable[[], None],
        on_control: Callable[[bytes, bool], None] = lambda _payload, _own: None,
    ) -> UplinkConnection:
        """Return a connection that is still to be dialled.

        Raises:
            LinkError: the certificate files cannot be used, and never could.
        """
        config = self._made_by = self._config
        options = ConnectionOptions(
            gateway=self._gateway,
            purpose=self.purpose,
            username=config.username,
            password=config.password,
            keep_alive_s=config.keep_alive_s,
            connect_timeout_s=config.connect_timeout_s,
            tls=self._tls_context() if endpoint.tls else None,
            addresses=self._addresses[endpoint],
        )
        return UplinkConnection(endpoint, options, on_puback, on_lost, on_control)

    def _tls_context(self) -> ssl.SSLContext:
        """Return a context made anew, so that renewed certificates are used.

        Files that cannot be used, half-written ones among them, leave the one of before in use.
        """
        try:
            self._tls = tls_context(self._config)
        except LinkError as error:
            if self._tls is None:
                raise
            limited(self._log, "certificates_kept", _LOG_EVERY_S).warning(
                "certificates_kept", reason=str(error)
            )
        return self._tls
