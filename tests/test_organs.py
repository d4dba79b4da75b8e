"""Labels travel with the weights: models with fewer, more and reordered labels, through all that is made of a mask."""

from __future__ import annotations

import csv
import json
import pathlib
import shutil
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from app.checkpoint import Checkpoint, load_checkpoint
from app.cli import main
from app.engines import Engine
from app.engines.openvino_engine import OpenvinoEngine
from app.engines.torch_engine import Model, TorchEngine
from app.network import load
from app.organs import LABELS, ORGANS, Organ
from app.results import RESULTS
from app.run_log import read_records
from app.segmenter import Segmenter
from evaluation.__main__ import main as evaluation_main
from evaluation.metrics import PROTOCOLS
from phantom import make_phantom
from phantom.dicom import write_series
from tests.conftest import ROOT
from tests.tiny import COARSE, save_undecided

SPACING = (4.0, 3.5, 20.0)
EVERYTHING = [word for name in RESULTS if name != "nifti" for word in ("--save", name)]
MODELS = {"all": LABELS, "two": ("background", "liver", "spleen"), "kidneys": ("background", "pancreas", "kidneys")}


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("series")
    write_series(folder, make_phantom((72, 80, 12), SPACING)[0], SPACING)
    return folder


@pytest.fixture(scope="module", params=MODELS)
def written(
    request: pytest.FixtureRequest, series: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Organ], pathlib.Path]:
    """The organs of a model, and a folder with every output of one scan; its mask need not have all of them."""
    labels = MODELS[request.param]
    weights = save_undecided(replace(COARSE, labels=labels), tmp_path_factory.mktemp("weights"))
    output = tmp_path_factory.mktemp("output")
    arguments = [str(series), str(output), "--weights", str(weights), "--device", "cpu", *EVERYTHING]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return [Organ[label.upper()] for label in labels[1:]], output


def only(folder: pathlib.Path, extension: str) -> pathlib.Path:
    (path,) = folder.glob(f"*{extension}")
    return path


def mask_in(folder: pathlib.Path) -> NDArray[np.uint8]:
    return np.asarray(nib.load(only(folder, ".nii.gz")).dataobj)


def test_mask_log_and_numbers_have_the_model_s_organs(written: tuple[list[Organ], pathlib.Path]) -> None:
    organs, folder = written
    keys = [organ.key for organ in organs]
    assert set(np.unique(mask_in(folder))) <= {0, *organs}
    (record,) = read_records(folder)
    assert list(record["volumes_ml"]) == list(record["confidence"]) == keys
    found = json.loads(only(folder, ".statistics.json").read_text())
    assert list(found["organs"]) == keys
    assert (found["kidneys"] == {}) == (Organ.KIDNEYS not in organs)
    with (folder / "statistics.csv").open(newline="") as stream:
        rows = [row["organ"] for row in csv.DictReader(stream)]
    assert [row for row in rows if not row.endswith(" kidney")] == keys


def test_dicom_objects_have_the_model_s_organs(written: tuple[list[Organ], pathlib.Path]) -> None:
    organs, folder = written
    there = np.unique(mask_in(folder))
    organs = [organ for organ in organs if organ in there]
    assert len(organs) > 1
    meanings = [organ.meaning for organ in organs]
    segments = pydicom.dcmread(only(folder, ".seg.dcm")).SegmentSequence
    assert [segment.SegmentLabel for segment in segments] == meanings
    codes = [segment.SegmentedPropertyTypeCodeSequence[0].CodeValue for segment in segments]
    assert codes == [organ.snomed for organ in organs]
    regions = pydicom.dcmread(only(folder, ".rtstruct.dcm")).StructureSetROISequence
    assert [region.ROIName for region in regions] == meanings
    report = str(pydicom.dcmread(only(folder, ".sr.dcm")))
    assert {organ for organ in ORGANS if f"'{organ.snomed}'" in report} == set(organs)


def test_pictures_and_tables_have_the_model_s_organs(written: tuple[list[Organ], pathlib.Path]) -> None:
    organs, folder = written
    with Image.open(only(folder, ".preview.png")) as picture:
        colours = {colour for _, colour in picture.getcolors(picture.width * picture.height) or []}
    assert {organ for organ in ORGANS if organ.rgb in colours} == set(organs)
    names = [label["name"] for label in json.loads((folder / "labels.json").read_text())["labels"]]
    assert names == [organ.key for organ in ORGANS]  # of the folder, for masks of any model
    page, index = only(folder, ".viewer.html").read_text(), (folder / "index.html").read_text()
    (record,) = read_records(folder)
    for organ in ORGANS:
        assert (f'"name": "{organ.key}"' in page) == (organ in organs)
        assert f"{organ.key}, ml" in index
    assert all(f">{ml:.0f}</td>" in index for ml in record["volumes_ml"].values())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_masks_of_any_model_can_be_scored(
    written: tuple[list[Organ], pathlib.Path], tmp_path: pathlib.Path, protocol: str
) -> None:
    mask = only(written[1], ".nii.gz")
    (tmp_path / "masks").mkdir()
    shutil.copy(mask, tmp_path / "masks")
    arguments = ["accuracy", str(tmp_path / "masks"), str(tmp_path / "masks"), "--out", str(tmp_path / "report")]
    result = CliRunner().invoke(evaluation_main, [*arguments, "--protocol", protocol])
    assert result.exit_code == 0, result.output
    with (tmp_path / "report" / "scores.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert [float(row[f"DSC_{organ:d}"]) for organ in ORGANS] == [1.0] * len(ORGANS)
    assert all(f"| {organ.key} |" in result.output for organ in ORGANS)


def engines(checkpoint: Checkpoint) -> list[Engine]:
    """The model on a CPU in float32, which rounds too little to change a label."""
    torch_model = Model(checkpoint.config, load(checkpoint), torch.device("cpu"), torch.float32)
    return [OpenvinoEngine(checkpoint, "float32"), TorchEngine(torch_model, {})]


@pytest.mark.parametrize("order", [(0, 4, 3, 1, 2), (0, 2, 1, 4, 3)])
def test_the_order_of_the_channels_changes_nothing(
    tiny_weights: pathlib.Path, phantom_path: pathlib.Path, order: tuple[int, ...]
) -> None:
    first = load_checkpoint(tiny_weights)
    labels = tuple(first.config.labels[i] for i in order)
    tensors = {name: one[list(order)] if ".classify." in name else one for name, one in first.tensors.items()}
    other = replace(first, config=replace(first.config, labels=labels), tensors=tensors)
    for pair in zip(engines(first), engines(other), strict=True):
        one, two = (Segmenter(engine, postprocess=False).run(phantom_path) for engine in pair)
        assert len(np.unique(one.mask)) == len(labels)
        assert np.mean(one.mask != two.mask) < 1e-4  # sums of another order round otherwise
        assert list(two.confidence) == [Organ[label.upper()] for label in labels[1:]]
        assert two.confidence == pytest.approx(one.confidence, abs=1e-4)


ROW = '    GALLBLADDER = 5, "28231008", "Gallbladder", (150, 110, 200), 1, 500\n'


def test_adding_an_organ_takes_one_row(tmp_path: pathlib.Path) -> None:
    """As docs/ARCHITECTURE.md promises: to a copy of the program, whose models may then know one organ more.

    There the tests above are run again, and models without the new organ still work. What was published of models that
    did not know it stays as it was.
    """
    for name in ("app", "benchmarks", "cluster", "evaluation", "phantom", "tests", "training"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "docs", "pyproject.toml", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    table = tmp_path / "app" / "organs.py"
    before = '    PANCREAS = 4, "15776009", "Pancreas", (237, 174, 73), 1, 500\n'
    assert table.read_text().count(before) == 1
    table.write_text(table.read_text().replace(before, before + ROW))

    def run(*words: str) -> str:
        shown = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        return shown.stdout

    assert "4 pancreas, 5 gallbladder" in " ".join(run("-m", "app", "--help").split())
    chosen = "all and (model_s_organs or scored) or two and numbers"
    assert "6 passed" in run("-m", "pytest", "-p", "no:cacheprovider", "tests/test_organs.py", "-k", chosen)
    run("-m", "benchmarks.published", "--check")
