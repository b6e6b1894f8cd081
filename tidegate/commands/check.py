"""Read a configuration file and say what is wrong with it, all of it, a line each.

    tidegate check -c edge.toml
    tidegate check -c site.toml --as cloud

Without --as, the file is taken for the command whose keys it fits best.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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
    kinds = [options.kind] if options.kind else list(CONFIGS)
    problems = {kind: _problems(kind, options.config) for kind in kinds}
    kind = min(kinds, key=lambda name: len(problems[name]))
    for problem in problems[kind]:
        print(problem, file=sys.stderr)
    if problems[kind]:
        return 2
    print(f"{options.config}: good for 'tidegate {kind}'")
    return 0


def _problems(kind: str, path: Path) -> tuple[str, ...]:
    try:
        load(CONFIGS[kind](), file=path)
    except ConfigError as error:
        return error.problems
    return ()
