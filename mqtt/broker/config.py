"""The broker's settings: limits, times, sizes; defaults hold on a gateway with 1 GB of memory."""

from __future__ import annotations

from dataclasses import dataclass

from mqtt.server_events import ServerLimits
from mqtt.session_policy import DROP_NEWEST, DROP_OLDEST, REFUSE
from runtime.config import setting

__all__ = ["BrokerConfig"]


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """What the MQTT broker allows its clients."""

    connections_max: int = setting(
        10_000, help="Clients connected at once; more are refused as busy.", minimum=1
    )
    connect_timeout_s: float = setting(
        10.0, help="How long a new connection may take to send CONNECT.", unit="s", minimum=0.1
    )
    keep_alive_max_s: int = setting(
        0,
        help="Longest keep-alive; a v5 client that asks for more or none is told this. 0 = any.",
        unit="s",
        minimum=0,
        maximum=65535,
    )
    maximum_packet_size_bytes: int = setting(
        1 << 20, help="Largest MQTT packet taken.", unit="bytes", minimum=256, maximum=268_435_460
    )
    receive_maximum: int = setting(
        1024,
        help="QoS 1 and 2 publishes a client may have unacknowledged.",
        minimum=1,
        maximum=65535,
    )
    topic_alias_maximum: int = setting(
        64, help="Topic aliases a client may set.", minimum=0, maximum=65535
    )
    topic_aliases_sent_max: int = setting(
        16, help="Topic aliases the broker sets on one connection.", minimum=0, maximum=65535
    )
    topic_levels_max: int = setting(
        128, help="Levels of a topic name or filter.", minimum=1, maximum=65535
    )
    topic_bytes_max: int = setting(
        65_535,
        help="Length of a topic name or filter.",
        unit="bytes",
        minimum=1,
        maximum=65_535,
    )
    subscriptions_max: int = setting(
        10_000, help="Subscriptions of one session; more are refused 0x97.", minimum=1
    )
    session_expiry_max_s: int = setting(
        30 * 86_400,
        help="Longest life of a session without a connection.",
        unit="s",
        minimum=0,
        maximum=0xFFFF_FFFF,
    )
    queue_messages_max: int = setting(
        10_000,
        help="QoS 1 and 2 messages that wait for one client; queue_full says what comes of more.",
        minimum=1,
        maximum=60_000,
    )
    queue_bytes_max: int = setting(
        16 << 20, help="Bytes that wait for one client.", unit="bytes", minimum=1024
    )
    queues_bytes_max: int = setting(
        64 << 20, help="Bytes that wait for all clients together.", unit="bytes", minimum=1024
    )
    queue_full: str = setting(
        REFUSE,
        choices=(REFUSE, DROP_OLDEST, DROP_NEWEST),
        help="What becomes of a QoS 1 or 2 message for a client whose queue is full: its publisher "
        "waits or is refused (0x97), or an acknowledged message is dropped and counted.",
    )
    queue_full_patience_s: float = setting(
        300.0,
        help="With 'refuse': how long a full queue may hold publishers up before its session is "
        "ended. 0 = for as long as the session lives.",
        unit="s",
        minimum=0,
    )
    sessions_max: int = setting(
        20_000, help="Sessions kept, clients away included; more are refused 0x97.", minimum=1
    )
    inflight_max: int = setting(
        100, help="Messages sent to one client without acknowledgement.", minimum=1, maximum=65535
    )
    retained_messages_max: int = setting(
        100_000, help="Retained messages; more are refused 0x97.", minimum=0
    )
    retained_bytes_max: int = setting(
        64 << 20, help="Bytes of all retained messages.", unit="bytes", minimum=0
    )
    write_buffer_bytes: int = setting(
        256 << 10,
        help="Unsent bytes of a client from which on it counts as slow: QoS 0 is dropped for it.",
        unit="bytes",
        minimum=1024,
    )
    slow_timeout_s: float = setting(
        30.0, help="A client that stays slow for longer is cut off.", unit="s", minimum=1
    )
    sys_interval_s: float = setting(
        10.0, help="How often $SYS topics are published; 0 = never.", unit="s", minimum=0
    )
    check_payload_format: bool = setting(
        False, help="Refuse payloads marked as UTF-8 that are not (0x99)."
    )

    def limits(self) -> ServerLimits:
        """Return what of this concerns one connection machine."""
        return ServerLimits(
            maximum_packet_size=self.maximum_packet_size_bytes,
            receive_maximum=self.receive_maximum,
            topic_alias_maximum=self.topic_alias_maximum,
            topic_aliases_sent_max=self.topic_aliases_sent_max,
            connect_timeout_s=self.connect_timeout_s,
            check_payload_format=self.check_payload_format,
        )
