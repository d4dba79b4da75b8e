"""The wheel: built from the tree, installed where the tree is not, and run."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import nibabel as nib
import numpy as np
import pytest

from app import Segmenter, __version__
from tests.conftest import ROOT

SOURCES = ("app", "weights", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The wheel, built in a copy of the tree, because the build leaves files behind."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        source = ROOT / name
        shutil.copytree(source, tree / name) if source.is_dir() else shutil.copy(source, tree)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(tree)]
    subprocess.run(pip, check=True)
    (built,) = out.iterdir()
    return built


def test_the_wheel_holds_the_package_its_weights_and_no_module_called_app(wheel: pathlib.Path) -> None:
    assert wheel.name == f"hrnet_ocr_abdomen-{__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {path.relative_to(ROOT / "app").as_posix() for path in (ROOT / "app").rglob("*.py")}
    assert {f"hrnet_ocr_abdomen/{name}" for name in code} <= names
    weights = {path.name for path in (ROOT / "weights").iterdir()}
    assert {f"hrnet_ocr_abdomen/weights/{name}" for name in weights} <= names
    roots = {name.split("/")[0] for name in names}
    assert roots == {"hrnet_ocr_abdomen", f"hrnet_ocr_abdomen-{__version__}.dist-info"}


def test_it_segments_where_the_tree_is_not(
    wheel: pathlib.Path, phantom_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """In a fresh virtual environment that has the libraries of this one, and not its paths."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    (tmp_path / "work").mkdir()
    program = tmp_path / "venv" / "bin" / "hrnet-ocr-abdomen"
    command = [str(program), str(phantom_path), str(tmp_path / "out"), "--device", "cpu"]
    shown = subprocess.run(command, cwd=tmp_path / "work", capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    mask = np.asarray(nib.load(tmp_path / "out" / "phantom.nii.gz").dataobj)
    np.testing.assert_array_equal(mask, Segmenter.load("fast", "cpu").segment(phantom_path))
    code = "import hrnet_ocr_abdomen as h, importlib.util as u; print(h.__version__, u.find_spec('app'))"
    shown = subprocess.run([python, "-c", code], cwd=tmp_path / "work", capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [__version__, "None"]
