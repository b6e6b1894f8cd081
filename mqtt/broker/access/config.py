"""`[access]`: who may connect, and what they may do then.

Rules are looked at in order, those of the file before the preset's; the first that matches
decides. Where there is any rule or preset, what none matches is refused; with none, everybody who
may connect may do everything. docs/security.md explains it with examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mqtt.topics import topic_filter_fault
from runtime.config import setting, tables

__all__ = ["AccessConfig", "PluginConfig", "RuleConfig"]

ANONYMOUS = ("loopback", "always", "never")
PRESETS = ("open", "own-devices", "gateways")
_WHO_WORDS = ("*", "anonymous", "authenticated", "local")
_WHO_PREFIXES = ("user:", "client:", "name:")
_VARIABLES = ("%c", "%u", "%n", "%g")


@dataclass(frozen=True, slots=True)
class RuleConfig:
    """One rule."""

    topics: tuple[str, ...] = setting(
        help="Topic filters in which %c stands for the client id, %u for the user name, %n for "
        "the certificate's name, %g for the gateway's id.",
    )
    effect: str = setting("allow", choices=("allow", "deny"), help="What it says.")
    action: str = setting(
        "all", choices=("publish", "subscribe", "all"), help="What it says it of."
    )
    who: tuple[str, ...] = setting(
        ("*",),
        help="Whom it concerns: *, anonymous, authenticated, local (on this machine), user:NAME, "
        "client:ID, name:CERTIFICATE; NAME and the others may have * and ? in them.",
    )

    def __post_init__(self) -> None:
        for who in self.who:
            if who not in _WHO_WORDS and not who.startswith(_WHO_PREFIXES):
                raise ValueError(f"'who': {who!r} is none of {', '.join(_WHO_WORDS)}, user:NAME, "
                                 "client:ID, name:CERTIFICATE")  # fmt: skip
        for topic in self.topics:
            plain = topic
            for variable in _VARIABLES:
                plain = plain.replace(variable, "x")
            fault = topic_filter_fault(plain, shared=False)
            if fault is not None:
                raise ValueError(f"'topics': {topic!r}: {fault.detail}")


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """One of amqtt's plugins."""

    name: str = setting(
        help="The plugin's class, such as amqtt.plugins.authentication.FileAuthPlugin."
    )
    options: dict[str, Any] | None = setting(
        None, secret=True, help="The plugin's own settings, as amqtt documents them."
    )


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """Who may connect and what they may do."""

    anonymous: str = setting(
        "loopback",
        choices=ANONYMOUS,
        help="Who may connect without a password, certificate or plugin that knows them: clients "
        "on this machine only (loopback), everybody (always), or nobody (never).",
    )
    password_file: Path | None = setting(
        None,
        help="Users and their password hashes, as 'tidegate passwd' and amqtt write them; read "
        "again when it changes.",
    )
    scram_file: Path | None = setting(
        None,
        help="Users for MQTT 5's enhanced authentication by SCRAM-SHA-256, as "
        "'tidegate passwd --scram' writes them; read again when it changes.",
    )
    preset: str = setting(
        "open",
        choices=PRESETS,
        help="Ready-made rules behind those of the file: own-devices lets a client use "
        "devices/%c/# alone; gateways lets a gateway send its own batches alone, devices use "
        "devices/%c/#, and who is authenticated or local subscribe to all but tidegate/#.",
    )
    client_id_bound: bool = setting(
        False,
        help="A client id has to be the user's or certificate's name, or begin with it and one "
        "of - . : _, or be tidegate- and the name. Needed where rules rely on %c.",
    )
    rules: tuple[RuleConfig, ...] = tables(RuleConfig, help="Rules; the first match decides.")
    plugins: tuple[PluginConfig, ...] = tables(
        PluginConfig,
        help="amqtt's authentication and topic plugins; needs tidegate[plugins].",
    )
