"""What a reload is asked for and what came of it, and where the process that can do it is found.

A running process leaves `process.json` in its data folder: its id, when it started (so that an id
the system has given to somebody else is never signalled), and what the last reload did. `tidegate
reload` sends SIGHUP and waits for the count of reloads to rise.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ProcessFile", "Reloaded", "changed_keys", "process_started", "sort_keys"]


@dataclass(slots=True)
class Reloaded:
    """What a reload did."""

    taken: list[str] = field(default_factory=list)  # keys that changed and are in use
    needs_restart: list[str] = field(default_factory=list)  # keys that changed and are not
    problem: str = ""  # why it was not done, or not all of it; one line


def changed_keys(before: Any, after: Any, path: str = "") -> list[str]:
    """Return the dotted names of the keys in which two configurations differ."""
    if type(before) is not type(after) or not dataclasses.is_dataclass(before):
        return [] if before == after else [path]
    found: list[str] = []
    for each in dataclasses.fields(before):
        here = f"{path}.{each.name}" if path else each.name
        found += changed_keys(getattr(before, each.name), getattr(after, each.name), here)
    return found


def sort_keys(keys: Sequence[str], reloadable: Callable[[str], bool]) -> Reloaded:
    """Return changed keys as those that a reload takes and those that need a restart."""
    return Reloaded(
        [key for key in keys if reloadable(key)], [key for key in keys if not reloadable(key)]
    )


def process_started(pid: int) -> int | None:
    """Return when a process started, in the kernel's ticks; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The command's name, in brackets, may have blanks and brackets in it.
    return int(stat.rpartition(")")[2].split()[19])


@dataclass(slots=True)
class ProcessFile:
    """`process.json` of one process."""

    path: Path
    reloads: int = 0

    def write(self, last: Reloaded | None = None) -> None:
        """Say who we are and what the last reload did; readable by the owner alone."""
        pid = os.getpid()
        data = {
            "pid": pid,
            "started": process_started(pid),
            "reloads": self.reloads,
            "last": dataclasses.asdict(last) if last is not None else None,
        }
        new = self.path.with_suffix(".new")
        new.touch(0o600)
        new.write_text(json.dumps(data) + "\n", "utf-8")
        new.replace(self.path)

    def read(self) -> dict[str, Any] | None:
        """Return what a running process has written; None when it does not run any more."""
        try:
            data = json.loads(self.path.read_text("utf-8"))
            alive = process_started(int(data["pid"])) == data["started"] is not None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return data if alive else None

    def remove(self) -> None:
        """Say that we are gone."""
        self.path.unlink(missing_ok=True)
