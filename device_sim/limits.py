"""The process's limit on open files, raised as far as a fleet needs it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from device_sim.config import SimError

__all__ = ["allow_connections"]

_MARGIN = 64  # what else may be opened meanwhile: stores, reports, name look-ups


def allow_connections(connections: int) -> None:
    """Raise the soft limit on open files so that `connections` sockets fit.

    Raises:
        SimError: the hard limit does not allow as many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _open_files() + _MARGIN
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise SimError(
            f"{connections} connections need {needed} open files, the hard limit is {hard};"
            " raise it (ulimit -Hn) or share connections (--connections)"
        )
    # In one process with the broker (tidegate up) every connection has two ends.
    wanted = 2 * needed if hard == resource.RLIM_INFINITY else min(hard, 2 * needed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.is_dir() else _MARGIN  # noqa: PTH208 - names only
