"""Configuration of the edge: every key a gateway reads, declared once.

Defaults suit a small ARM board with an SD card and a link that may be away for weeks.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.config import section, setting

__all__ = ["CaptureConfig", "JournalConfig", "LaneConfig"]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
POLICIES = ("refuse", "drop-oldest")
DURABILITIES = ("power-loss", "process-crash")


@dataclass(slots=True, frozen=True)
class LaneConfig:
    """Limits of one lane of the journal and what happens at them."""

    bytes_max: int = setting(
        0,
        unit="bytes",
        minimum=0,
        help="Most bytes of readings this lane keeps; 0 = only the limit of the whole journal.",
    )
    age_max_s: float = setting(
        0,
        unit="s",
        minimum=0,
        help="Readings older than this are dropped with a tombstone; 0 = kept however old.",
    )
    policy: str = setting(
        "refuse",
        choices=POLICIES,
        help="At a byte or disk limit: refuse new publishes, or drop the oldest readings "
        "and record the loss in a tombstone.",
    )


@dataclass(slots=True, frozen=True)
class JournalConfig:
    """The journal: how durable, how large, how often it is written."""

    durability: str = setting(
        "power-loss",
        choices=DURABILITIES,
        help="What an acknowledged reading survives: power-loss syncs every commit to the disk; "
        "process-crash leaves it to the system, and a power cut may take the last seconds.",
    )
    commit_window_ms: float = setting(
        2,
        unit="ms",
        minimum=0,
        maximum=10_000,
        help="Least time from one commit to the next: more of it wears the card less; a publish "
        "after a pause is committed at once whatever the window.",
    )
    file_bytes_max: int = setting(
        4 * GIB,
        unit="bytes",
        minimum=16 * MIB,
        help="Most bytes the journal's files take on the disk, all lanes and log together.",
    )
    disk_reserve_bytes: int = setting(
        256 * MIB,
        unit="bytes",
        minimum=0,
        help="Bytes of the file system that the journal leaves free for everything else.",
    )
    tail_bytes_max: int = setting(
        8 * MIB,
        unit="bytes",
        minimum=0,
        help="Bytes of recent commits kept in memory, so that the uplink need not read the disk.",
    )
    waiting_bytes_max: int = setting(
        8 * MIB,
        unit="bytes",
        minimum=64 * KIB,
        help="Bytes of publishes that may wait for a commit before the broker stops reading.",
    )
    dead_letters_bytes_max: int = setting(
        16 * MIB,
        unit="bytes",
        minimum=0,
        help="Bytes of refused batches kept for inspection; the oldest go first.",
    )
    urgent: LaneConfig = section(LaneConfig, help="The lane that always goes up first.")
    live: LaneConfig = section(LaneConfig, help="The lane of all other captured readings.")


@dataclass(slots=True, frozen=True)
class CaptureConfig:
    """Which publishes become readings, and in which lane."""

    topics: tuple[str, ...] = setting(
        ("#",),
        help="Topic filters of what is captured and goes up; '#' leaves out topics "
        "that begin with '$'.",
    )
    ignore: tuple[str, ...] = setting(
        (), help="Topic filters of what stays local although 'topics' matches it."
    )
    urgent: tuple[str, ...] = setting(
        (), help="Topic filters of captured readings that go in the urgent lane."
    )
