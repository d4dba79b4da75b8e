"""The arrows of the design, read from the imports; and what the image may carry."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import ROOT

APP = sorted((ROOT / "app").rglob("*.py"))
ARROWS = {
    "app": {"app.segmenter"},
    "app.__main__": {"app.cli"},
    "app.cli": {
        *("app", "app.cases", "app.checkpoint", "app.model", "app.predict", "app.run_log", "app.segmenter"),
    },
    "app.cases": {"app.scan"},
    "app.predict": {
        *("app", "app.cases", "app.components", "app.gpu_memory", "app.model", "app.run_log", "app.scan"),
        *("app.segment", "app.segmenter"),
    },
    "app.segmenter": {"app.checkpoint", "app.components", "app.model", "app.scan", "app.segment"},
    "app.scan": {"app.read_ahead"},
    "app.segment": {"app.body", "app.intensity", "app.model", "app.slices"},
    "app.body": {"app.slices"},
    "app.model": {"app.checkpoint", "app.limits", "app.network"},
    "app.checkpoint": {"app.network"},
    "app.components": {"app.organs"},
    "app.network": {"app.network.hrnet_ocr"},
    "app.network.hrnet_ocr": {"app.network.hrnet", "app.network.ocr"},
    "app.network.ocr": {"app.network.hrnet"},
}
ONE_HOME = {"nibabel": "app.scan", "isal": "app.scan", "pynvml": "app.gpu_memory", "click": "app.cli"}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: pathlib.Path) -> set[str]:
    """Every module a file imports, inside functions too; `from app import x` counts as app.x where that is one."""
    found: set[str] = set()
    modules = {module_name(p) for p in APP}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else str(node.module) for name in names}
    return found


@pytest.mark.parametrize("path", APP, ids=module_name)
def test_arrows_point_one_way(path: pathlib.Path) -> None:
    inside = {name for name in imports(path) if name.split(".")[0] in ("app", "training", "evaluation", "tests")}
    assert inside <= ARROWS.get(module_name(path), set())


@pytest.mark.parametrize(("library", "home"), ONE_HOME.items())
def test_each_library_lives_in_one_module(library: str, home: str) -> None:
    users = {module_name(p) for p in APP if any(name.split(".")[0] == library for name in imports(p))}
    assert users == {home}


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, app, app.cli; print('torch' in sys.modules, app.__version__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.startswith("False ")


def test_the_image_gets_four_things_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule for rule in rules[1:] if rule.startswith("!")} == {
        "!app",
        "!weights",
        "!predict.sh",
        "!requirements.txt",
    }
