"""Configuration of commands to devices."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.devices import DeviceIds
from runtime.config import setting

__all__ = ["CommandsConfig"]

KIB = 1024


@dataclass(slots=True, frozen=True)
class CommandsConfig:
    """Publishes at the cloud that are meant for one device behind a gateway."""

    enabled: bool = setting(True, help="Take commands, keep them and send them to gateways.")
    topics: tuple[str, ...] = setting(
        ("devices/{device}/cmd/#",),
        help="Topic patterns of commands; what a pattern names is the device they are for.",
    )
    payload_bytes_max: int = setting(
        64 * KIB,
        unit="bytes",
        minimum=1,
        maximum=512 * KIB,
        help="Largest payload of a command; a larger one is refused.",
    )
    waiting_max: int = setting(
        10_000,
        minimum=1,
        help="Most commands without an outcome; beyond it new ones are refused.",
    )
    expiry_s: float = setting(
        86_400,
        unit="s",
        minimum=1,
        help="How long a command without a message expiry of its own is tried.",
    )
    kept_s: float = setting(
        604_800,
        unit="s",
        minimum=1,
        help="How long an outcome stays known, and a command id that comes again is dropped.",
    )
    retry_s: float = setting(
        15,
        unit="s",
        minimum=0.05,
        help="How long a connected gateway may take to say that it has a command, before it is "
        "sent again.",
    )

    def __post_init__(self) -> None:
        DeviceIds(self.topics)
