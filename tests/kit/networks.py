"""Machines with a network of their own each, on one switch, whose cables can be pulled.

A machine is a network namespace, the switch a bridge in another: what runs in them reaches nothing
else, and nothing of it is left when they end. Where the kernel does not permit that, tests are
skipped.

Invariant: a cable that is pulled loses what is on its way, in both directions, and closes nothing:
both ends go on believing in their connections.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.programs import program

__all__ = ["Machine", "Switch", "switch_with"]

# answers a line with what a URL has; one process for all that a machine is asked
_ASKER = """\
import sys, urllib.error, urllib.request
for line in sys.stdin:
    try:
        text = urllib.request.urlopen(line.strip(), timeout=5).read().decode()
    except urllib.error.HTTPError as error:  # such as of one that is not ready: it says so
        text = error.read().decode()
    except OSError:
        text = "null"
    print(" ".join(text.splitlines()), flush=True)
"""


class Machine:
    """A machine on the switch.

    Attributes:
        address: Its address there; it has a loopback too.
    """

    def __init__(self, number: int, holder: int) -> None:
        self.address = f"10.77.0.{number}"
        self._holder = holder
        self._children: list[subprocess.Popen[bytes]] = []
        self._asker: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str | Path) -> list[str]:
        """Return a command as it runs here."""
        return ["nsenter", "-t", str(self._holder), "-n", *map(str, arguments)]

    def start(self, log: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start a process here; it ends with the machine."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                self.command(*arguments), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._children.append(child)
        return child

    def run(
        self, *arguments: str | Path, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, check=False, timeout=timeout_s
        )

    def ask(self, url: str) -> Any:
        """Return the JSON that a URL has here, on loopback say; None when it is not answered."""
        pipe = subprocess.PIPE
        if self._asker is None:
            command = self.command(sys.executable, "-c", _ASKER)
            self._asker = subprocess.Popen(command, stdin=pipe, stdout=pipe)
            self._children.append(self._asker)
        assert self._asker.stdin is not None
        assert self._asker.stdout is not None
        self._asker.stdin.write(url.encode() + b"\n")
        self._asker.stdin.flush()
        return json.loads(self._asker.stdout.readline())

    def end(self) -> None:
        """Kill what was started here."""
        for child in self._children:
            child.kill()
            child.communicate()


class Switch:
    """What the machines are connected by."""

    def __init__(self, holder: int, machines: Sequence[Machine]) -> None:
        self.machines = machines
        self._holder = holder

    def pull(self, machine: Machine) -> None:
        """Cut a machine off from all others."""
        _ip(self._holder, "link", "set", _port(self.machines.index(machine)), "down")

    def plug(self, machine: Machine) -> None:
        """Put its cable back."""
        _ip(self._holder, "link", "set", _port(self.machines.index(machine)), "up")


@contextmanager
def switch_with(count: int) -> Iterator[Switch]:
    """Give a switch with machines on it; skips where namespaces are not permitted."""
    holders: list[subprocess.Popen[bytes]] = []
    machines: list[Machine] = []
    try:
        for _ in range(count + 1):
            holders.append(_holder())
        hub, *others = (holder.pid for holder in holders)
        _ip(hub, "link", "add", "switch", "type", "bridge")
        _ip(hub, "link", "set", "switch", "up")
        for index, holder in enumerate(others):
            machine = Machine(index + 1, holder)
            machines.append(machine)
            cable = ("type", "veth", "peer", "name", "eth0", "netns", str(holder))
            _ip(hub, "link", "add", _port(index), *cable)
            _ip(hub, "link", "set", _port(index), "master", "switch", "up")
            _ip(holder, "address", "add", f"{machine.address}/24", "dev", "eth0")
            _ip(holder, "link", "set", "lo", "up")
            _ip(holder, "link", "set", "eth0", "up")
        yield Switch(hub, machines)
    finally:
        for machine in machines:
            machine.end()
        for child in holders:
            child.communicate()


def _port(index: int) -> str:
    return f"port{index}"


def _holder() -> subprocess.Popen[bytes]:
    """Start a process that does nothing but keep a network namespace, for as long as we live."""
    command = [program("unshare", "util-linux"), "-n", "sh", "-c", "echo here; exec cat"]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    if child.stdout.readline() != b"here\n":
        child.communicate()
        pytest.skip("network namespaces are not permitted")
    return child


def _ip(holder: int, *arguments: str) -> None:
    nsenter, ip = program("nsenter", "util-linux"), program("ip", "iproute2")
    command = [nsenter, "-t", str(holder), "-n", ip, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no network can be made: {done.stderr.strip()}")
