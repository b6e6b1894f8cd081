"""Rules on topics, as a list in which the first match decides. Pure.

A rule that allows a subscription must cover every topic the filter can match; a rule that denies
one refuses it when there is any topic in common, so that `#` does not slip past a denied branch.
MQTT 5.0 section 4.7 says what filters match.
What the cloud sends down to one gateway is for that gateway alone, whatever the rules say.
Invariant: a client id or name with a wildcard or a `/` in it never widens what a rule allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from mqtt.broker.access.config import AccessConfig, RuleConfig
from mqtt.broker.seams import ClientInfo

__all__ = ["Identity", "RuleSet", "covers", "overlaps", "speaks_for"]

_GATEWAY_PREFIX: Final = "tidegate-"  # of a gateway's client id: docs/link-format.md
_DOWN: Final = ["tidegate", "v1", "down"]
_BIND: Final = ("-", ".", ":", "_")

_OWN_DEVICES: Final = RuleConfig(topics=("devices/%c/#",))
_PRESETS: Final[dict[str, tuple[RuleConfig, ...]]] = {
    "open": (),
    "own-devices": (_OWN_DEVICES,),
    "gateways": (
        RuleConfig(action="publish", topics=("tidegate/v1/up/%g", "tidegate/v1/ctl/%g")),
        RuleConfig(action="subscribe", topics=("tidegate/v1/down", "tidegate/v1/down/%g")),
        RuleConfig(effect="deny", action="publish", topics=("tidegate/#",)),
        _OWN_DEVICES,
        RuleConfig(action="subscribe", who=("authenticated", "local"), topics=("#", "$SYS/#")),
    ),
}


@dataclass(slots=True, frozen=True)
class Identity:
    """Whom a client has been found to be."""

    client_id: str
    user: str | None = None  # None: no password or plugin has vouched for one
    name: str | None = None  # of a verified certificate
    is_local: bool = False

    @property
    def authenticated(self) -> bool:
        """Whether anything has vouched for the client."""
        return self.user is not None or self.name is not None

    @property
    def gateway(self) -> str:
        """The id of the gateway this client may be."""
        return self.name or self.user or self.client_id.removeprefix(_GATEWAY_PREFIX)

    def owns_client_id(self) -> bool:
        """Return True when the client id is the client's own by its user's or its name."""
        client_id = self.client_id
        return any(
            client_id in (known, _GATEWAY_PREFIX + known)
            or client_id.startswith(tuple(known + sign for sign in _BIND))
            for known in (self.user, self.name)
            if known
        )


def speaks_for(gateway: str, client: ClientInfo) -> bool:
    """Return True when a client may be a gateway: by name, user or, as all may claim, client id."""
    client_id = client.client_id.removeprefix(_GATEWAY_PREFIX)
    known = (client.certificate_name, client.username, client_id)
    # a connection beside the uplink's own has a purpose behind the gateway's id
    return gateway in known or (
        client_id != client.client_id and client_id.startswith(f"{gateway}-")
    )


class RuleSet:
    """The rules of a configuration.

    Args:
        config: Rules and preset.
    """

    def __init__(self, config: AccessConfig) -> None:
        self._rules = (*config.rules, *_PRESETS[config.preset])

    def __bool__(self) -> bool:
        return bool(self._rules)

    def allows(self, who: Identity, action: str, topic: str) -> bool:
        """Return True when a client may publish to a topic or subscribe to a filter.

        Args:
            who: The client.
            action: "publish" or "subscribe".
            topic: A topic name, or a filter without `$share/{name}/`.
        """
        levels = topic.split("/")
        if action == "subscribe" and levels[:3] == _DOWN and not _may_hear(who, levels[3:]):
            return False
        if not self._rules:
            return True
        for rule in self._rules:
            if rule.action not in (action, "all") or not _concerns(rule, who):
                continue
            allow = rule.effect == "allow"
            matches = covers if allow else overlaps
            for pattern in rule.topics:
                expanded = _expand(pattern, who, widen=not allow)
                if expanded is not None and matches(expanded, levels):
                    return allow
        return False


def _may_hear(who: Identity, below: Sequence[str]) -> bool:
    """Return True when a filter below `tidegate/v1/down` asks for nobody else's messages.

    A wildcard there gets none: mqtt/server_routes.py.
    """
    if len(below) != 1 or below[0] in ("+", "#"):
        return True
    client = ClientInfo(who.client_id, 5, who.user, certificate_name=who.name)
    return speaks_for(below[0], client)


def _concerns(rule: RuleConfig, who: Identity) -> bool:
    return any(_is(word, who) for word in rule.who)


def _is(word: str, who: Identity) -> bool:
    if word == "*":
        return True
    if word == "local":
        return who.is_local
    if word in ("anonymous", "authenticated"):
        return who.authenticated is (word == "authenticated")
    kind, _, pattern = word.partition(":")
    value = {"user": who.user, "client": who.client_id, "name": who.name}[kind]
    return value is not None and fnmatchcase(value, pattern.replace("[", "[[]"))


def _expand(pattern: str, who: Identity, *, widen: bool) -> list[str] | None:
    """Return a pattern's levels with its variables filled in.

    Args:
        pattern: A topic filter with variables.
        who: Fills them.
        widen: What to do with a value that cannot stand in one level: True puts `#` there, for a
            rule that denies; False gives the pattern up: None.
    """
    if "%" not in pattern:
        return pattern.split("/")
    levels: list[str] = []
    values = {"%c": who.client_id, "%u": who.user, "%n": who.name, "%g": who.gateway}
    for level in pattern.split("/"):
        for variable, value in values.items():
            if variable not in level:
                continue
            if not value or any(sign in value for sign in "+#/\0") or value.startswith("$"):
                return [*levels, "#"] if widen else None
            # A value may hold a variable's letters: it is not looked at again.
            level = level.replace(variable, value.replace("%", "\0"))  # noqa: PLW2901
        levels.append(level.replace("\0", "%"))
    return levels


def covers(pattern: Sequence[str], topic: Sequence[str]) -> bool:
    """Return True when every topic that `topic` matches is matched by `pattern`; both in levels."""
    for index, level in enumerate(pattern):
        if level == "#":
            return index > 0 or not topic[0].startswith("$")
        if index >= len(topic):
            return False
        other = topic[index]
        if level == "+":
            if other == "#" or (index == 0 and other.startswith("$")):
                return False
        elif level != other:
            return False
    return len(topic) == len(pattern)


def overlaps(pattern: Sequence[str], topic: Sequence[str]) -> bool:
    """Return True when some topic is matched by both filters; both in levels."""
    if _hidden(pattern[0], topic[0]) or _hidden(topic[0], pattern[0]):
        return False
    for one, other in zip(pattern, topic, strict=False):
        if "#" in (one, other):
            return True
        if "+" not in (one, other) and one != other:
            return False
    shorter, longer = sorted((pattern, topic), key=len)
    rest = longer[len(shorter) :]
    return not rest or list(rest) == ["#"]


def _hidden(wildcard: str, level: str) -> bool:
    """Whether a first level is one that a wildcard does not match [MQTT-4.7.2-1]."""
    return wildcard in ("#", "+") and level.startswith("$")
