"""The arrows of docs/ARCHITECTURE.md, read from the imports; and what the image may carry."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import ROOT

APP = sorted((ROOT / "app").rglob("*.py"))
WINGS = ("volumes", "inference", "results", "network")
# From each room of app/ to those that it may import; every room may import errors, organs, hounsfield and version.
ARROWS = {
    "": {"segmenter"},  # the package itself, when Segmenter is asked for
    "__main__": {"cli"},
    "cli": {"cases", "host", "quick_imports", "options", "results", "run", "run_log", "shards"},
    "options": {"cases", "inference", "results", "segmenter", "volumes"},
    "shards": {"run_log"},
    "failures": {"whole_file"},
    "run_log": {"whole_file"},
    "run": {"cases", "failures", "gpu_memory", "host", "inference", "results", "run_log", "segmenter"},
    "segmenter": {"checkpoint", "inference", "volumes"},
    "cases": {"failures", "results", "run_log", "volumes", "whole_file"},
    "inference": {"checkpoint", "host", "network"},
    "checkpoint": {"network", "whole_file"},
    "results": {"run_log", "volumes", "whole_file"},
}
FOR_ALL = {"errors", "hounsfield", "organs", "version"}
# Which library lives where.
HOMES = {
    "click": {"cli", "options"},
    "pynvml": {"gpu_memory"},
    "isal": {"volumes.gzip_file"},
    "nibabel": {"quick_imports", "volumes.nifti", "volumes.nifti_header", "volumes.volume"},
    "cc3d": {"inference.components"},
    "safetensors": {"checkpoint"},
    "pydicom": {
        *("volumes.dicom_slice", "results.dicom_result", "results.dicom_seg", "results.rtstruct"),
        "results.structured_report",
    },
    "highdicom": {"results.dicom_seg", "results.structured_report"},
    "contourpy": {"results.outlines"},
    "PIL": {"results.preview"},
}
WITHOUT_TORCH = (
    "volumes",
    "results",
    "cases",
    "host",
    "errors",
    "organs",
    "gpu_memory",
    "run_log",
    "whole_file",
    "shards",
    "failures",
)


def module(path: pathlib.Path) -> str:
    """A file's dotted name inside app/."""
    parts = path.relative_to(ROOT / "app").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    """A wing, or a file beside the wings."""
    return name.split(".", maxsplit=1)[0]


def imports(path: pathlib.Path) -> tuple[set[str], set[str]]:
    """The modules of app/ and the libraries that a file imports, inside functions too."""
    ours, theirs = set(), set()
    modules = {module(p) for p in APP}
    package = path.relative_to(ROOT / "app").parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            theirs |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                ours.add(inner if inner in modules else ".".join(base))
        elif isinstance(node, ast.ImportFrom):
            theirs.add(str(node.module).split(".", maxsplit=1)[0])
    return ours, theirs


@pytest.mark.parametrize("path", APP, ids=module)
def test_arrows_point_one_way(path: pathlib.Path) -> None:
    here = room(module(path))
    reached = {room(name) for name in imports(path)[0]} - {here} - FOR_ALL
    assert reached <= ARROWS.get(here, set())


@pytest.mark.parametrize("path", APP, ids=module)
def test_the_package_knows_itself_by_relative_imports_only(path: pathlib.Path) -> None:
    """So that it works as `app` in the tree and as `hrnet_ocr_abdomen` where it is installed."""
    assert not imports(path)[1] & {
        "app",
        "hrnet_ocr_abdomen",
        "training",
        "evaluation",
        "benchmarks",
        "phantom",
        "tests",
    }


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_each_library_has_its_home(library: str, homes: set[str]) -> None:
    assert {module(p) for p in APP if library in imports(p)[1]} == homes


@pytest.mark.parametrize("path", [p for p in APP if room(module(p)) in WITHOUT_TORCH], ids=module)
def test_what_starts_before_torch_imports_none(path: pathlib.Path) -> None:
    assert "torch" not in imports(path)[1]


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, app, app.cli; print('torch' in sys.modules, app.__version__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.startswith("False ")


def test_a_run_over_nifti_imports_nothing_for_dicom(phantom_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Where pydicom is installed, nibabel would: an eighth of the start-up."""
    code = "import atexit, sys; from app.cli import main; atexit.register(lambda: print(*sys.modules)); main()"
    command = [sys.executable, "-c", code, str(phantom_path), str(tmp_path), "--device", "cpu"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert {"nibabel", "torch"} <= set(shown.stdout.split())
    assert not {"pydicom", "gdcm", "highdicom", "requests"} & set(shown.stdout.split())


def test_garbage_is_collected_again_once_the_libraries_are_imported() -> None:
    code = (
        "import gc, app.cli; from app.quick_imports import without_collection as w\nwith w(): print(gc.isenabled())\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code + "print(gc.isenabled())"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert shown.stdout.split() == ["False", "True"]


def test_whoever_imports_the_package_gets_nibabel_as_it_is() -> None:
    code = "import app.segmenter, nibabel.nifti1; print(nibabel.nifti1.have_dicom)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout == "True\n"


@pytest.mark.parametrize(
    ("wing", "may_import"),
    [
        ("training", {"app", "evaluation"}),
        ("evaluation", {"app"}),
        ("benchmarks", {"app", "cluster", "evaluation", "phantom"}),
        ("cluster", {"app"}),
        ("phantom", set()),
    ],
)
def test_what_does_not_ship_builds_on_what_does(wing: str, may_import: set[str]) -> None:
    others = {"app", "training", "evaluation", "benchmarks", "cluster", "phantom", "tests"} - {wing}
    for path in (ROOT / wing).rglob("*.py"):
        roots = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                roots.add(node.module.split(".")[0])
        assert roots & others <= may_import, path


@pytest.mark.parametrize(
    ("wing", "table", "one"), [("volumes", "FORMATS", "volumes.dicom"), ("results", "RESULTS", "results.dicom_seg")]
)
def test_adding_a_format_or_an_output_takes_one_file_and_one_row(wing: str, table: str, one: str) -> None:
    """As docs/ARCHITECTURE.md promises: only the table of its wing names the module of a format or an output.

    Outputs in a scan's own format know that format: NIfTI masks and DICOM segmentations.
    """
    assert f"\n{table}: dict[str, " in (ROOT / "app" / wing / "__init__.py").read_text()
    assert {module(p) for p in APP if one in imports(p)[0] and room(module(p)) != "results"} <= {wing}


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
