"""The cache of training slices, and the batches drawn from it."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import unicodedata
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from app.organs import IGNORE
from phantom import write_phantom
from tests.tiny import TINY, tiny
from training.__main__ import main
from training.cache import CachedCase, DataError, find_pairs, load_cases
from training.data import DataOptions
from training.sampling import SliceSampler


def test_the_cache_holds_what_inference_would_see(cases: list[CachedCase]) -> None:
    assert [case.name for case in cases] == ["one", "two"]
    for case in cases:
        assert case.images.dtype == case.labels.dtype == np.uint8
        assert case.images.shape == case.labels.shape
        assert len(case.images) == 16
        assert case.spacing_z_mm == 16.0
        assert isinstance(case.images, np.memmap)
        assert {0, 1, 2, 3, 4} <= set(np.unique(case.labels))
    assert (cases[1].labels[:3] == IGNORE).all()
    liver = cases[0].images[cases[0].labels == 1].mean()
    assert liver == pytest.approx((110 + 125) / 400 * 255, abs=30)  # about 110 HU in -125..275


def test_the_cache_is_written_once_and_again_when_the_data_changes(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    load_cases([data], tmp_path / "cache", TINY.model)
    entries = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    load_cases([data], tmp_path / "cache", TINY.model)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == entries
    load_cases([data], tmp_path / "cache", tiny(window_hu=(-200.0, 300.0)).model)
    assert len(list((tmp_path / "cache").iterdir())) == 2 * len(entries)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("no images", r"no imagesTr/\*_0000.nii.gz; expected the FLARE / nnU-Net layout"),
        ("no label", r"labelsTr/one.nii.gz: no label for case one; add it or remove the image"),
        ("shape", r"labelsTr/one.nii.gz: shape .* the reference has .*; resample it onto that grid"),
        ("affine", r"labelsTr/one.nii.gz: its affine is not the reference's; resample it onto that grid"),
        ("value", r"labelsTr/one.nii.gz: holds the value 9; labels are 0, 1, 2, 3, 4, 255, renumber them"),
        ("scaled", r"labelsTr/one.nii.gz: holds the value [\d.]+; labels are .*, 255, save them as integers, unscaled"),
    ],
)
def test_bad_data_is_named_before_training(tmp_path: pathlib.Path, change: str, line: str) -> None:
    image, label = tmp_path / "imagesTr" / "one_0000.nii.gz", tmp_path / "labelsTr" / "one.nii.gz"
    write_phantom(image, label, (64, 64, 4), (6.0, 6.0, 60.0))
    reference = nib.load(label)
    labels = np.asarray(reference.dataobj).copy()
    if change == "no images":
        image.unlink()
    elif change == "no label":
        label.unlink()
    elif change == "shape":
        nib.save(nib.Nifti1Image(labels[:-1], reference.affine), label)
    elif change == "scaled":  # as nibabel does with floats
        nib.save(nib.Nifti1Image(labels.astype(float), reference.affine), label, dtype=np.uint16)
    elif change == "affine":
        nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1, 1, 1])), label)
    else:
        labels[0, 0, 0] = 9
        nib.save(nib.Nifti1Image(labels, reference.affine), label)
    with pytest.raises(DataError, match=line):
        load_cases([tmp_path], tmp_path / "cache", TINY.model)


# nnU-Net's version 2, and version 1 with its like; a region of several labels, a name that is no organ of ours.
DESCRIPTIONS: dict[str, tuple[object, str]] = {
    "AMOS": (
        {"background": 0, "spleen": 1, "right kidney": 2},
        "calls label 1 'spleen', which is liver here; renumber",
    ),
    "KiTS": ({"background": 0, "all": [1, 2], "kidney": 1, "tumor": 2}, "calls label 1 'kidney', which is liver here"),
    "LiTS": ({"0": "background", "1": "liver", "2": "cancer"}, "calls label 2 'cancer', which is kidneys here"),
    "FLARE": ({"0": "background", "1": "Liver", "2": "Right Kidney", "3": "Spleen", "4": "Pancreas"}, ""),
    "ours": ({"background": 0, "liver": 1, "kidneys": 2, "pancreas": 4, "duodenum": 5, "ignore": 255}, ""),
    "no names": (["liver"], ""),
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_labels_that_mean_other_organs_are_refused(small: pathlib.Path, kind: str) -> None:
    labels, line = DESCRIPTIONS[kind]
    (small / "dataset.json").write_text(json.dumps({"labels": labels}))
    if line:
        with pytest.raises(DataError, match=line):
            find_pairs(small)
    else:
        assert [name for name, _, _ in find_pairs(small)] == ["one"]


def test_a_label_without_a_scan_is_a_warning(small: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its scan may be called otherwise, such as `two.nii.gz` among others with `_0000`."""
    shutil.copy(small / "labelsTr" / "one.nii.gz", small / "labelsTr" / "two.nii.gz")
    assert [name for name, _, _ in find_pairs(small)] == ["one"]
    assert caplog.messages == [f"{small / 'labelsTr'}: 1 labels have no scan of their name, such as two; left out"]


def die(*_: object, **__: object) -> None:
    """As a process dies that takes too much memory."""
    assert multiprocessing.parent_process(), "this is the process of the tests"
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def small(tmp_path: pathlib.Path) -> pathlib.Path:
    """A data folder with one case, `one`, quickly read."""
    folder = tmp_path / "small"
    write_phantom(folder / "imagesTr" / "one_0000.nii.gz", folder / "labelsTr" / "one.nii.gz", (64, 64, 4), (6, 6, 60))
    return folder


def load_small(small: pathlib.Path) -> CachedCase:
    (case,) = load_cases([small], small / "cache", TINY.model)
    return case


@pytest.mark.parametrize(
    "left",
    ["nothing but the folder", "no case.json", "images cut short", "labels empty", "case.json empty", "other shape"],
)
def test_what_a_killed_run_left_in_the_cache_is_written_again(small: pathlib.Path, left: str) -> None:
    whole = load_small(small)
    whole = replace(whole, images=np.array(whole.images), labels=np.array(whole.labels))  # not from the file any more
    (entry,) = (small / "cache").iterdir()
    images = (entry / "images.npy").read_bytes()
    (entry / ".0123456789abcdef.partial").write_bytes(images[:1000])
    if left == "nothing but the folder":
        for path in entry.iterdir():
            path.unlink()
    elif left == "images cut short":
        (entry / "images.npy").write_bytes(images[:-1])
    elif left == "labels empty":
        (entry / "labels.npy").write_bytes(b"")
    elif left == "case.json empty":
        (entry / "case.json").write_bytes(b"")
    elif left == "other shape":
        np.save(entry / "labels.npy", np.zeros((2, 2, 2), np.uint8))
    else:
        (entry / "case.json").unlink()
    again = load_small(small)
    np.testing.assert_array_equal(again.images, whole.images)
    np.testing.assert_array_equal(again.labels, whole.labels)
    assert again.spacing_z_mm == whole.spacing_z_mm == 60


def test_hidden_folders_of_an_older_versions_killed_run_are_left_alone(small: pathlib.Path) -> None:
    load_small(small)
    (entry,) = (small / "cache").iterdir()
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    for pid in range(1, 100):
        (small / "cache" / f".{entry.name}.{pid}").mkdir()
    assert load_small(small).name == "one"


def test_a_process_that_is_killed_while_it_caches_ends_training_in_one_line(
    small: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(small / "imagesTr" / "one_0000.nii.gz", small / "imagesTr" / "two_0000.nii.gz")  # one is cached here
    shutil.copy(small / "labelsTr" / "one.nii.gz", small / "labelsTr" / "two.nii.gz")
    monkeypatch.setattr("evaluation.processes.usable_cpus", lambda: 2)
    monkeypatch.setattr("training.cache._store", die)
    with pytest.raises(DataError, match="caching: a process was killed, most often for want of memory"):
        load_small(small)


@pytest.mark.parametrize("damage", ["empty", "cut short", "no gzip", "dangling link"])
def test_a_damaged_image_ends_training_in_one_line(small: pathlib.Path, damage: str) -> None:
    image = small / "imagesTr" / "one_0000.nii.gz"
    content = image.read_bytes()
    image.unlink()
    if damage == "dangling link":
        image.symlink_to("nowhere")
    else:
        image.write_bytes({"empty": b"", "cut short": content[: len(content) // 2], "no gzip": b"abc" * 500}[damage])
    (small / "own.py").write_text("from tests.tiny import TINY as RECIPE\n")
    arguments = ["train", str(small / "own.py"), str(small / "run"), "--data", str(small), "--device", "cpu"]
    result = CliRunner().invoke(main, [*arguments, "--cache", str(small / "cache")])
    assert result.exit_code == 1
    assert result.output.startswith(f"error: {image}: ")
    assert result.output.count("\n") == 1


def test_a_cache_that_cannot_be_written_is_named(small: pathlib.Path) -> None:
    (small / "cache").write_bytes(b"")
    with pytest.raises(DataError, match=r"cache/one-.*: cannot be written \(Not a directory\); free disk space, or"):
        load_small(small)


def test_plain_nifti_and_letters_of_either_unicode_form_belong_together(small: pathlib.Path) -> None:
    image, label = small / "imagesTr" / "one_0000.nii.gz", small / "labelsTr" / "one.nii.gz"
    composed, decomposed = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    image.rename(image.with_name(f"{decomposed}_0000.nii.gz"))
    (small / "labelsTr" / f"{composed}.nii").write_bytes(gzip.decompress(label.read_bytes()))
    label.unlink()
    assert load_small(small).name == composed
    with pytest.raises(DataError, match="every case is held out"):
        DataOptions([small], small / "cache", hold_out=[decomposed]).load(TINY.model)
    cases = DataOptions([small], small / "cache", sampling_weights={decomposed: 0.5}).load(TINY.model)
    assert cases.weights == [0.5]
    (small / "labelsTr" / f"{composed}.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"Zoë\.nii and Zoë\.nii\.gz are one case; remove or rename one"):
        load_small(small)


def test_batches_draw_organs_more_often_than_chance(cases: list[CachedCase]) -> None:
    sampler = SliceSampler(cases, [1.0, 0.0], TINY, seed=0)
    drawn = [sampler.draw() for _ in range(400)]
    assert {index for index, _ in drawn} == {0}
    pancreas = (cases[0].labels == 4).any((1, 2))
    assert np.mean([pancreas[z] for _, z in drawn]) > pancreas.mean() + 0.1
    images, labels, sizes = sampler.batch()
    assert images.shape == (2, 3, *sampler.canvas)
    assert labels.shape == (2, *sampler.canvas)
    assert sizes.tolist() == [list(cases[0].images.shape[1:])] * 2
    again, _, _ = SliceSampler(cases, [1.0, 0.0], TINY, seed=1).batch()
    same, _, _ = SliceSampler(cases, [1.0, 0.0], TINY, seed=1).batch()
    assert torch.equal(again, same)


@pytest.mark.parametrize(("prefix", "middle"), [(["thick"], [125, 175, 200, 200]), (["thin"], [100, 200, 200, 200])])
def test_thin_slices_are_averaged_as_in_inference_unless_they_are_separate(
    tmp_path: pathlib.Path, prefix: list[str], middle: list[int]
) -> None:
    """Slices of 1.25 mm: each counts half and its neighbours a quarter."""
    for folder, name, dtype in (("imagesTr", "thin_0000", np.int16), ("labelsTr", "thin", np.uint8)):
        (tmp_path / folder).mkdir()
        values = np.array([100, 100, 200, 200, 200, 200]) if dtype == np.int16 else np.ones(6)
        nifti = nib.Nifti1Image(np.broadcast_to(values, (64, 64, 6)).astype(dtype), np.diag([3.0, 3, 1.25, 1]))
        nib.save(nifti, tmp_path / folder / f"{name}.nii.gz")
    (case,) = load_cases([tmp_path], tmp_path / "cache", TINY.model, prefix)
    low, high = TINY.model.window_hu
    hounsfield = case.images[:, 8, 8] / 255 * (high - low) + low
    assert hounsfield[1:5] == pytest.approx(middle, abs=2)


def test_separate_slices_are_their_own_neighbours(cases: list[CachedCase]) -> None:
    separate = replace(cases[0], spacing_z_mm=None)
    assert separate.neighbour_step(16.0) == 0
    assert cases[0].neighbour_step(16.0) == 1
    images, _, _ = SliceSampler([separate], [1.0], tiny(batch=8, neighbour_mm=16.0), seed=0).batch()
    assert (images == images[:, :1]).all()
    images, _, _ = SliceSampler([cases[0]], [1.0], tiny(batch=8, neighbour_mm=16.0), seed=0).batch()
    assert not (images == images[:, :1]).all()


@pytest.mark.parametrize(
    ("shown", "line"),
    [((1, 4), "no training case shows kidneys, spleen; a model"), ((), "no training case shows liver, ")],
)
def test_organs_that_no_case_shows_are_named(
    small: pathlib.Path, caplog: pytest.LogCaptureFixture, shown: tuple[int, ...], line: str
) -> None:
    label = next((small / "labelsTr").iterdir())
    image = nib.load(label)
    labels = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.where(np.isin(labels, shown), labels, 0).astype(np.uint8), image.affine), label)
    options = DataOptions([small], small / "cache")
    if shown:
        options.load(TINY.model)
        assert line in caplog.text
    else:
        with pytest.raises(DataError, match=line):
            options.load(TINY.model)


def test_a_scan_without_hounsfield_units_is_a_warning(small: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    path = next((small / "imagesTr").iterdir())
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) // 10, image.affine), path)
    load_small(small)
    assert f"warning: {path}: intensities (percentiles" in caplog.text
    assert "do not look like Hounsfield units" in caplog.text
