"""Have a running edge, cloud or up read its configuration again, without dropping clients.

    tidegate reload
    tidegate reload --data /var/lib/tidegate

Access, limits, listeners, certificates and the uplink's endpoints are taken at once; what else has
changed is named and waits for a restart. `kill -HUP` does the same without telling. Exit code 1
when nothing runs on the folder or the new configuration could not be used: the old one stays.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from runtime.reload import ProcessFile
from tidegate.reloading import PROCESS_FILES

__all__ = ["add_arguments", "run"]

_WAIT_S = 30.0
_LOOK_S = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("tidegate-data"),
        metavar="DIR",
        help="the data folder of the running process [tidegate-data]",
    )


def run(options: argparse.Namespace) -> int:
    """Reload every process that runs on the folder; 0 when all took their configuration."""
    running: dict[int, tuple[ProcessFile, int]] = {}  # by process id: where it tells, and how often
    for name in PROCESS_FILES.values():
        file = ProcessFile(options.data / name)
        known = file.read()
        if known is not None:
            running.setdefault(known["pid"], (file, known["reloads"]))
    if not running:
        print(f"tidegate reload: nothing runs on {options.data}; give --data", file=sys.stderr)
        return 1
    failed = False
    for pid, (file, before) in running.items():
        try:
            os.kill(pid, signal.SIGHUP)
        except OSError as error:
            print(f"tidegate reload: process {pid}: {error.strerror}", file=sys.stderr)
            failed = True
            continue
        failed |= not _tell(pid, _wait(file, before))
    return 1 if failed else 0


def _wait(file: ProcessFile, before: int) -> dict[str, Any] | None:
    """Return what the reload did, once it is done; None when it does not say."""
    until_s = time.monotonic() + _WAIT_S
    while time.monotonic() < until_s:
        known = file.read()
        if known is None:
            return None
        if known["reloads"] > before:
            last: dict[str, Any] = known["last"]
            return last
        time.sleep(_LOOK_S)
    return None


def _tell(pid: int, last: dict[str, Any] | None) -> bool:
    if last is None:
        print(f"tidegate reload: process {pid} did not answer", file=sys.stderr)
        return False
    if last["problem"]:
        print(f"tidegate reload: process {pid}: {last['problem']}", file=sys.stderr)
        return False
    taken = ", ".join(last["taken"]) or "no key has changed; files were read again"
    print(f"process {pid} reloaded: {taken}")
    if last["needs_restart"]:
        print(f"these wait for a restart: {', '.join(last['needs_restart'])}")
    return True
