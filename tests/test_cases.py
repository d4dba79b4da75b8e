"""The queue of cases: the next scan is opened ahead, and what is wrong with it is said at its own turn."""

from __future__ import annotations

import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import app.cases
import app.letter_case
import app.results.result
from app.case_queue import CaseQueue, open_case
from app.cases import Case, check_output, find_cases, read_list
from app.errors import InputError, VolumeError
from app.failures import Failure, failure_path, note_failure
from app.results import make_results
from app.volumes import FindOptions, identity
from app.volumes.nifti import NiftiVolume
from app.work import Resume, settle
from phantom.dicom import write_series


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

    def observed(volume: NiftiVolume, convert: Callable[[NDArray[Any]], NDArray[Any]]) -> Iterator[object]:
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
    shutil.copy(folders[0] / "a_0000.nii.gz", folders[1] / "a.nii.gz")
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


def test_a_nii_beside_a_nii_gz_is_a_case_of_its_own(tmp_path: pathlib.Path) -> None:
    """Every output of either has a name of its own, and so has its line of the log; masks are called as ever."""
    for name in ("a_0000.nii.gz", "a.nii", "b.nii", "c.nii.gz"):
        (tmp_path / name).touch()
    cases = find_cases(tmp_path, tmp_path / "out", make_results(("nifti", "statistics", "preview")))
    assert [case.name for case in cases] == ["a.nii", "a", "b.nii", "c"]
    assert [case.outputs["nifti"].name for case in cases] == ["a.nii", "a.nii.gz", "b.nii", "c.nii.gz"]
    paths = [path for case in cases for path in (*case.outputs.values(), failure_path(case.base))]
    assert len(set(paths)) == len(paths)
    assert [case.scan.problem for case in cases] == [None] * 4


@pytest.mark.parametrize("outputs", [("statistics",), ("preview", "nifti")])
def test_a_nii_and_a_nii_gz_of_two_runs_share_no_file(tmp_path: pathlib.Path, outputs: tuple[str, ...]) -> None:
    found = []
    for name in ("a_0000.nii", "a.nii.gz"):
        (tmp_path / name).touch()
        (case,) = find_cases(tmp_path / name, tmp_path / "out", make_results(outputs))
        found += [*case.outputs.values(), failure_path(case.base)]
    assert len(set(found)) == len(found) == 2 * len(outputs) + 2


@pytest.mark.parametrize("names", [("x/a.nii", "y/a.nii"), ("x/a.nii.gz", "y/a_0000.nii.gz")])
def test_scans_of_one_name_from_several_folders_are_refused(tmp_path: pathlib.Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    problems = [case.scan.problem for case in find_cases([tmp_path / name for name in names], tmp_path / "out")]
    assert all("another scan would get the same mask name a.nii" in str(problem) for problem in problems)


def test_names_of_small_and_capital_letters(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are two cases, unless OUTPUT keeps only one of them, as on Windows and macOS."""
    for name in ("Grüße", "GRÜSSE", "b"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert [case.scan.problem for case in find_cases(tmp_path, tmp_path / "out")] == [None] * 3
    monkeypatch.setattr(app.cases, "ignores_case", lambda folder: True)
    problems = {case.name: case.scan.problem for case in find_cases(tmp_path, tmp_path / "out")}
    assert problems["b"] is None
    assert "since OUTPUT takes small and capital letters for the same; rename one" in str(problems["Grüße"])
    assert "GRÜSSE.nii.gz: another scan would get the same mask name" in str(problems["GRÜSSE"])


@pytest.mark.parametrize("output", ["nifti", "statistics"])
@pytest.mark.parametrize(("first", "second"), [("B", "b"), ("GRÜSSE", "Grüße")])
@pytest.mark.parametrize("resume", [Resume(), Resume(skip_existing=True)])
def test_names_of_small_and_capital_letters_in_two_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, output: str, first: str, second: str, resume: Resume
) -> None:
    """What the first run wrote is neither overwritten by the second nor taken for its own; the first may come again."""

    def folding(path: pathlib.Path) -> tuple[int, int | str] | None:
        alike = [there for there in path.parent.glob("*") if there.name.casefold() == path.name.casefold()]
        return identity(alike[0]) if alike else None

    results = make_results((output,))
    for name in (first, second):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.nii.gz").touch()
    (case,) = find_cases(tmp_path / first, tmp_path / "out", results)
    (written,) = case.outputs.values()
    written.parent.mkdir()
    written.write_bytes(b"of another program")
    assert [case.scan.problem for case in find_cases(tmp_path / second, tmp_path / "out", results)] == [None]
    for module in (app.cases, app.letter_case, app.results.result):
        monkeypatch.setattr(module, "identity", folding)
    (other,) = find_cases(tmp_path / second, tmp_path / "out", results)
    assert f"it would overwrite {written} of another scan, since OUTPUT takes small and" in str(other.scan.problem)
    assert settle(other, resume) is None
    (again,) = find_cases(tmp_path / first, tmp_path / "out", results)
    assert again.scan.problem is None
    assert (settle(again, resume) is not None) == resume.skip_existing


def test_a_nifti_among_dicom_series_stops_nothing(tmp_path: pathlib.Path, phantom_path: pathlib.Path) -> None:
    write_series(tmp_path / "in" / "ct", np.zeros((9, 7, 5), np.int16), (40.0, 40.0, 5.0))
    shutil.copy(phantom_path, tmp_path / "in" / "a.nii.gz")
    line = f"{tmp_path / 'in' / 'a.nii.gz'}: not DICOM, which --save rtstruct needs; leave that out"
    found = [
        find_cases(tmp_path / "in", tmp_path / "out", make_results(names))
        for names in (["rtstruct"], ["rtstruct", "nifti"])
    ]
    assert [case.scan.problem for case in found[0]] == [line, None]
    assert [case.scan.problem for case in found[1]] == [None, None]  # its mask is written, and its line comes after


def test_scans_in_subfolders_are_pointed_to(tmp_path: pathlib.Path) -> None:
    for name in ("p1", "p2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ct.nii.gz").touch()
    line = f"{tmp_path}: no .nii.gz or .nii file and no DICOM, but 2 scans in subfolders; add --recursive, or give"
    with pytest.raises(InputError, match=line):
        find_cases(tmp_path, tmp_path / "out")


# Lists of paths


@pytest.mark.parametrize(
    "content",
    [
        b"/a/x.nii.gz\n/b y/z\n",
        b"\xef\xbb\xbf/a/x.nii.gz\r\n/b y/z\r\n",
        b"# mine\n\n  /a/x.nii.gz \t\r\n\r\n \r\n# more\r\n/b y/z",
        b"/a/x.nii.gz\r/b y/z\r",  # of a Macintosh
        b"/a/x.nii.gz\n/b y/z\n/a/x.nii.gz\n",
        b"\xef\xbb\xbf# mine\n/a/x.nii.gz\n/b y/z\n",
        "\ufeff/a/x.nii.gz\r\n/b y/z\r\n".encode("utf-16-le"),
        "\ufeff/a/x.nii.gz\r\n/b y/z\r\n".encode("utf-16-be"),
    ],
)
def test_a_list_of_any_editor(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "list").write_bytes(content)
    assert read_list(tmp_path / "list") == [pathlib.Path("/a/x.nii.gz"), pathlib.Path("/b y/z")]


def test_a_list_holds_paths_of_any_bytes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "list").write_bytes(b"/caf\xe9/\xc3\xa4\xe2\x80\xa8.nii\n")
    (path,) = read_list(tmp_path / "list")
    assert os.fsencode(path) == b"/caf\xe9/\xc3\xa4\xe2\x80\xa8.nii"


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"# nothing\r\n\r\n", b"\0\0\0", b"\xff\xfea"])
def test_what_is_no_list_is_one_line(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(InputError, match=f"{tmp_path / 'list'}: (holds no path|cannot be read as a list of paths)"):
        read_list(tmp_path / "list")


def predict_refused(case: Case) -> str:
    """The line of a case that fails without a model."""
    with pytest.raises(VolumeError) as raised:
        open_case(case)
    note_failure(case.base, case.name, Failure(str(raised.value)))
    return str(raised.value)


def test_a_path_of_a_list_that_cannot_be_used_is_a_failed_case(
    tmp_path: pathlib.Path, phantom_path: pathlib.Path
) -> None:
    """Moved since, without a scan, of a name that no file may have: the others are done."""
    shutil.copy(phantom_path, tmp_path / "good_0000.nii.gz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not a scan")
    (tmp_path / "loop").symlink_to("loop")
    names = ["gone_0000.nii.gz", "good_0000.nii.gz", "gone", "empty", "notes.txt", "loop", "x" * 300]
    cases = {case.name: case for case in find_cases([tmp_path / name for name in names], tmp_path / "out")}
    problems = {name: case.scan.problem for name, case in cases.items() if case.scan.problem}
    assert set(problems) == {"gone", "empty", "notes.txt", "loop", "x" * 300}
    assert predict_refused(cases["x" * 300]).startswith(f"{tmp_path / ('x' * 300)}: cannot be used")
    assert cases["good"].scan.problem is None
    with pytest.raises(VolumeError, match=r"empty: no \.nii\.gz or \.nii file and no DICOM; check the path, or give"):
        open_case(cases["empty"])
    with pytest.raises(InputError, match=r"gone: no such file or folder"):
        find_cases([tmp_path / "gone", tmp_path / "gone too"], tmp_path / "out")


def test_a_relative_path_that_is_not_there_says_where_it_was_looked_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a list that was written for another folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"scans/a.nii.gz: no such file or folder in {tmp_path}; give"):
        find_cases([pathlib.Path("scans/a.nii.gz")], tmp_path / "out")


def test_a_scan_that_is_named_twice_is_done_once(tmp_path: pathlib.Path, phantom_path: pathlib.Path) -> None:
    (tmp_path / "in").mkdir()
    scan = pathlib.Path(shutil.copy(phantom_path, tmp_path / "in" / "a_0000.nii.gz"))
    (tmp_path / "link").symlink_to("in")
    (case,) = find_cases([tmp_path / "in", scan, tmp_path / "link", tmp_path / "link" / scan.name], tmp_path / "out")
    assert case.scan.problem is None


@pytest.mark.parametrize("name", ["_0000.nii.gz", "_0000.nii", "_0000.NII"])
def test_a_name_of_which_nothing_is_left_is_one_line(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).touch()
    (case,) = find_cases(tmp_path, tmp_path / "out")
    assert case.scan.problem == f"{tmp_path / name}: nothing is left of its name without _0000; rename it"


@pytest.mark.parametrize("method", ["pathlib.Path.exists", "os.scandir", "pathlib.Path.is_dir"])
def test_a_folder_that_may_not_be_searched_is_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def denied(self: pathlib.Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(method, denied)
    with pytest.raises(InputError, match=f"{tmp_path}.*: cannot be used .Permission denied.; check its path"):
        find_cases(tmp_path, tmp_path / "out")


def test_a_path_that_the_system_refuses_is_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match=r"cannot be used .File name too long.; check its path and permissions"):
        find_cases(tmp_path / ("x" * 300), tmp_path)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(InputError, match="link: a file or a dead link is in its way; choose another OUTPUT folder"):
        check_output(tmp_path / "link")
    with pytest.raises(InputError, match=r"not writable .File name too long.; check its owner"):
        check_output(tmp_path / ("x" * 300))


def test_probing_the_output_folder_leaves_and_meets_no_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two containers that share a process number may probe one folder at once."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    (tmp_path / ".7.partial").touch()
    for _ in range(2):
        check_output(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".7.partial"]  # young: its owner may be about to lock it
