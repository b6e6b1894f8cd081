"""`BrokerAccess`: everything `[access]` says, as the broker's `Access`.

Who a client is: enhanced authentication has proven it, or its certificate, or the password file, or
a plugin; else it is anonymous, and `access.anonymous` decides. What it may do: rules, then topic
plugins. A verdict on publishing is kept by the connection's routes until `Broker.access_changed`,
one of a plugin here as well, with the client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog

from mqtt.broker.access.config import AccessConfig
from mqtt.broker.access.enhanced import AuthMethod
from mqtt.broker.access.passwords import PasswordFileError, Passwords
from mqtt.broker.access.plugins import Plugins, PluginsError
from mqtt.broker.access.rules import Identity, RuleSet
from mqtt.broker.access.scram import ScramSha256
from mqtt.broker.seams import PENDING, ClientInfo
from mqtt.reason_codes import ReasonCode

__all__ = ["AccessError", "BrokerAccess"]

_VERDICTS_MAX: Final = 2000  # of plugins, kept a client

log = structlog.get_logger(component="access")


class AccessError(Exception):
    """Access that cannot be set up; `str()` is one line."""


@dataclass(slots=True)
class _Known:
    """What is remembered of one client while it is connected."""

    identity: Identity
    line: str | None = None  # of the password file, when it vouched
    verdicts: dict[tuple[str, str], int] | None = None  # plugins': action, topic; None for none
    sources: _Sources | None = None  # where the verdicts come from


@dataclass(slots=True)
class _Sources:
    """What one configuration is made into."""

    config: AccessConfig
    rules: RuleSet
    passwords: Passwords | None
    scram: ScramSha256 | None
    plugins: Plugins | None


class BrokerAccess:
    """Access as configured; made by `open`.

    Attributes:
        auth_methods: Enhanced authentication by name; changes on `reload`.
    """

    def __init__(self, sources: _Sources) -> None:
        self._sources = sources
        self.auth_methods: dict[str, AuthMethod] = {}
        self._take(sources)

    @classmethod
    async def open(cls, config: AccessConfig) -> BrokerAccess:
        """Read what the configuration names.

        Raises:
            AccessError: a file or plugin cannot be used.
        """
        return cls(await _read(config))

    async def reload(self, config: AccessConfig) -> None:
        """Take another configuration, or the same with files that have changed.

        The caller tells the broker, which forgets its verdicts.

        Raises:
            AccessError: a file or plugin cannot be used; everything stays as it was.
        """
        before, after = self._sources, await _read(config)
        self._take(after)
        await _close(before)

    async def close(self) -> None:
        """Let plugins end."""
        await _close(self._sources)

    def _take(self, sources: _Sources) -> None:
        self._sources = sources
        self.auth_methods.clear()
        if sources.scram is not None:
            self.auth_methods[sources.scram.name] = sources.scram

    # -- who it is ----------------------------------------------------------------------------

    async def connect(self, client: ClientInfo, password: bytes | None) -> int:
        """Return 0 when the client may connect, else a CONNACK reason code."""
        known = _Known(Identity(client.client_id, None, client.certificate_name, client.is_local))
        code = await self._identify(client, password, known)
        if code:
            return code
        if not known.identity.authenticated and not self._admits_anonymous(client):
            return int(ReasonCode.NOT_AUTHORIZED)
        if self._sources.config.client_id_bound and not known.identity.owns_client_id():
            return int(ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
        client.access = known
        return 0

    async def _identify(self, client: ClientInfo, password: bytes | None, known: _Known) -> int:
        """Find out who the client is; return why it is not who it says, 0 otherwise."""
        sources = self._sources
        passwords, plugins = sources.passwords, sources.plugins
        user = client.username
        if client.auth_method:
            self._vouch(client, known, user)
            return 0
        if passwords is not None and user is not None:
            passwords.refresh()
            line = passwords.line(user)
            asks_plugins = line is None and plugins is not None and plugins.authenticates
            if not asks_plugins:
                if passwords.busy():
                    return int(ReasonCode.SERVER_BUSY)
                if not await passwords.verify(user, password or b""):
                    return int(ReasonCode.BAD_USER_NAME_OR_PASSWORD)
                known.line = line
                self._vouch(client, known, user)
                return 0
        if plugins is not None and plugins.authenticates:
            verdict = await plugins.authenticate(client, password)
            if verdict is False:
                return int(ReasonCode.BAD_USER_NAME_OR_PASSWORD)
            if verdict and not plugins.is_anonymous(client):
                self._vouch(client, known, user)
            elif verdict:
                client.state["amqtt-anonymous"] = True
        return 0

    def _vouch(self, client: ClientInfo, known: _Known, user: str | None) -> None:
        known.identity = Identity(client.client_id, user, client.certificate_name, client.is_local)

    def _admits_anonymous(self, client: ClientInfo) -> bool:
        """Whether a client that nothing vouches for may connect; a plugin may have said so."""
        anonymous = self._sources.config.anonymous
        if anonymous == "always" or client.state.pop("amqtt-anonymous", False):
            return True
        return anonymous == "loopback" and client.is_local

    def still_knows(self, client: ClientInfo) -> bool:
        """Return False when a connected client would not get in any more: for after a reload."""
        sources = self._sources
        known: _Known | None = client.access
        if known is None:
            return False
        identity = known.identity
        if sources.config.client_id_bound and not identity.owns_client_id():
            return False
        if client.auth_method:
            return sources.scram is not None and sources.scram.knows(identity.user)
        if known.line is not None:
            return sources.passwords is not None and (
                sources.passwords.line(identity.user) == known.line
            )
        plugins = sources.plugins
        if identity.user is not None:  # by the word of a plugin
            return plugins is not None and plugins.authenticates
        return identity.name is not None or self._admits_anonymous(client) or plugins is not None

    # -- what it may do -----------------------------------------------------------------------

    @property
    def restricts_publishing(self) -> bool:
        """Whether anything could be refused: without, clients share their routes."""
        plugins = self._sources.plugins
        return bool(self._sources.rules) or (plugins is not None and plugins.filters_topics)

    def publish(self, client: ClientInfo, topic_name: str) -> int:
        """Return 0 when the client may publish to a topic; PENDING: `decide` has to say."""
        return self._verdict(client, "publish", topic_name)

    def subscribe(self, client: ClientInfo, topic_filter: str) -> int:
        """Return 0 when the client may subscribe to a filter; PENDING: `decide` has to say."""
        return self._verdict(client, "subscribe", topic_filter)

    def _verdict(self, client: ClientInfo, action: str, topic: str) -> int:
        known: _Known = client.access
        sources = self._sources
        if not sources.rules.allows(known.identity, action, topic):
            return int(ReasonCode.NOT_AUTHORIZED)
        if sources.plugins is None or not sources.plugins.filters_topics:
            return 0
        if known.sources is not sources or known.verdicts is None:
            known.sources = sources  # the plugins may say something else than those of before
            known.verdicts = {}
        return known.verdicts.get((action, topic), PENDING)

    async def decide(self, client: ClientInfo, action: str, topic: str) -> int:
        """Ask the topic plugins, and remember what they said while the client is connected."""
        known: _Known = client.access
        sources = self._sources
        if sources.plugins is None:
            return 0
        allowed = await sources.plugins.allows(client, action, topic)
        code = 0 if allowed else int(ReasonCode.NOT_AUTHORIZED)
        if known.sources is not sources or known.verdicts is None:
            known.verdicts = {}
        if len(known.verdicts) >= _VERDICTS_MAX:
            known.verdicts.clear()
        known.sources = sources
        known.verdicts[action, topic] = code
        return code


async def _read(config: AccessConfig) -> _Sources:
    passwords = scram = plugins = None
    try:
        if config.password_file is not None:
            passwords = Passwords(config.password_file, _kept)
        if config.scram_file is not None:
            scram = ScramSha256(config.scram_file, _kept)
        if config.plugins:
            plugins = await Plugins.open(config.plugins)
    except (PasswordFileError, PluginsError) as error:
        if passwords is not None:
            passwords.close()
        raise AccessError(str(error)) from None
    return _Sources(config, RuleSet(config), passwords, scram, plugins)


async def _close(sources: _Sources) -> None:
    if sources.passwords is not None:
        sources.passwords.close()
    if sources.plugins is not None:
        await sources.plugins.close()


def _kept(problem: str) -> None:
    """Tell that a changed file of users is not used."""
    log.error("access_users_kept", reason=problem)
