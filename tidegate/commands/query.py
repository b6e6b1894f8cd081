"""Look into stored readings.

    tidegate query boiler-7                                 the newest readings of a device
    tidegate query 'boiler-*' --since -2h --field temp      a JSON field of several devices
    tidegate query boiler-7 --since -1d --field temp --every 5m --agg max --format plot
    tidegate query --topic 'devices/+/alarm' --format json --order asc | jq .

Reads storage.db, or the PostgreSQL of `-c cloud.toml` or TIDEGATE_STORAGE_URL, directly and changes
nothing: works beside a running cloud node, or without one.
"""

from __future__ import annotations

from cloud.query_cli import add_arguments, run

__all__ = ["add_arguments", "run"]
