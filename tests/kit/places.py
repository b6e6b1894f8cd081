"""Two places: NATS servers that mirror a cluster of others, as docs/cluster.md says, until cut off.

with two_places(tmp_path) as places:
    layout = await places.begin("name")       a cluster at home, mirrored elsewhere
    await places.mirrored(layout)             all that is at home is elsewhere too
    places.away.stop()                        what comes now is at home only
    places.lose()                             home is gone; elsewhere runs again
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from cloud.cluster.connection import Connection
from cloud.cluster.layout import Layout
from cloud.cluster.reading import insist
from tests.kit.nats import NatsServers, connected, make_layout
from tidegate.nats_servers import free_ports

# What is one cluster's own must not cross: else streams of both places take it, and answer.
_SUBJECTS = (
    "*.ledger", "*.raw.*", "*.checkpoint.>", "*.dead.>", "*.mqtt.>", "*.mq.>", "$KV.>", "live.>",
)  # fmt: skip
_OWN = ", ".join(f'"{subject}"' for subject in _SUBJECTS)

__all__ = ["Places", "last_seq", "two_places"]


class Places:
    """Servers at home, and those that mirror what is there over a leafnode.

    Attributes:
        home: Where a cluster is.
        away: Where its mirrors are, a JetStream domain of its own.
    """

    def __init__(self, folder: Path, count: int) -> None:
        (port,) = free_ports(1)
        self.home = NatsServers(
            folder / "home", count, cluster="home", domain="home", disk_bytes_max=8 << 30,
            extra=f'leafnodes {{ listen: "127.0.0.1:{port}" }}\n',
        )  # fmt: skip
        self.away = NatsServers(
            folder / "away", count, cluster="away", domain="away", disk_bytes_max=8 << 30,
            extra=f'leafnodes {{ remotes: [ {{ url: "nats-leaf://127.0.0.1:{port}",'
            f" deny_imports: [{_OWN}], deny_exports: [{_OWN}] }} ] }}\n",
        )  # fmt: skip

    async def begin(self, cluster: str, *, without: Collection[str] = ()) -> Layout:
        """Make a cluster at home and mirrors of its streams elsewhere; `without` are none made."""
        self.home.start()
        self.away.start()
        layout = await make_layout(self.home, cluster)
        async with connected(self.home) as home, connected(self.away) as away:
            await insist(lambda: away.request("$JS.home.API.INFO"), timeout_s=30)
            for spec in layout.specs():
                if spec.name in without:
                    continue
                info = await home.api(f"STREAM.INFO.{spec.name}")
                config = {
                    "name": spec.name,
                    "mirror": {"name": spec.name, "external": {"api": "$JS.home.API"}},
                    "storage": "file",
                    "num_replicas": layout.replicas,
                    "discard": "old",
                    "max_bytes": spec.config["max_bytes"],
                    "max_msgs_per_subject": spec.config["max_msgs_per_subject"],
                    "allow_direct": True,
                    "allow_msg_ttl": spec.config.get("allow_msg_ttl", False),
                    "metadata": info["config"].get("metadata") or {},
                }
                await away.api(f"STREAM.CREATE.{spec.name}", config)
        return layout

    async def freeze(self, stream: str, *subjects: str) -> None:
        """Have a mirror take nothing more, and hold what it has; `subjects` as a stream's own."""
        async with connected(self.away) as away:
            config = (await away.api(f"STREAM.INFO.{stream}"))["config"]
            del config["mirror"]
            config["subjects"] = list(subjects)
            await away.api(f"STREAM.UPDATE.{stream}", config)

    async def mirrored(self, layout: Layout, *streams: str) -> None:
        """Return when every mirror, or those of `streams`, has what its stream has."""
        async with asyncio.timeout(30), connected(self.home) as home, connected(self.away) as away:
            for stream in streams or [spec.name for spec in layout.specs()]:
                wanted = await last_seq(home, stream)
                while await last_seq(away, stream) < wanted:
                    await asyncio.sleep(0.02)

    def lose(self) -> None:
        """Have home end for good, and what mirrors it run, whether it was cut off or not."""
        self.home.kill()
        self.away.start()


@contextmanager
def two_places(folder: Path, count: int = 1) -> Iterator[Places]:
    """Give two places, of `count` servers each, that end with the block."""
    places = Places(folder, count)
    try:
        yield places
    finally:
        places.home.kill()
        places.away.kill()


async def last_seq(connection: Connection, stream: str) -> int:
    """Return the last sequence that a stream gave out."""
    return int((await connection.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"])
