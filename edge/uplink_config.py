"""Configuration of the link: where to, in what pieces, how patient, and what it may carry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bridge.link_budget import BudgetLimits, Window
from bridge.uplink_events import UplinkLimits
from runtime.config import section, setting

__all__ = ["BudgetConfig", "Endpoint", "UplinkConfig"]

KIB = 1024
MIB = 1024 * KIB


@dataclass(slots=True, frozen=True)
class Endpoint:
    """Where a cloud node takes batches."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Return the endpoint of `mqtt://HOST[:PORT]` (port 1883) or `mqtts://` (8883).

        Raises:
            ValueError: `url` is something else.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0 or not plain:
            raise ValueError(f"endpoint {url!r} is not mqtt://HOST:PORT or mqtts://HOST:PORT")
        tls = parts.scheme == "mqtts"
        return cls(parts.hostname, port or (8883 if tls else 1883), tls)


@dataclass(slots=True, frozen=True)
class BudgetConfig:
    """What a metered link may carry; days and times are UTC, bytes both ways, TCP/IP included."""

    day_bytes: int = setting(
        0, unit="bytes", minimum=0, help="Most bytes of one day; 0 = no limit."
    )
    month_bytes: int = setting(
        0, unit="bytes", minimum=0, help="Most bytes of one calendar month; 0 = no limit."
    )
    urgent_share: float = setting(
        0.1,
        minimum=0,
        maximum=0.9,
        help="Share of both budgets that only urgent readings may use.",
    )
    rate_bytes_s: float = setting(
        0,
        unit="bytes/s",
        minimum=0,
        help="Most bytes of batches a second; 0 = as the link carries. Urgent ones go at once.",
    )
    windows: tuple[str, ...] = setting(
        (),
        help="Times of the day in which the link may be used, as 'HH:MM-HH:MM' UTC; none = always. "
        "Urgent readings go at any time.",
    )

    def __post_init__(self) -> None:
        for text in self.windows:
            Window.parse(text)

    @property
    def limits(self) -> BudgetLimits:
        """What the account keeps to."""
        return BudgetLimits(
            self.day_bytes,
            self.month_bytes,
            self.urgent_share,
            self.rate_bytes_s,
            tuple(map(Window.parse, self.windows)),
        )


@dataclass(slots=True, frozen=True)
class UplinkConfig:
    """The way to the cloud: where to, in what pieces, how patient."""

    endpoints: tuple[str, ...] = setting(
        (),
        help="Cloud nodes as mqtt://HOST:PORT or mqtts://HOST:PORT, tried in this order; "
        "without any, readings stay in the journal.",
    )
    username: str = setting("", help="MQTT user name for the cloud; empty sends none.")
    password: str = setting("", secret=True, help="Password that goes with the user name.")
    tls_ca_file: Path | None = setting(
        None, help="Certificates trusted for mqtts, as PEM; the system's when not given."
    )
    tls_cert_file: Path | None = setting(
        None, help="This gateway's certificate chain for mqtts, as PEM."
    )
    tls_key_file: Path | None = setting(
        None, help="The key of that certificate, as PEM; may lie in the same file."
    )
    batch_readings: int = setting(
        500,
        minimum=1,
        maximum=10_000,
        help="Most readings in one batch; more of them cost fewer bytes a reading.",
    )
    batch_bytes: int = setting(
        256 * KIB,
        unit="bytes",
        minimum=1 * KIB,
        maximum=8 * MIB,
        help="Most bytes of payloads and topics in one batch, before compression; "
        "a single reading may be more.",
    )
    linger_ms: float = setting(
        50,
        unit="ms",
        minimum=0,
        maximum=60_000,
        help="How long a reading may wait for others to share its batch; urgent ones never wait.",
    )
    window_bytes: int = setting(
        1 * MIB,
        unit="bytes",
        minimum=4 * KIB,
        maximum=64 * MIB,
        help="Most bytes of batches on their way without an acknowledgement.",
    )
    ack_timeout_s: float = setting(
        30,
        unit="s",
        minimum=1,
        help="When bytes on their way stand still for this long, or the cloud does not say what it "
        "holds before the first, the connection is dialled anew.",
    )
    connect_timeout_s: float = setting(
        10,
        unit="s",
        minimum=0.1,
        maximum=300,
        help="How long one endpoint may take to accept the connection.",
    )
    keep_alive_s: int = setting(
        30, unit="s", minimum=5, maximum=65_535, help="MQTT keep alive of an idle connection."
    )
    backoff_min_s: float = setting(
        0.5, unit="s", minimum=0.01, help="Shortest pause before dialling or sending again."
    )
    backoff_max_s: float = setting(
        60, unit="s", minimum=0.01, help="Longest pause before dialling or sending again."
    )
    time_resolution_ms: float = setting(
        1,
        unit="ms",
        minimum=0.001,
        maximum=60_000,
        help="Times of readings are cut down to multiples of this; coarser ones cost fewer bytes.",
    )
    historical_s: float = setting(
        60,
        unit="s",
        minimum=1,
        help="Readings that wait for longer than this are sent marked as historical: they are "
        "stored as all others and never raise an alert as if they were live. Once the oldest waits "
        "for longer, all that lies in the journal drains as backlog, behind what comes in.",
    )
    backlog_share: float = setting(
        0.3,
        minimum=0.05,
        maximum=0.95,
        help="Share of the link's bytes that a backlog gets while live readings want them too; "
        "what either does not use the other may.",
    )
    mode: str = setting(
        "auto",
        choices=("auto", "columnar", "structured"),
        help="How payloads are packed: 'structured' takes a fraction of the bytes and more CPU, "
        "'columnar' little of both; 'auto' is structured unless a backlog drains much faster "
        "without, or its payloads take over 40 us of CPU for less than 15% while the link keeps "
        "up; and always under a byte budget. What the structured mode cannot make smaller always "
        "goes columnar.",
    )
    zstd_level: int = setting(
        0,
        minimum=0,
        maximum=19,
        help="Effort of columnar compression: higher is smaller and slower; 0 = 1 to 9, by the "
        "link's speed and what compressing costs.",
    )

    budget: BudgetConfig = section(BudgetConfig, help="What a metered link may carry.")

    def __post_init__(self) -> None:
        for url in self.endpoints:
            Endpoint.parse(url)
        if self.password and not self.username:
            raise ValueError("'password' is given without 'username'")
        if self.tls_key_file is not None and self.tls_cert_file is None:
            raise ValueError("'tls_key_file' is given without 'tls_cert_file'")
        if self.backoff_max_s < self.backoff_min_s:
            raise ValueError("'backoff_max_s' is less than 'backoff_min_s'")

    @property
    def limits(self) -> UplinkLimits:
        """What the uplink's state machine keeps to."""
        return UplinkLimits(
            batch_readings=self.batch_readings,
            batch_bytes=self.batch_bytes,
            window_bytes=self.window_bytes,
            rate_bytes_s=self.budget.rate_bytes_s,
            ack_timeout_s=self.ack_timeout_s,
            backoff_min_s=self.backoff_min_s,
            backoff_max_s=self.backoff_max_s,
        )
