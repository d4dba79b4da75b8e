"""The outputs of a case and of a folder: each by itself, so that one that cannot be written costs no other."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable

import numpy as np
import pytest
from click.testing import CliRunner

from app import Segmenter
from app.cases import find_cases
from app.cli import main
from app.errors import InputError, ResultError
from app.failures import read_failure
from app.ownership import BLANK, marked
from app.results import BESIDE, RESULTS, finish_all, make_results, write_all
from app.results.preview import Preview
from app.results.result import Result, beside, write_whole
from app.results.statistics import Statistics
from app.run import predict_case
from app.segmentation import Segmentation
from app.volumes import open_volume
from phantom import make_phantom, write_phantom
from phantom.dicom import write_series
from tests.tiny import segmentation_of


def test_what_is_left_beside_a_mask_that_is_another_is_said(tiny_weights: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Statistics of an earlier run would be taken for those of the mask."""
    engine = Segmenter.load(tiny_weights, "cpu").engine
    write_phantom(tmp_path / "in" / "a_0000.nii.gz", shape=(40, 40, 4), spacing_mm=(9.0, 9.0, 40.0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.statistics.json").write_bytes(marked(BLANK + b" of this program"))
    (tmp_path / "out" / "a.preview.png").write_bytes(b"somebody's own")
    (case,) = find_cases(tmp_path / "in", tmp_path / "out")

    def said(postprocess: bool) -> list[str]:
        record = predict_case(Segmenter(engine, postprocess=postprocess), case)
        return [line for line in record.warnings if "earlier run" in line]

    assert not said(postprocess=True)  # there was no mask, and then the same one
    assert not said(postprocess=True)
    line = "a.statistics.json: of an earlier run, which had another mask; save that again, or delete it"
    assert said(postprocess=False) == [line]


def test_the_files_beside_a_mask_are_those_of_the_outputs() -> None:
    made = [make_results([name])[name].path(pathlib.Path("X"), None).name for name in RESULTS if name != "viewer"]
    assert {"X.nii.gz", "X.viewer.html", *made} == {"X.nii.gz", *(f"X{extension}" for extension in BESIDE)}


class Text(Result):
    """A file that says "case", and one for the folder; or what goes wrong with both."""

    def __init__(self, extension: str, error: Exception | None = None) -> None:
        self.extension, self.error = extension, error

    def path(self, base: pathlib.Path, mask_extension: str | None) -> pathlib.Path:
        return beside(base, self.extension)

    def wrote(self, path: pathlib.Path) -> bool:
        return True

    def write(self, segmentation: Segmentation, path: pathlib.Path) -> None:
        if self.error:
            raise self.error
        write_whole(path, segmentation.case.encode())

    def finish(self, output: pathlib.Path) -> None:
        if self.error:
            raise self.error
        write_whole(output / f"all{self.extension}", b"all")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Adds an output to the table: its name, its class."""
    module = types.ModuleType("app.results.made_up")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def add(name: str, kind: type[Result]) -> None:
        setattr(module, kind.__name__, kind)
        monkeypatch.setitem(RESULTS, name, ("made_up", kind.__name__))

    return add


class Noted(Text):
    """Takes an option."""

    takes = ("note",)

    def __init__(self, note: str = "none") -> None:
        super().__init__(".noted")
        self.note = note


class Summed(Text):
    """Requires two others."""

    requires = ("noted", "statistics")

    def __init__(self) -> None:
        super().__init__(".summed")


class Flat(Text):
    """A second mask where a scan is called X.nii."""

    def __init__(self) -> None:
        super().__init__(".nii")


class Referring(Text):
    """Is worthless without another."""

    refers_to = ("noted",)


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_what_refers_to_an_output_that_cannot_be_written_is_not_written(
    tmp_path: pathlib.Path, segmentation: Segmentation, is_asked_for: bool
) -> None:
    results: dict[str, Result] = {"noted": Text(".a", OSError("full")), "other": Text(".c"), "report": Referring(".b")}
    results = {name: result for name, result in results.items() if name != "noted" or is_asked_for}
    paths = {name: result.path(tmp_path / "case", None) for name, result in results.items()}
    said = ""
    try:
        write_all(segmentation, results, paths)
    except ResultError as error:
        said = str(error)
    line = f"{tmp_path}/case.b: not written, since case.a, which it refers to, was not"
    assert said.endswith(f"OSError: full; {line} (written all the same: other)" if is_asked_for else "")
    assert bool(said) == is_asked_for
    assert (tmp_path / "case.b").exists() != is_asked_for


def test_a_report_refers_to_the_segmentation() -> None:
    assert make_results(("dicom-sr",))["dicom-sr"].refers_to == ("dicom-seg",)


def test_what_an_output_requires_is_made_before_it_and_once(made_up: Callable[..., None]) -> None:
    made_up("noted", Noted)
    made_up("summed", Summed)
    assert list(make_results(("preview", "summed", "noted"))) == ["preview", "noted", "statistics", "summed"]
    assert list(make_results(("viewer", "dicom-sr"))) == ["preview", "viewer", "dicom-seg", "dicom-sr"]


def test_an_option_goes_to_whoever_takes_it(made_up: Callable[..., None]) -> None:
    made_up("noted", Noted)
    made_up("summed", Summed)
    noted = make_results(("summed",), note="a", seg_type="labelmap")["noted"]
    assert isinstance(noted, Noted)
    assert noted.note == "a"
    assert vars(make_results(("noted",))["noted"])["note"] == "none"


def test_two_outputs_that_write_the_same_file_are_refused_whatever_the_scan_is_called(
    made_up: Callable[..., None],
) -> None:
    made_up("flat", Flat)
    assert list(make_results(("flat", "statistics"))) == ["flat", "statistics"]
    with pytest.raises(InputError, match=r"^--save nifti and --save flat write the same file; choose one$"):
        make_results(("nifti", "flat"))


@pytest.fixture
def segmentation(phantom_path: pathlib.Path) -> Segmentation:
    volume = open_volume(phantom_path)
    return segmentation_of(volume, np.zeros(volume.geometry.shape, np.uint8, order="F"))


ERRORS = {
    "ours": (ResultError("{}: full"), "{}: full"),
    "another of ours": (InputError("no library"), "{}: no library"),
    "unexpected": (KeyError("a bug"), "{}: unexpected KeyError: 'a bug'"),
    "two lines": (RuntimeError("first\n  second"), "{}: unexpected RuntimeError: first second"),
    "memory": (MemoryError(), "{}: unexpected MemoryError:"),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_output_that_fails_is_named_and_the_others_stand(
    tmp_path: pathlib.Path, segmentation: Segmentation, kind: str, at: int
) -> None:
    error, line = ERRORS[kind]
    results = {name: Text(f".{name}") for name in ("one", "two", "three")}
    bad = list(results)[at]
    paths = {name: result.path(tmp_path / "case", None) for name, result in results.items()}
    text = str(error).format(paths[bad]) if isinstance(error, ResultError) else None
    results[bad].error = ResultError(text) if text else error
    with pytest.raises(ResultError) as caught:
        write_all(segmentation, results, paths)
    good = [name for name in results if name != bad]
    assert str(caught.value) == f"{line.format(paths[bad])} (written all the same: {', '.join(good)})"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"case.{name}" for name in good)


def test_two_outputs_that_fail_are_both_named(tmp_path: pathlib.Path, segmentation: Segmentation) -> None:
    results = {"a": Text(".a", ValueError("first")), "b": Text(".b", OSError("second"))}
    paths = {name: result.path(tmp_path / "case", None) for name, result in results.items()}
    with pytest.raises(ResultError) as caught:
        write_all(segmentation, results, paths)
    assert str(caught.value) == (
        f"{tmp_path}/case.a: unexpected ValueError: first; {tmp_path}/case.b: unexpected OSError: second"
    )


@pytest.mark.parametrize("error", [ResultError("{}/all.two: full"), ZeroDivisionError("a bug")])
def test_what_belongs_to_the_folder_is_written_output_by_output_too(tmp_path: pathlib.Path, error: Exception) -> None:
    error = ResultError(str(error).format(tmp_path)) if isinstance(error, ResultError) else error
    with pytest.raises(ResultError, match=f"^{tmp_path}"):
        finish_all({"one": Text(".one"), "two": Text(".two", error), "three": Text(".three")}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.one", "all.three"]


def test_a_label_table_that_others_wrote_costs_no_other_table(tmp_path: pathlib.Path) -> None:
    (tmp_path / "labels.json").write_text("somebody's")
    with pytest.raises(ResultError, match=r"labels\.json: this program did not write it"):
        finish_all(make_results(("nifti-named",)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.ctbl", "labels.itksnap.txt", "labels.json"]
    assert (tmp_path / "labels.json").read_text() == "somebody's"


Invoke = Callable[..., tuple[int, dict[str, object]]]


@pytest.fixture
def invoke(tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> Invoke:
    """Run over tmp_path/in into tmp_path/out; the exit status and the one case's record."""

    def call(*outputs: str) -> tuple[int, dict[str, object]]:
        options = [word for name in outputs for word in ("--save", name)]
        arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--weights", str(tiny_weights), "--device", "cpu"]
        status = CliRunner().invoke(main, [*arguments, *options]).exit_code
        return status, json.loads((tmp_path / "out" / "run_log.jsonl").read_text().splitlines()[-1])

    return call


def test_a_report_that_is_refused_costs_neither_the_mask_nor_the_structure_set(
    tmp_path: pathlib.Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "in", make_phantom((72, 80, 12), (4.0, 3.5, 20.0))[0], (4.0, 3.5, 20.0))

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("a header as highdicom does not take it")

    monkeypatch.setattr("highdicom.seg.Segmentation", refuse)
    monkeypatch.setattr("highdicom.sr.Comprehensive3DSR", refuse)
    status, record = invoke("dicom-sr", "rtstruct", "nifti")
    assert (status, record["status"]) == (1, "failed")
    error = str(record["error"])
    assert ".seg.dcm: the series cannot carry a DICOM segmentation" in error
    assert re.search(r"\.sr\.dcm: not written, since series\w+\.seg\.dcm, which it refers to, was not", error)
    assert error.endswith("(written all the same: rtstruct, nifti)")
    name = str(record["case"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"{name}.nii.gz", f"{name}.rtstruct.dcm", f"{name}.failed.json", "run_log.jsonl")
    }
    failure = read_failure(tmp_path / "out" / name)
    assert failure is not None
    assert failure.error == error
    assert record["volumes_ml"] is not None  # what was computed is on record
    assert set(record["seconds"]) >= {"read", "network", "postprocess", "write", "total"}  # type: ignore[call-overload]


def test_a_disk_that_is_full_for_a_picture_has_room_for_the_mask(
    tmp_path: pathlib.Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantom(tmp_path / "in" / "x_0000.nii.gz", None, (72, 80, 12), (4.0, 3.5, 20.0))

    def full(*_: object) -> None:
        raise ResultError(f"{tmp_path}/out/x.preview.png: cannot be written ({os.strerror(errno.ENOSPC)}); check")

    monkeypatch.setattr(Preview, "write", full)
    monkeypatch.setattr(Statistics, "finish", lambda *_: 1 / 0)
    status, record = invoke("statistics", "preview", "nifti-named")
    assert (status, record["status"]) == (1, "failed")
    assert str(record["error"]).startswith(f"{tmp_path}/out/x.preview.png: cannot be written (No space left on device)")
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there >= {"x.nii.gz", "x.statistics.json", "labels.json", "labels.ctbl", "labels.itksnap.txt"}


def test_a_folder_of_the_tree_that_cannot_be_made_is_one_line(
    tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    write_phantom(tmp_path / "in" / "deep" / "x_0000.nii.gz", None, (72, 80, 12), (4.0, 3.5, 20.0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").write_text("a file")
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--recursive", "--weights", str(tiny_weights)]
    assert CliRunner().invoke(main, [*arguments, "--device", "cpu"]).exit_code == 1
    (record,) = map(json.loads, (tmp_path / "out" / "run_log.jsonl").read_text().splitlines())
    assert record["error"] == f"{tmp_path}/out/deep: cannot be made (File exists); check the folder above it"
