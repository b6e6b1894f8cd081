"""A broker with everything that is configured around it: access, listeners, and their reload.

    front = Front(settings, capture=journal, store=store, clock=clock)
    await front.start()          # broker and sessions; no port yet
    port = await front.listen()  # clients
    taken = await front.reload(other_settings)
    await front.stop()

What edge and cloud share of `[access]`, `[broker]`, `[[listeners]]` and the simple host and port.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from mqtt.broker.access.config import AccessConfig
from mqtt.broker.access.policy import AccessError, BrokerAccess
from mqtt.broker.broker import Broker
from mqtt.broker.bus import Bus
from mqtt.broker.config import BrokerConfig
from mqtt.broker.net.config import ListenerConfig
from mqtt.broker.net.listener import Listener
from mqtt.broker.net.tls import TlsError
from mqtt.broker.seams import Capture, Exchanges, Hooks, SessionStore
from runtime.clock import Clock
from runtime.service import reason_of

__all__ = ["Front", "FrontError", "FrontSettings"]

log = structlog.get_logger(component="broker")


class FrontError(Exception):
    """Something configured cannot be had; `str()` is one line."""


@dataclass(slots=True, frozen=True)
class FrontSettings:
    """The parts of a configuration that concern clients."""

    host: str  # of the simple listener; empty for none
    port: int
    broker: BrokerConfig
    access: AccessConfig
    listeners: tuple[ListenerConfig, ...] = ()

    def all_listeners(self) -> tuple[ListenerConfig, ...]:
        """Return the simple listener, if there is one, and the others."""
        if not self.host:
            return self.listeners
        return (ListenerConfig(host=self.host, port=self.port), *self.listeners)


class Front:
    """A broker, its access and its listeners.

    Args:
        settings: As configured.
        capture: Takes publishes that must be durable before they are acknowledged.
        store: Keeps sessions and retained messages.
        clock: Time.
        hooks: Told of clients that come and go.
        bus: The other nodes of a cluster.
        exchanges: The QoS 2 publishes that `capture` holds.

    Attributes:
        port: Of the first listener; 0 before `listen`.
    """

    def __init__(
        self,
        settings: FrontSettings,
        *,
        capture: Capture | None,
        store: SessionStore | None,
        clock: Clock,
        hooks: Hooks | None = None,
        bus: Bus | None = None,
        exchanges: Exchanges | None = None,
    ) -> None:
        self.port = 0
        self._settings = settings
        self._parts = (capture, store, hooks, clock, bus)
        self._exchanges = exchanges
        self._access: BrokerAccess | None = None
        self._broker: Broker | None = None

    @property
    def clustered(self) -> bool:
        """True when what is published here reaches subscribers at other nodes."""
        return self._parts[-1] is not None

    @property
    def broker(self) -> Broker:
        """The broker; there once `start` has set access up."""
        assert self._broker is not None
        return self._broker

    async def start(self) -> None:
        """Read access and sessions.

        Raises:
            FrontError: access cannot be set up.
            SessionStoreError: sessions cannot be read.
        """
        capture, store, hooks, clock, bus = self._parts
        try:
            self._access = await BrokerAccess.open(self._settings.access)
        except AccessError as error:
            raise FrontError(f"access: {error}") from None
        self._broker = Broker(
            self._settings.broker,
            capture=capture,
            store=store,
            access=self._access,
            hooks=hooks,
            clock=clock,
            auth_methods=self._access.auth_methods,
            bus=bus,
            exchanges=self._exchanges,
        )
        await self.broker.start()

    async def listen(self) -> int:
        """Let clients in; return the port of the first listener.

        Raises:
            FrontError: an address or a certificate cannot be had.
        """
        for index, config in enumerate(self._settings.all_listeners()):
            port = await self._open(config)
            if index == 0:
                self.port = port
        self._warn()
        return self.port

    async def stop(self) -> None:
        """End the connections, then the broker, then plugins; also after a failed start."""
        if self._broker is not None:
            await self._broker.stop()
        if self._access is not None:
            await self._access.close()

    # -- reload -------------------------------------------------------------------------------

    async def reload(self, settings: FrontSettings) -> None:
        """Take other settings; clients that they still allow notice nothing.

        Access, limits and certificates change in place; listeners that are new open and those that
        are gone close, their connections staying until they end by themselves.

        Raises:
            FrontError: something cannot be had. What comes before it in the order access, limits,
                listeners is in use, the rest is as it was.
        """
        assert self._access is not None
        try:
            await self._access.reload(settings.access)
        except AccessError as error:
            raise FrontError(f"access: {error}") from None
        self.broker.reconfigure(settings.broker)
        await self._reload_listeners(settings)
        before, self._settings = self._settings, settings
        gone, ended = await self.broker.recheck(self._access.still_knows)
        if before.access != settings.access or before.all_listeners() != settings.all_listeners():
            self._warn()
        log.info("mqtt_reloaded", clients_refused=gone, subscriptions_ended=ended)

    async def _reload_listeners(self, settings: FrontSettings) -> None:
        wanted = {config.place: config for config in settings.all_listeners()}
        open_now: dict[tuple[object, ...], Listener] = {
            listener.config.place: listener for listener in self.broker.listeners
        }
        for place, listener in open_now.items():
            if place not in wanted:
                listener.close()
                self.broker.listeners.remove(listener)
        await asyncio.sleep(0)  # an address is free when the loop has closed its socket
        for place, config in wanted.items():
            known = open_now.get(place)
            try:
                if known is not None:
                    known.reconfigure(config)
                else:
                    await self._open(config)
            except TlsError as error:
                raise FrontError(f"{config.name}: {error}; the one of before stays") from None

    async def _open(self, config: ListenerConfig) -> int:
        try:
            return await self.broker.open_listener(config)
        except TlsError as error:
            raise FrontError(f"mqtt: {config.name}: {error}") from None
        except (OSError, OverflowError) as error:
            where = config.path if config.path is not None else f"{config.host}:{config.bound_port}"
            advice = "file" if config.path is not None else "port"
            raise FrontError(
                f"mqtt: cannot listen on {where}: {reason_of(error)}; choose another {advice}"
            ) from None

    def _warn(self) -> None:
        """Say loudly when anybody at all may connect from the network."""
        open_places = [
            config.name
            for config in self._settings.all_listeners()
            if config.open_to_network and config.client_certificate != "required"
        ]
        if not open_places:
            return
        if self._settings.access.anonymous == "always":
            log.warning(
                "mqtt_open_to_everybody",
                listeners=open_places,
                reason="access.anonymous is 'always': whoever reaches these ports may connect "
                "without a password; see docs/security.md",
            )
        elif not self._settings.access.password_file and not (
            self._settings.access.plugins or self._settings.access.scram_file
        ):
            log.warning(
                "mqtt_only_local_clients",
                listeners=open_places,
                reason="clients from the network are refused: there is no access.password_file, "
                "client certificate or plugin to know them by, and access.anonymous is "
                f"{self._settings.access.anonymous!r}; see docs/security.md",
            )
