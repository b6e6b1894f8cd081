"""What a simulation does, declared once: `SimConfig`, its bounds, and the broker's address.

Invariant: a `SimConfig` that exists is consistent; `__post_init__` refuses the rest with one line.
A run is bounded by `duration_s`, by `count`, or by the end of a replayed trace, unless all of
them are off: then it ends when its stop event is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from runtime.config import setting

__all__ = ["PROFILES", "Address", "SimConfig", "SimError"]

PROFILES = ("mixed", "zigbee2mqtt", "tasmota", "shelly", "esphome", "owntracks")
DEFAULT_INTERVAL_S = 5.0  # between two readings of a device when no rate is given
_MQTT_PORT = 1883


class SimError(Exception):
    """A simulation that cannot go on; `str()` is one line: what, where, what to do."""


@dataclass(slots=True, frozen=True)
class Address:
    """Where the broker listens and who the devices say they are."""

    host: str
    port: int
    username: str | None = None
    password: bytes | None = None

    @classmethod
    def of(cls, url: str) -> Address:
        """Parse `mqtt://[user[:password]@]host[:port]`; raises ValueError with what is wrong."""
        if "://" not in url:
            url = f"mqtt://{url}"
        parts = urlsplit(url)
        if parts.scheme not in {"mqtt", "tcp"}:
            raise ValueError(f"broker scheme '{parts.scheme}' is not known; use mqtt://host:port")
        try:
            port = parts.port or _MQTT_PORT
        except ValueError:
            raise ValueError(f"broker port in '{parts.netloc}' is not 1-65535") from None
        if not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"broker '{url}' is not an address; use mqtt://host:port")
        password = unquote(parts.password).encode() if parts.password is not None else None
        username = unquote(parts.username) if parts.username else None
        return cls(parts.hostname, port, username, password)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt://{host}:{self.port}"


@dataclass(slots=True, frozen=True)
class SimConfig:
    """A fleet, what it says, how it behaves, and against what the outcome is checked."""

    broker: str = setting(
        "mqtt://127.0.0.1:1883", help="Broker to load, mqtt://[user:password@]host:port."
    )
    devices: int = setting(50, minimum=1, maximum=1_000_000, help="Simulated devices (profiles).")
    profile: str = setting("mixed", choices=PROFILES, help="What the devices are and say.")
    rate_per_s: float = setting(
        0.0,
        minimum=0,
        flag="--rate",
        help="Readings a second of all devices together; 0 = one a device every 5 s.",
    )
    replay: Path | None = setting(
        None, help="Send a trace instead: .cborseq, .jsonl or .csv, also with .zst."
    )
    replay_loops: int = setting(1, minimum=1, help="Times to send the trace, end to end.")
    group: str = setting(
        "device", choices=("device", "topic"), help="A replayed device is a device or one topic."
    )
    keep_qos: bool = setting(False, help="Replay with the trace's own QoS and retain flags.")
    topic_prefix: str = setting(
        "devices/{client}/", help="Put before each topic; {client} is the client id; may be empty."
    )
    client_prefix: str = setting(
        "", help="Put before each client id, so that several simulations can share a broker."
    )
    speed: float = setting(
        1.0, minimum=0, help="Simulated seconds a second; 0 = as fast as the windows allow."
    )
    duration_s: float = setting(
        60.0, minimum=0, unit="s", flag="--duration", help="Stop sending after; 0 = no limit."
    )
    count: int = setting(0, minimum=0, help="Stop after so many readings in all; 0 = no limit.")
    qos: int = setting(1, minimum=0, maximum=2, help="QoS of every publish.")
    protocol_version: int = setting(5, minimum=4, maximum=5, help="4 = MQTT 3.1.1, 5 = MQTT 5.0.")
    clean_start: bool = setting(True, help="False keeps each device's session over reconnects.")
    keep_alive_s: int = setting(
        60, minimum=0, maximum=65535, unit="s", help="Keep-alive of each connection; 0 = off."
    )
    connections: int = setting(
        0, minimum=0, help="Connections the devices share; 0 = one connection a device."
    )
    window: int = setting(
        8, minimum=1, maximum=65535, help="Unacknowledged publishes a connection may have."
    )
    ramp_s: float = setting(0.0, minimum=0, unit="s", help="Spread the first connects over.")
    churn_per_s: float = setting(
        0.0, minimum=0, help="Connections cut and made again each second, without good-bye."
    )
    storm_at_s: float = setting(
        0.0, minimum=0, unit="s", help="Cut every connection at this time; 0 = never."
    )
    storm_every_s: float = setting(
        0.0, minimum=0, unit="s", help="Repeat the storm at this interval; 0 = once."
    )
    stamp: bool = setting(True, help="Add a stamp to payloads that can carry one.")
    seed: int = setting(1, minimum=0, maximum=2**63 - 1, help="Same seed, same payloads.")
    start_s: float = setting(
        0.0, minimum=0, unit="s", help="Simulated time at the start, since 1970; 0 = now."
    )
    connect_timeout_s: float = setting(
        15.0, minimum=0.1, unit="s", help="Give up when no connection was made in."
    )
    drain_timeout_s: float = setting(
        10.0, minimum=0, unit="s", help="Wait for the last acknowledgements."
    )
    verify: str = setting("", help="Check what was stored: path of storage.db, or http(s) URL.")
    verify_timeout_s: float = setting(
        60.0,
        minimum=0,
        unit="s",
        help="Give up when no acknowledged reading was stored in.",
    )
    report: Path | None = setting(None, help="Write the report as JSON to this file.")

    def __post_init__(self) -> None:
        Address.of(self.broker)
        prefix = self.topic_prefix.replace("{client}", "")
        if any(character in prefix for character in "+#{}\0"):
            raise ValueError(
                f"topic_prefix '{self.topic_prefix}' may hold no + # or braces beside {{client}}"
            )
        if self.storm_every_s and not self.storm_at_s:
            raise ValueError("storm_every_s needs storm_at_s, the time of the first storm")
        if self.replay is not None and self.count and self.replay_loops > 1:
            raise ValueError("count and replay_loops both end a replay; give one of them")

    @property
    def address(self) -> Address:
        """The broker's address, parsed."""
        return Address.of(self.broker)

    @property
    def device_rate_per_s(self) -> float:
        """Readings a second of one generated device."""
        return self.rate_per_s / self.devices if self.rate_per_s else 1 / DEFAULT_INTERVAL_S
