"""Read a configuration file and say what is wrong with it, all of it, a line each.

    tidegate check -c edge.toml
    tidegate check -c site.toml --as cloud

Without --as, the file is taken for the command whose keys it fits best. Certificates, password
files and the like that it names have to be readable from here, by who runs this.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.config import ConfigError, load
from tidegate.configs import CONFIGS

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "-c", "--config", type=Path, required=True, metavar="FILE", help="the TOML file to read"
    )
    parser.add_argument(
        "--as", dest="kind", choices=sorted(CONFIGS), help="the command the file is for"
    )


def run(options: argparse.Namespace) -> int:
    """Check the file; 0 when it can be used, 2 when not."""
    problems = {kind: _problems(kind, options.config) for kind in _kinds(options.kind)}
    # whose keys it has comes before how many of their values are wrong
    kind = min(problems, key=lambda name: (_unknown(problems[name]), len(problems[name])))
    for problem in problems[kind]:
        print(problem, file=sys.stderr)
    if problems[kind]:
        return 2
    print(f"{options.config}: good for 'tidegate {kind}'")
    return 0


def _kinds(asked: str | None) -> list[str]:
    """Return the commands the file may be for: the one asked for, else those that can run here.

    A gateway's base install has no cloud node and no simulator.
    """
    kinds = [asked] if asked else list(CONFIGS)
    for kind in list(kinds):
        try:
            CONFIGS[kind]()
        except ModuleNotFoundError:
            if asked:
                raise
            kinds.remove(kind)
    return kinds


def _unknown(problems: Sequence[str]) -> int:
    """Return how many problems are keys that a command does not have."""
    return sum("unknown key" in problem for problem in problems)


def _unreadable(config: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each file that a configuration names and that cannot be read."""
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        here = f"{path}.{each.name}" if path else each.name
        if dataclasses.is_dataclass(value):
            yield from _unreadable(value, here)
        elif isinstance(value, tuple):
            for number, one in enumerate(value, 1):
                if dataclasses.is_dataclass(one):
                    yield from _unreadable(one, f"{here}[{number}]")
        elif isinstance(value, Path) and each.name.endswith("_file"):
            try:
                value.open("rb").close()
            except OSError as error:
                yield f"{here}: {value} cannot be read: {error.strerror or error}"


def _problems(kind: str, path: Path) -> tuple[str, ...]:
    try:
        config: Any = load(CONFIGS[kind](), file=path)
    except ConfigError as error:
        return error.problems
    return tuple(f"{path}: {line}" for line in _unreadable(config))
