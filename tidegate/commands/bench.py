"""Run a benchmark of this machine, side by side with its peers, from a checkout.

    tidegate bench                 what there is
    tidegate bench fan-in          one of them
    tidegate bench fan-in -- --runs 3 --duration-s 2     with flags of its own
    tidegate bench all

Figures are ratios against a peer run alternately on the same machine, medians of several runs.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path

__all__ = ["add_arguments", "run"]

_FOLDER = Path("benchmarks")
_TOOLS = {"brokers", "flow", "load"}  # run by themselves too, and measure nothing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a benchmark, or 'all'")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="after --: the benchmark's own")


def run(options: argparse.Namespace) -> int:
    """Run the benchmark named, or list them."""
    known = _benchmarks()
    if not known:
        print("tidegate bench: no folder benchmarks/; run in a checkout's root", file=sys.stderr)
        return 2
    if options.name is None:
        for name, summary in known.items():
            print(f"{name:12} {summary}")
        return 0
    name = options.name.replace("_", "-")
    if name != "all" and name not in known:
        print(
            f"tidegate bench: no benchmark '{options.name}'; there is: {', '.join(known)}",
            file=sys.stderr,
        )
        return 2
    codes = [_run(one, options.flags) for one in (known if name == "all" else [name])]
    return max(codes)


def _benchmarks() -> dict[str, str]:
    """Return each benchmark's name and the first line of its text: what `python -m` can run."""
    found = {}
    for path in sorted(_FOLDER.glob("*.py")):
        source = path.read_text("utf-8")
        text = ast.get_docstring(ast.parse(source))
        if text and path.stem not in _TOOLS and '\nif __name__ == "__main__":' in source:
            found[path.stem.replace("_", "-")] = text.splitlines()[0]
    return found


def _run(name: str, flags: list[str]) -> int:
    module = f"benchmarks.{name.replace('-', '_')}"
    print(f"== {name}", flush=True)
    command = [sys.executable, "-m", module, *flags]
    return subprocess.run(command, check=False).returncode  # noqa: S603 - a name from the folder
