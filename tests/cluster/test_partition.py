"""A network that falls apart: three machines with a server, a node and a gateway each.

One of them is cut off: packets are lost, no connection is closed. Its gateway gets no PUBACK, the
others go on, and once the cable is back everything is there once, in order.
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from tests.kit.networks import Machine, Switch, switch_with
from tests.kit.processes import wait_for
from tidegate.nats_servers import nats_server_program

TIDEGATE = (sys.executable, "-m", "tidegate")
patiently = partial(wait_for, timeout_s=180.0, every_s=0.2)  # elections among three busy machines
READINGS = 2_000  # that each gateway takes, at least
NATS_CONF = """\
server_name: {name}
listen: {address}:4222
http: {address}:8222
jetstream {{ store_dir: "{store}", sync_interval: always, max_file_store: 32GB }}
cluster {{ name: net, listen: {address}:6222, routes: [{routes}] }}
"""


class Site:
    """The cluster on a switch."""

    def __init__(self, switch: Switch, folder: Path) -> None:
        self.switch = switch
        self.machines = switch.machines
        self._folder = folder
        addresses = [machine.address for machine in self.machines]
        self.stream = ("--stream", "nats://" + ",".join(f"{one}:4222" for one in addresses),
                       "--stream-cluster", "net", "--stream-file-bytes-max", "64MiB")  # fmt: skip
        self.monitors = ",".join(f"http://{one}:8222" for one in addresses)
        self.endpoints = [f"mqtt://{one}:2883" for one in addresses]

    def start(self) -> None:
        """Start servers, make the layout, start nodes and gateways."""
        for number, machine in enumerate(self.machines):
            others = [m.address for m in self.machines if m is not machine]
            conf = self._folder / f"nats-{number}.conf"
            conf.write_text(
                NATS_CONF.format(
                    name=f"net-{number}", address=machine.address,
                    store=self._folder / f"nats-{number}",
                    routes=", ".join(f"nats-route://{one}:6222" for one in others),
                )
            )  # fmt: skip
            machine.start(self._log("nats", number), nats_server_program(), "-c", conf)
        first = self.machines[0]

        def applied() -> bool:
            return not first.run(*TIDEGATE, "cluster", "apply", *self.stream).returncode

        patiently("layout", applied)
        for number, machine in enumerate(self.machines):
            machine.start(
                self._log("node", number), *TIDEGATE, "cloud", *self.stream,
                "--data", self._folder / f"node-{number}", "--node-id", f"node-{number}",
                "--host", "0.0.0.0", "--access-anonymous", "always",
                "--stream-monitors", self.monitors,
            )  # fmt: skip
            endpoints = self.endpoints[number:] + self.endpoints[:number]
            machine.start(
                self._log("gateway", number), *TIDEGATE, "edge", "--gateway", f"gateway-{number}",
                "--data", self._folder / f"gateway-{number}", "--http-port", "9090",
                "--uplink-endpoints", ",".join(endpoints), "--uplink-ack-timeout-s", "5",
                "--uplink-backoff-max-s", "1",
            )  # fmt: skip
        for machine in self.machines:
            patiently("ready", lambda at=machine: self.ready(at))

    def _log(self, name: str, number: int) -> Path:
        return self._folder / f"{name}-{number}.log"

    def ready(self, machine: Machine) -> bool:
        return bool((machine.ask("http://127.0.0.1:8080/readyz") or {}).get("ok"))

    def says_not_ready(self, machine: Machine) -> bool:
        """Return True once its node says so itself; one too busy to answer may be ready."""
        return (machine.ask("http://127.0.0.1:8080/readyz") or {}).get("ok") is False

    def sent(self, machine: Machine) -> int:
        """Return how many batches of a machine's gateway were acknowledged."""
        return int((self.uplink(machine) or {}).get("batches_sent", 0))

    def waiting(self, machine: Machine) -> int:
        """Return how many readings wait at a machine's gateway; -1 while it does not say."""
        return int((self.uplink(machine) or {}).get("backlog_readings", -1))

    def taken(self, machine: Machine) -> int:
        """Return how many readings a machine's gateway has taken."""
        return int((self._status(machine) or {"journal": {"last_seq": 0}})["journal"]["last_seq"])

    def uplink(self, machine: Machine) -> dict[str, Any] | None:
        """Return a gateway's figures of its uplink; None while it has none, or no time to say."""
        status = self._status(machine)
        return None if status is None else status["uplink"]

    def _status(self, machine: Machine) -> dict[str, Any] | None:
        """Return a gateway's figures; None while it starts, or has no time to answer."""
        found: dict[str, Any] | None = machine.ask("http://127.0.0.1:9090/status")
        return found

    def load(self, number: int) -> subprocess.Popen[bytes]:
        """Publish readings to a machine's gateway, 100 a second, until told to stop."""
        return self.machines[number].start(
            self._log("sim", number), *TIDEGATE, "sim", "--broker", "mqtt://127.0.0.1:1883",
            "--devices", "4", "--rate", "100", "--duration-s", "0", "--seed", str(number),
            "--client-prefix", f"m{number}-", "--drain-timeout-s", "120", "--quiet",
            "--report", self._report(number),
        )  # fmt: skip

    def acked(self, number: int) -> int:
        """Return how many readings a load that has ended had acknowledged."""
        return int(json.loads(self._report(number).read_text())["acked"])

    def _report(self, number: int) -> Path:
        return self._folder / f"sim-{number}.json"


def test_a_machine_that_is_cut_off_takes_nothing_and_catches_up(tmp_path: Path) -> None:
    with switch_with(3) as switch:
        site = Site(switch, tmp_path)
        site.start()
        alone, other, _ = site.machines
        sims = [site.load(number) for number in range(3)]
        patiently("traffic", lambda: all(site.sent(one) > 3 for one in site.machines))

        switch.pull(alone)
        cut_s = time.monotonic()
        patiently("cut off", lambda: site.says_not_ready(alone))
        before = [
            patiently("its figures", lambda at=one: site.uplink(at))["batches_sent"]
            for one in (alone, other)
        ]
        patiently("the others go on", lambda: site.sent(other) > before[1] + 5)
        print(f"the others wrote on {time.monotonic() - cut_s:.1f} s after the cut")
        patiently("they say so", lambda: site.ready(other))
        said = patiently("its figures", lambda: site.uplink(alone))
        assert said["batches_sent"] == before[0]  # its node has no quorum: no PUBACK
        assert said["backlog_readings"] > 0

        switch.plug(alone)
        plugged_s = time.monotonic()
        patiently("back", lambda: site.ready(alone))
        print(f"the machine took readings {time.monotonic() - plugged_s:.1f} s after the cut ended")
        patiently("enough", lambda: all(site.taken(one) >= READINGS for one in site.machines))
        for sim in sims:
            sim.terminate()
        for sim in sims:
            assert sim.wait(300) == 0
        acked = sum(map(site.acked, range(3)))
        assert acked > 2 * READINGS  # what a device had to send again was taken twice
        for machine in site.machines:
            patiently("drained", lambda at=machine: site.waiting(at) == 0)
        for machine in site.machines:
            said = machine.run(*TIDEGATE, "audit", "--url", "http://127.0.0.1:8080",
                               "--settled", "60")  # fmt: skip
            assert said.returncode == 0, said.stdout + said.stderr
            assert sum(map(int, re.findall(r"(\d+) assigned", said.stdout))) >= acked
        for number in range(3):
            path = tmp_path / f"node-{number}" / "cloud" / "storage.db"
            check_rows(path, max(acked, 3 * READINGS))


def check_rows(path: Path, least: int) -> None:
    """Assert that all readings are there once, each device's in the order it published them."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT gateway, epoch, seq FROM readings").fetchall()
        assert len(set(rows)) == len(rows) >= least
        times = database.execute(
            "SELECT device, time_us FROM readings ORDER BY device, gateway, epoch, seq"
        ).fetchall()
    assert times == sorted(times)
