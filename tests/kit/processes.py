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
from pathlib import Path
from typing import Any, Self

from tidegate.nats_servers import free_ports

__all__ = ["Process", "free_ports", "get_json", "wait_for", "wait_until_listening"]


def wait_for(what: str, check: Any, *, timeout_s: float = 30.0, every_s: float = 0.02) -> Any:
    """Return the first true value of `check()`; AssertionError naming `what` when there is none."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)


def wait_until_listening(port: int, *, timeout_s: float = 30.0) -> None:
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
        log: Where stdout and stderr of every run go, one after the other.
    """

    def __init__(self, arguments: list[str], log: Path, *, port: int | None = None) -> None:
        self.arguments = arguments
        self.log = log
        self.port = port
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> Process:
        """Start it and, unless told otherwise, wait until it listens on `port`."""
        assert self._child is None or self._child.poll() is not None
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tidegate", *self.arguments],
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

        wait_for(f"{self.arguments[0]} on port {self.port}", ready)

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

    def stop(self, *, timeout_s: float = 30.0) -> int:
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
