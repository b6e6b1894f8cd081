"""A site in a network of its own whose uplink is cut without a word: run by test_silent_cut.py.

    unshare --user --map-root-user --net python -m tests.kit.silent_cut '{"folder": "..."}'

The gateway dials the cloud at an address that one routing rule makes a black hole: packets either
way are dropped, nobody is told, and both sockets stay as they are. It prints a line of JSON: why
the gateway gave the connection up, and what had come after the way was free again.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from tests.kit.processes import get_json, wait_for
from tests.kit.site import Site
from tests.kit.sites import client_at

__all__ = ["CLOUD", "cut", "reach_oneself"]

CLOUD = "10.99.0.1"
ACK_TIMEOUT_S = 2.0


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=10)


def cut(silent: bool) -> None:
    """Make the address a black hole, or end that."""
    ip("rule", "add" if silent else "del", "to", CLOUD, "blackhole", "pref", "1")


def status(site: Site) -> dict[str, object]:
    url = f"http://127.0.0.1:{site.edge_http}/status"
    found: dict[str, object] = wait_for("its status", lambda: get_json(url))["uplink"]
    return found


async def publish(site: Site, first: int, count: int) -> None:
    async with client_at(site.edge_port, "d1") as (client, _):
        for number in range(first, first + count):
            await client.publish("devices/d1/value", b"%d" % number, 1)


def reach_oneself() -> None:
    """Have the address answer, in a network namespace that is new."""
    ip("link", "set", "lo", "up")
    ip("addr", "add", f"{CLOUD}/32", "dev", "lo")
    ip("rule", "add", "pref", "2", "lookup", "local")  # behind the black hole
    ip("rule", "del", "pref", "0", "lookup", "local")


def main(folder: Path) -> None:
    reach_oneself()
    with Site(folder) as site:
        edge = folder / "edge.toml"
        cloud = folder / "cloud.toml"
        edge.write_text(
            edge.read_text()
            .replace(f"mqtt://127.0.0.1:{site.cloud_port}", f"mqtt://{CLOUD}:{site.cloud_port}")
            # and no ping that stays without an answer tells of it
            .replace("ack_timeout_s = 5", f"ack_timeout_s = {ACK_TIMEOUT_S}\nkeep_alive_s = 3600")
        )
        host = 'host = "127.0.0.1"\nport'
        assert host in cloud.read_text()
        more = '[access]\nanonymous = "always"\n'
        cloud.write_text(cloud.read_text().replace(host, 'host = "0.0.0.0"\nport') + more)
        site.up()
        asyncio.run(publish(site, 0, 20))
        site.wait_stored(20)
        before = status(site)
        assert before["link"] == "online"
        cut(silent=True)
        asyncio.run(publish(site, 20, 20))  # devices notice nothing
        wait_for("given up", lambda: status(site)["link"] != "online")
        cause = str(status(site)["last_error"])
        cut(silent=False)
        site.wait_stored(40)
        site.wait_drained()
        audit = site.audit()
        found = {"audit": audit.returncode, "said": audit.stdout, "rows": site.count()}
        print(json.dumps({**found, "cause": cause}))


if __name__ == "__main__":
    main(Path(json.loads(sys.argv[1])["folder"]))
