"""What the commands share: `-c FILE`, and a configuration from file, environment and flags."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TypeVar

from runtime.config import add_arguments, flags_of, load

__all__ = ["add_config_arguments", "config_of"]

T = TypeVar("T")


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
    """Load a command's configuration; raises ConfigError, which ends the process with 2."""
    return load(cls, file=options.config, environment=os.environ, flags=flags_of(options, cls))
