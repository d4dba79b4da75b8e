"""The queue of cases: the next scan is opened ahead, and what is wrong with it is said at its own turn."""

from __future__ import annotations

import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator

import pytest

from app.case_queue import CaseQueue
from app.cases import find_cases
from app.errors import VolumeError
from app.volumes import FindOptions
from app.volumes.nifti import NiftiVolume
from app.work import Resume


@pytest.fixture
def folders(tmp_path: pathlib.Path, phantom_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Inputs a (good), b (truncated), c (good), and an empty output folder."""
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    outputs.mkdir()
    for name in "abc":
        shutil.copy(phantom_path, inputs / f"{name}_0000.nii.gz")
    (inputs / "b_0000.nii.gz").write_bytes(b"no scan")
    return inputs, outputs


def test_each_case_comes_with_its_own_scan_or_error(folders: tuple[pathlib.Path, pathlib.Path]) -> None:
    queue = CaseQueue(find_cases(*folders))
    assert queue.total == 3
    found = []
    for turn in queue:
        case, opened = turn.case, turn.opened
        assert opened is not None
        error = opened.exception()
        if error is None:
            scan, slices = opened.result()
            assert scan.path == case.scan.path
            found.append((case.name, sum(1 for _ in slices)))
        else:
            assert isinstance(error, VolumeError)
            assert str(case.scan.path) in str(error)
            found.append((case.name, 0))
    assert found == [("a", 20), ("b", 0), ("c", 20)]


def test_the_first_scan_is_decoded_before_anybody_asks(
    folders: tuple[pathlib.Path, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_go_on = threading.Event(), threading.Event()
    ended = threading.Event()
    decode = NiftiVolume._decode

    def observed(volume: NiftiVolume, convert: Callable[..., object]) -> Iterator[object]:
        began.set()
        may_go_on.wait(10)
        try:
            yield from decode(volume, convert)
        finally:
            ended.set()

    monkeypatch.setattr(NiftiVolume, "_decode", observed)
    queue = CaseQueue(find_cases(*folders))
    assert began.wait(10)
    may_go_on.set()
    queue.close()
    assert ended.is_set()


def test_what_is_skipped_is_not_opened(folders: tuple[pathlib.Path, pathlib.Path]) -> None:
    (folders[1] / "a.nii.gz").touch()
    queue = CaseQueue(find_cases(*folders), Resume(skip_existing=True))
    assert [turn.opened is None for turn in queue] == [True, False, False]
    queue.close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("FLARE_001_0000.nii.gz", "FLARE_001.nii.gz"),
        ("a.nii.gz", "a.nii.gz"),
        ("a_0000.nii", "a.nii"),
        ("a_0000_b.nii.gz", "a_0000_b.nii.gz"),
        ("scan.v2_0000.nii.gz", "scan.v2.nii.gz"),
    ],
)
def test_mask_names(tmp_path: pathlib.Path, name: str, expected: str) -> None:
    (tmp_path / name).touch()
    (case,) = find_cases(tmp_path, tmp_path / "out")
    assert case.outputs == {"nifti": tmp_path / "out" / expected}


def test_a_tree_is_mirrored_on_request(tmp_path: pathlib.Path, phantom_path: pathlib.Path) -> None:
    source, output = tmp_path / "in", tmp_path / "in" / "masks"
    for folder in ("", "a", "a/b", "c", "masks/a"):
        (source / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(phantom_path, source / folder / "ct_0000.nii.gz")
    assert [case.name for case in find_cases(source, output)] == ["ct"]
    found = {
        case.name: case.outputs["nifti"] for case in find_cases(source, output, options=FindOptions(recursive=True))
    }
    names = ["a/b/ct", "a/ct", "c/ct", "ct"]  # not what is in OUTPUT
    assert found == {name: output / f"{name}.nii.gz" for name in names}
