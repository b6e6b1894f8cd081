"""Documentation under test: generated pages are as declared, and what a page names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtime.config import keys
from tidegate.commands.docs import pages
from tidegate.configs import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("deploy/**/*.md")])
PACKAGES = ("tidegate", "edge", "cloud", "device_sim", "bridge", "mqtt", "runtime", "benchmarks")
OTHERS_FLAGS = {
    "--now", "--signal", "--help",  # of systemctl, nats-server and argparse
    "--system", "--no-create-home", "--shell",  # of useradd
}  # fmt: skip


def named(pattern: str, page: Path) -> set[str]:
    return set(re.findall(pattern, page.read_text("utf-8")))


@pytest.mark.parametrize("name", sorted(pages()))
def test_generated_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == pages()[name], "run 'tidegate docs'"


@pytest.mark.parametrize("command", sorted(CONFIGS))
def test_every_key_says_what_it_means(command: str) -> None:
    for key in keys(CONFIGS[command]()):
        assert len(key.metadata["help"]) > 10, key.name


@pytest.mark.parametrize("command", sorted(CONFIGS))
def test_a_number_with_a_unit_names_it_last(command: str) -> None:
    for key in keys(CONFIGS[command]()):
        unit = key.metadata.get("unit", "")
        if unit and not key.name.endswith(("_max", "_min", "_port")):
            assert key.name.rsplit("_", 1)[-1] == unit or unit not in {"ms", "s", "bytes"}, key.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_that_a_page_names_are_there(page: Path) -> None:
    links = {page.parent / link for link in named(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page)}
    folders = "|".join([*PACKAGES, "tests", "docs", "deploy"])
    files = {ROOT / name for name in named(rf"`((?:{folders})/[\w/-]+\.(?:py|md|c|toml))`", page)}
    assert not [path for path in links | files if not path.exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_that_a_page_names_are_there(page: Path) -> None:
    sources = [
        path.read_text("utf-8") for name in PACKAGES for path in ROOT.glob(f"{name}/**/*.py")
    ]
    known = set(re.findall(r'"(--[a-z][a-z0-9-]+)"', "\n".join(sources))) | OTHERS_FLAGS
    known |= {key.flag for config in CONFIGS.values() for key in keys(config())}
    assert named(r"(?<![\w-])(--[a-z][a-z0-9-]+)", page) <= known


def test_every_decision_is_in_the_index() -> None:
    index = DOCS / "adr" / "README.md"
    decisions = sorted((DOCS / "adr").glob("0*.md"))
    assert named(r"\]\((0[^)]*)\)", index) == {path.name for path in decisions}
    titles = [path.read_text("utf-8").splitlines()[0].partition(". ")[2] for path in decisions]
    assert [title for title in titles if title not in index.read_text("utf-8")] == []
