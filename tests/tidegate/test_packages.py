"""What every module of the packages has, and that none is left out of a contract."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = PYPROJECT["tool"]["importlinter"]["root_packages"]
MODULES = sorted(path for name in PACKAGES for path in ROOT.glob(f"{name}/**/*.py"))
LINES_MAX = 800


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_what_is_public(module: Path) -> None:
    text = module.read_text("utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= LINES_MAX
    if module.name == "__init__.py" and not tree.body:
        return  # marks a folder
    assert ast.get_docstring(tree)
    names = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    assert "__all__" in names or module.name in ("__init__.py", "__main__.py")


def test_the_contract_that_keeps_mqtt_pure_names_all_of_its_modules() -> None:
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    (pure,) = (one for one in contracts if one["name"].startswith("mqtt is pure"))
    named = set(pure["source_modules"]) | {"mqtt.aio", "mqtt.__init__"}
    assert named == {f"mqtt.{path.stem}" for path in ROOT.glob("mqtt/*.py")}
