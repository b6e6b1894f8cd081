"""What the commands share: `-c FILE`, and a configuration from file, environment and flags."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TypeVar

from runtime.config import add_arguments, flags_of, load, misspelt

__all__ = ["add_config_arguments", "config_of"]

T = TypeVar("T")

_told = set[str]()  # misspelt variables, by this process


def add_config_arguments(
    parser: argparse.ArgumentParser, cls: type, *, hidden: tuple[str, ...] = ()
) -> None:
    """Give a command `-c FILE` and a flag for every key of its configuration.

    Args:
        parser: The command's.
        cls: Its configuration dataclass.
        hidden: Sections whose flags work without being listed in `--help`.
    """
    parser.usage = f"{parser.prog} [-c FILE] [FLAG VALUE ...]"
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="read the configuration from a TOML file"
    )
    add_arguments(parser, cls, hidden=hidden)


def config_of(options: argparse.Namespace, cls: type[T]) -> T:
    """Load a command's configuration; raises ConfigError, which ends the process with 2.

    A variable that is near one of its settings, and none, is told of once.
    """
    for name, near in misspelt(os.environ, cls).items():
        if name not in _told:
            _told.add(name)
            print(
                f"tidegate: {name} in the environment is no setting of this command and does"
                f" nothing; did you mean {near}?",
                file=sys.stderr,
            )
    return load(cls, file=options.config, environment=os.environ, flags=flags_of(options, cls))
