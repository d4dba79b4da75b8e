"""The arrows of docs/ARCHITECTURE.md, read from the imports; and what the image may carry."""

from __future__ import annotations

import ast
import pathlib
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from phantom import make_phantom
from tests.conftest import ROOT

APP = sorted((ROOT / "app").rglob("*.py"))
WINGS = ("volumes", "engines", "inference", "results", "network")
# From each room of app/ to those that it may import; every room may import those in FOR_ALL.
ARROWS = {
    "": {"segmenter"},  # the package itself, when Segmenter is asked for
    "__main__": {"cli", "process", "quick_imports"},
    "cli": {
        *("case_queue", "cases", "host", "quick_imports", "options", "process", "results", "run", "run_log", "shards"),
        *("volumes", "whole_file", "work"),
    },
    "options": {"cases", "engines", "quick_imports", "results", "segmenter", "volumes", "work"},
    "shards": {"run_log"},
    "failures": {"whole_file"},
    "process": {"whole_file"},
    "run_log": {"segmentation", "whole_file"},
    "run": {
        *("case_queue", "cases", "failures", "gpu_memory", "host", "inference", "results", "run_log"),
        *("segmentation", "segmenter", "work"),
    },
    "work": {"cases", "failures", "run_log", "volumes"},
    "case_queue": {"cases", "run_log", "volumes", "work"},
    "segmenter": {"checkpoint", "engines", "inference", "segmentation", "volumes"},
    "volumes": {"host"},  # as many processes as CPUs
    "cases": {"letter_case", "results", "run_log", "volumes", "whole_file"},
    "letter_case": {"volumes"},
    "results": {"inference", "run_log", "segmentation", "volumes", "whole_file"},
    "segmentation": {"inference", "results", "volumes"},  # results: late, for `Segmentation.save`
    "inference": {"checkpoint", "engines", "volumes"},
    "engines": {"architecture", "checkpoint", "gpu_memory", "host", "network"},
    "network": {"architecture", "checkpoint"},
    "checkpoint": {"architecture", "whole_file"},
}
FOR_ALL = {"errors", "hounsfield", "organs", "ownership", "strides", "version"}
# Which library lives where.
HOMES = {
    "click": {"cli", "options"},
    "pynvml": {"gpu_memory"},
    "isal": {"volumes.gzip_file"},
    "openvino": {"engines.openvino_engine", "engines.openvino_graph"},
    "nibabel": {"quick_imports", "volumes.memory", "volumes.nifti", "volumes.nifti_header", "volumes.volume"},
    "cc3d": {"inference.components"},
    "safetensors": {"checkpoint"},
    "pydicom": {
        *(
            "volumes.dicom_header",
            "volumes.dicom_slice",
            "results.dicom_result",
            "results.dicom_seg",
            "results.rtstruct",
        ),
        "results.structured_report",
    },
    "highdicom": {"results.dicom_seg", "results.structured_report"},
    "contourpy": {"results.outlines"},
    "PIL": {"results.preview"},
    "jinja2": {"results.viewer"},
}
WITH_TORCH = {
    *("engines.torch_engine", "engines.torch_images", "network", "network.hrnet", "network.hrnet_ocr", "network.ocr"),
    "network.loading",
}


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


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_lists_its_rooms(wing: str) -> None:
    listed = (ROOT / "app" / wing / "__init__.py").read_text()
    missing = [p.name for p in (ROOT / "app" / wing).glob("[a-z]*.py") if p.name not in listed]
    assert not missing


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_each_library_has_its_home(library: str, homes: set[str]) -> None:
    assert {module(p) for p in APP if library in imports(p)[1]} == homes


@pytest.mark.parametrize("path", [p for p in APP if module(p) not in WITH_TORCH], ids=module)
def test_only_the_torch_engine_and_the_network_import_torch(path: pathlib.Path) -> None:
    assert "torch" not in imports(path)[1]


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, app, app.cli; print('torch' in sys.modules, app.__version__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.startswith("False ")


def test_a_run_over_nifti_imports_neither_pydicom_nor_torch(phantom_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Where pydicom is installed, nibabel would: an eighth of the start-up; and openvino its telemetry."""
    code = (
        "import atexit, sys; from app.quick_imports import import_nibabel; import_nibabel(); "
        "from app.cli import main; atexit.register(lambda: print(*sys.modules)); main()"
    )
    command = [sys.executable, "-c", code, str(phantom_path), str(tmp_path), "--device", "cpu"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert {"nibabel", "openvino"} <= set(shown.stdout.split())
    assert not {"pydicom", "gdcm", "highdicom", "requests", "torch", "openvino_telemetry"} & set(shown.stdout.split())


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


MADE_UP_FORMAT = """
import pathlib
from functools import partial
import numpy as np
from .read_ahead import ReadAhead
from .volume import Geometry, Scan

class Stacked:
    accepts, extensions = "a stack", (".stack",)

    def claims(self, path, head):
        return head.startswith(b"STACK")

    def find(self, files, folder, options):
        return [Scan(path.stem, path, partial(self.open, path)) for path in files]

    def open(self, path):
        return StackedVolume(path)

class StackedVolume:
    warnings = ()

    def __init__(self, path):
        self.path = path
        self.voxels = np.frombuffer(path.read_bytes()[5:], "<i2").reshape(40, 40, 6)
        self.geometry = Geometry.of(self.voxels.shape, np.diag([-6.0, -7.0, 40.0, 1.0]))

    def slices(self):
        planes = ((z, np.ascontiguousarray(self.voxels[:, :, z].T)) for z in range(6))
        return ReadAhead(planes, depth=2)
"""
MADE_UP_OUTPUTS = """
from .result import MARK, Result, beside, write_whole

class Count(Result):
    def path(self, base, mask_extension):
        return beside(base, ".count.txt")

    def write(self, segmentation, path):
        write_whole(path, f"{(segmentation.mask > 0).sum()} {MARK}".encode())

class Report(Count):
    requires = ("count",)

    def path(self, base, mask_extension):
        return beside(base, ".report.txt")

class Tally(Count):
    pass

class Sum(Count):
    folder_files = ("statistics.csv",)

    def path(self, base, mask_extension):
        return beside(base, ".sum.txt")
"""
ROWS = {  # the one row of each (and its import), by wing
    "volumes": [
        ("from . import dicom, nifti\n", "from . import dicom, nifti, stacked\n"),
        ('    "nifti": nifti.Nifti(),\n', '    "nifti": nifti.Nifti(),\n    "stacked": stacked.Stacked(),\n'),
    ],
    "results": [
        (
            '    "nifti": ("nifti_mask", "NiftiMask"),\n',
            '    "nifti": ("nifti_mask", "NiftiMask"),\n    "report": ("count", "Report"),\n'
            '    "count": ("count", "Count"),\n    "tally": ("count", "Tally"),\n    "sum": ("count", "Sum"),\n',
        ),
    ],
}


def test_adding_a_format_or_an_output_takes_one_file_and_one_row(
    tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    """As docs/ARCHITECTURE.md promises: they are added to a copy of the program, which then reads and writes them.

    One output requires another, which is written along with it; and two would write the same file as another.
    """
    shutil.copytree(ROOT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "app" / "volumes" / "stacked.py").write_text(MADE_UP_FORMAT)
    (tmp_path / "app" / "results" / "count.py").write_text(MADE_UP_OUTPUTS)
    for wing, changes in ROWS.items():
        table = tmp_path / "app" / wing / "__init__.py"
        text = table.read_text()
        for before, after in changes:
            assert text.count(before) == 1
            text = text.replace(before, after)
        table.write_text(text)
    voxels = make_phantom((40, 40, 6), (6.0, 7.0, 40.0))[0]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "case.stack").write_bytes(b"STACK" + voxels.astype("<i2").tobytes())
    options = ["--weights", str(tiny_weights), "--device", "cpu", "--save", "nifti", "--save", "report"]
    command = [sys.executable, "-m", "app", str(tmp_path / "in"), str(tmp_path / "out"), *options]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    mask = np.asarray(nib.load(tmp_path / "out" / "case.nii.gz").dataobj)
    for name in ("case.count.txt", "case.report.txt"):
        assert (tmp_path / "out" / name).read_text().split()[0] == str(int((mask > 0).sum()))
    for one, other in (("count", "tally"), ("statistics", "sum")):  # beside a scan's other files; for the whole folder
        both = [*command, "--save", one, "--save", other]
        shown = subprocess.run(both, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert shown.returncode == 2
        assert f"--save {one} and --save {other} write the same file; choose one" in shown.stderr
    code = (
        "import sys; from app import Segmenter\n"
        "mask = Segmenter.load(sys.argv[1], 'cpu').segment(sys.argv[2])\nprint(int((mask > 0).sum()))"
    )
    command = [sys.executable, "-c", code, str(tiny_weights), str(tmp_path / "in" / "deep" / "case.stack")]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [str(int((mask > 0).sum()))]


NIFTI_NAMES = (".nii", ".gz", "_0000")


@pytest.mark.parametrize("path", [p for p in APP if room(module(p)) not in ("volumes", "results")], ids=module)
def test_no_room_but_the_format_s_own_knows_how_its_files_are_called(path: pathlib.Path) -> None:
    """In code; a help text may say what users type."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            assert not any(name in node.value for name in NIFTI_NAMES), node.value


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
