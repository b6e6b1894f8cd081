"""amqtt's authentication and topic plugins in our broker, unchanged, through its PluginManager.

A plugin is asked once a CONNECT, and once a (client, topic, action); the caller keeps the verdict.
Answers are taken as amqtt takes them: authentication needs one True and no False, None abstains; a
topic needs no answer but True. The action "receive" is not asked: what may be subscribed to may be
received. amqtt is imported only when plugins are configured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from mqtt.broker.access.config import PluginConfig
from mqtt.broker.seams import ClientInfo

if TYPE_CHECKING:
    from amqtt.session import Session

__all__ = ["Plugins", "PluginsError"]

_NAMESPACE: Final = "tidegate.broker"
_SESSION: Final = "amqtt-session"  # in ClientInfo.state


class PluginsError(Exception):
    """Plugins that cannot be loaded; `str()` is one line."""


class Plugins:
    """The plugins of one configuration; made by `open`."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        kinds = _kinds()
        self.authenticates = any(isinstance(p, kinds[0]) for p in manager.plugins)
        self.filters_topics = any(isinstance(p, kinds[1]) for p in manager.plugins)

    @classmethod
    async def open(cls, configs: Sequence[PluginConfig]) -> Plugins:
        """Load plugins.

        Raises:
            PluginsError: amqtt is not installed, or a plugin is not there or cannot be configured.
        """
        try:
            from amqtt.broker import BrokerContext  # noqa: PLC0415 - only who has plugins loads it
            from amqtt.errors import PluginError, PluginLoadError  # noqa: PLC0415
            from amqtt.events import BrokerEvents  # noqa: PLC0415
            from amqtt.plugins.manager import PluginManager  # noqa: PLC0415
        except ImportError as error:
            raise PluginsError(
                f"access.plugins: {error}; install tidegate[plugins] for amqtt's plugins"
            ) from None
        context: Any = BrokerContext(None)  # there is no amqtt broker
        context.config = {"plugins": {config.name: config.options or {} for config in configs}}
        try:
            manager: Any = PluginManager(_NAMESPACE, context)
        except (PluginError, PluginLoadError) as error:
            cause = error.__cause__ or error
            one_line = " ".join(f"{type(cause).__name__}: {cause}".split())
            raise PluginsError(
                f"access.plugins: {str(error) or 'settings of a plugin'}: {one_line}"
            ) from None
        await manager.fire_event(BrokerEvents.PRE_START, wait=True)
        await manager.fire_event(BrokerEvents.POST_START, wait=True)
        return cls(manager)

    async def authenticate(self, client: ClientInfo, password: bytes | None) -> bool | None:
        """Return True for a client that is known, False for one that is not who it says.

        None: no plugin has an opinion. After True, `client.state` says whether it is anonymous.
        """
        session = _session(client, password)
        if session is None:
            return False
        results = await self._manager.map_plugin_auth(session=session)
        opinions = [result for result in results.values() if result is not None]
        return all(opinions) if opinions else None

    def is_anonymous(self, client: ClientInfo) -> bool:
        """Return True when a plugin has let the client in without knowing who it is."""
        session = client.state.get(_SESSION)
        return session is None or bool(session.is_anonymous) or not session.username

    async def allows(self, client: ClientInfo, action: str, topic: str) -> bool:
        """Return True when every topic plugin lets a client publish or subscribe to a topic."""
        from amqtt.contexts import Action  # noqa: PLC0415 - loaded by `open`

        session = _session(client, None)
        if session is None:
            return False
        results = await self._manager.map_plugin_topic(
            session=session, topic=topic, action=Action(action)
        )
        return all(results.values())

    async def close(self) -> None:
        """Let the plugins end."""
        from amqtt.events import BrokerEvents  # noqa: PLC0415 - loaded by `open`

        await self._manager.fire_event(BrokerEvents.PRE_SHUTDOWN, wait=True)
        await self._manager.close()


def _kinds() -> tuple[type, type]:
    from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin  # noqa: PLC0415

    return BaseAuthPlugin, BaseTopicPlugin


def _session(client: ClientInfo, password: bytes | None) -> Session | None:
    """Return a client as amqtt knows it; None when its password is not text, as amqtt wants it."""
    known: Session | None = client.state.get(_SESSION)
    if known is not None:
        return known
    from amqtt.session import Session  # noqa: PLC0415 - loaded by `open`

    session = Session()
    try:
        session.password = password.decode() if password is not None else None
    except UnicodeDecodeError:
        return None
    session.client_id = client.client_id
    session.username = client.username
    session.remote_address = client.address
    session.keep_alive = client.keep_alive_s
    session.clean_session = client.clean_start
    session.ssl_object = client.tls
    session.transitions.connect()
    client.state[_SESSION] = session
    return session
