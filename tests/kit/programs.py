"""Others' programs that tests judge us by: found, or the test says what to install.

Where `.ci/run` has installed them (CI=true) a program that is missing is a failure, so that no
judge is ever left out unseen.
"""

from __future__ import annotations

import os
import shutil

import pytest

__all__ = ["program"]

_FOLDERS = ("/usr/sbin", "/usr/local/sbin")  # Debian keeps servers there, often not on PATH


def program(name: str, package: str) -> str:
    """Return the path of a program; skips the calling test where it is not installed.

    Args:
        name: As it is called.
        package: The Debian package it comes with.
    """
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *_FOLDERS)))
    if found is not None:
        return found
    reason = f"{name} is not installed (Debian: apt-get install {package})"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
