"""Real processes for the end-to-end tests: start, wait until ready, kill -9, stop, read the log.

Each process is ours alone: own data folder, ports from the operating system, ended by its id.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tidegate.nats_servers import free_ports

__all__ = [
    "Process",
    "cpu_ticks",
    "free_ports",
    "get_json",
    "wait_for",
    "wait_until_listening",
]


_STRETCH = 10  # what moves all the time and is never done ends after so many times `timeout_s`


def wait_for(
    what: str,
    check: Any,
    *,
    timeout_s: float = 60.0,
    every_s: float = 0.02,
    progress: Callable[[], object] | None = None,
) -> Any:
    """Return the first true value of `check()`; AssertionError naming `what` when there is none.

    With `progress`, `timeout_s` may pass without a change of what it returns: how fast things move
    is the machine's affair.
    """
    began_s = moved_s = time.monotonic()
    last = progress() if progress is not None else None
    while True:
        value = check()
        if value:
            return value
        now_s = time.monotonic()
        if progress is not None and (seen := progress()) != last:
            last, moved_s = seen, now_s
        if now_s > moved_s + timeout_s or now_s > began_s + _STRETCH * timeout_s:
            moved = f", and nothing moved: {last}" if progress is not None else ""
            raise AssertionError(f"{what}: not within {now_s - began_s:.1f} s{moved}")
        time.sleep(every_s)


def cpu_ticks(pid: int) -> int:
    """Return the processor time a process and its children have used; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(map(int, fields[11:15])) + sum(cpu_ticks(int(child)) for child in children)


def wait_until_listening(port: int, *, timeout_s: float = 60.0) -> None:
    """Return once something accepts connections on loopback at `port`."""

    def accepts() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
        except OSError:
            return False

    wait_for(f"port {port} listening", accepts, timeout_s=timeout_s)


def get_json(url: str) -> Any:
    """Return a URL's JSON, or None while nothing answers there."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            try:
                return json.load(error)
            except ValueError:
                return None
    except (OSError, ValueError):
        return None


class Process:
    """A `tidegate` command in a process of its own, with its output in a file.

    Attributes:
        module: What is run: `tidegate`, or what changes something of it first.
        log: Where stdout and stderr of every run go, one after the other.
    """

    def __init__(self, arguments: list[str], log: Path, *, port: int | None = None) -> None:
        self.module = "tidegate"
        self.arguments = arguments
        self.log = log
        self.port = port
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> Process:
        """Start it and, unless told otherwise, wait until it listens on `port`."""
        assert self._child is None or self._child.poll() is not None
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", self.module, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        if wait and self.port is not None:
            self._wait_ready()
        return self

    def _wait_ready(self) -> None:
        assert self.port is not None

        def ready() -> bool:
            assert self._child is not None
            if self._child.poll() is not None:
                raise AssertionError(f"ended with {self._child.returncode}:\n{self.text()}")
            with socket.socket() as probe:
                probe.settimeout(1)
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        what = f"{self.arguments[0]} on port {self.port}"
        wait_for(what, ready, progress=lambda: cpu_ticks(self.pid))

    @property
    def pid(self) -> int:
        """The process id of the present run."""
        assert self._child is not None
        return self._child.pid

    def kill(self) -> None:
        """SIGKILL it: nothing of it runs after this."""
        assert self._child is not None
        self._child.kill()
        self._child.wait()

    def stop(self, *, timeout_s: float = 60.0) -> int:
        """Ask for an orderly stop and return the exit code."""
        assert self._child is not None
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
        return self._child.wait(timeout_s)

    def wait(self, *, timeout_s: float = 60.0) -> int:
        """Wait until it ends by itself; return the exit code."""
        assert self._child is not None
        return self._child.wait(timeout_s)

    def text(self) -> str:
        """Everything it has printed so far."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None and self._child.poll() is None:
            self.kill()
