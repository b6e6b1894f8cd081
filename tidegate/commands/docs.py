"""Write the generated pages of docs/ anew.

tidegate docs              in a checkout's root
tidegate docs --check      only say whether they are up to date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tidegate.configs import CONFIGS
from tidegate.reference import configuration_page

__all__ = ["add_arguments", "pages", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--docs", type=Path, default=Path("docs"), metavar="DIR", help="the folder [docs]"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when out of date")


def pages() -> dict[str, str]:
    """Return every generated page's text by its file name."""
    return {"configuration.md": configuration_page({name: get() for name, get in CONFIGS.items()})}


def run(options: argparse.Namespace) -> int:
    """Write or compare the pages."""
    if not options.docs.is_dir():
        print(f"tidegate docs: no folder {options.docs}; run in a checkout", file=sys.stderr)
        return 2
    stale = 0
    for name, text in pages().items():
        path = options.docs / name
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale += 1
        if options.check:
            print(f"{path} is out of date; run 'tidegate docs'")
        else:
            path.write_text(text, "utf-8")
            print(f"wrote {path}")
    return 1 if options.check and stale else 0
