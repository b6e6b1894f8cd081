"""Where the cloud's HTTP API and console listen, and how much one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.config import setting

__all__ = ["HttpConfig"]


@dataclass(slots=True, frozen=True)
class HttpConfig:
    """The table `[http]`."""

    host: str = setting(
        "127.0.0.1", help="Address to listen on; the API has no log-in, so think before 0.0.0.0."
    )
    port: int = setting(
        8080, minimum=0, maximum=65_535, flag="--http-port", help="Port; 0 takes any free one."
    )
    rows_max: int = setting(
        10_000, minimum=1, maximum=1_000_000, help="Rows one answer may hold; there is paging."
    )
    query_timeout_s: float = setting(
        10.0, unit="s", minimum=0.1, maximum=600, help="How long one query of readings may take."
    )
