"""INPUT is walked once: which files are seen, through which links, and what is left out."""

from __future__ import annotations

import errno
import os
import pathlib

import numpy as np
import pytest

from app.cases import find_cases
from app.volumes import FindOptions, find_scans
from app.volumes.walk import HEAD_BYTES, Walk, first_bytes, identity
from phantom.dicom import write_series
from tests.nifti_files import save, volume_lps


def names(source: pathlib.Path, leave_out: pathlib.Path | None = None) -> list[str]:
    return [path.relative_to(source).as_posix() for path, _ in Walk(source, leave_out)]


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a/one, and beside it a store with two."""
    for name in ("in/a/one", "store/b/two"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    return tmp_path / "in"


def test_links_to_folders_are_followed_once(tree: pathlib.Path) -> None:
    (tree / "link").symlink_to("../store")
    (tree / "again").symlink_to(tree.parent / "store" / "b")
    (tree / "0").symlink_to("a")  # a's own path is the one that counts
    (tree / "file").symlink_to("a/one")
    assert names(tree) == ["a/one", "again/two", "file"]


def test_links_of_links_and_inside_linked_folders(tree: pathlib.Path) -> None:
    (tree.parent / "far").mkdir()
    (tree.parent / "far" / "three").touch()
    (tree.parent / "store" / "b" / "far").symlink_to("../../far")
    (tree / "x").symlink_to("y")
    (tree / "y").symlink_to("../store")
    assert names(tree) == ["a/one", "x/b/far/three", "x/b/two"]


@pytest.mark.parametrize("target", [".", "..", "../..", "/", "../in", "loop", "other"])
def test_loops_end(tree: pathlib.Path, target: str) -> None:
    """A link to where it comes from would bring in all that lies beside INPUT."""
    (tree / "a" / "loop").symlink_to(target)
    (tree / "a" / "other").symlink_to("loop")
    assert [name for name in names(tree) if "loop" not in name and "other" not in name] == ["a/one"]
    assert not any(name.endswith("two") for name in names(tree))


def test_a_linked_folder_that_holds_input_is_no_part_of_it(tree: pathlib.Path) -> None:
    (tree.parent / "store" / "up").symlink_to(tree.parent)
    (tree / "link").symlink_to("../store")
    assert names(tree) == ["a/one", "link/b/two"]


@pytest.mark.parametrize(
    "name", [".Trash-1000/files", ".snapshot/daily", ".git", "$RECYCLE.BIN", "@eaDir", "a/.hidden", "lost+found"]
)
def test_what_systems_keep_in_folders_is_left_out(tree: pathlib.Path, name: str) -> None:
    (tree / name).mkdir(parents=True)
    (tree / name / "deleted.nii.gz").touch()
    (tree / "link").symlink_to(tree / name)  # but whoever links to it means it
    assert names(tree) == ["a/one", "link/deleted.nii.gz"]


def test_input_itself_may_be_hidden(tmp_path: pathlib.Path) -> None:
    (tmp_path / ".work" / "in").mkdir(parents=True)
    (tmp_path / ".work" / "in" / "one").touch()
    assert names(tmp_path / ".work") == ["in/one"]
    assert names(tmp_path / ".work" / "in") == ["one"]


def test_output_is_left_out_under_any_path(tree: pathlib.Path) -> None:
    (tree / "link").symlink_to("../store")
    assert names(tree, tree.parent / "store") == ["a/one"]
    assert names(tree, tree.parent / "missing") == ["a/one", "link/b/two"]


def test_a_folder_that_cannot_be_read_is_said_and_the_others_are_walked(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "closed").mkdir()
    save(tree / "x.nii.gz", volume_lps())
    real = os.scandir

    def refuse(path: pathlib.Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = {case.name: case.scan.problem for case in find_cases(tree, tree.parent / "out")}
    line = f"{tree / 'closed'}: the folder cannot be read (Permission denied); check its permissions"
    assert found == {"x": None, "closed": line}


def test_what_is_passed_over_is_said(tree: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tree / "x.nii.gz", volume_lps())
    (tree / "sub").mkdir()
    (tree / "sub" / "Patient").symlink_to("/nowhere/Patient")
    for name in ("old.hdr", "old.img", "sub/study.ZIP", "notes.txt", "p.nii.bz2", "q.7z", "r.nii.gz.part", "s.DCM.gz"):
        (tree / name).write_text("x")
    assert [scan.name for scan in find_scans(tree)] == ["x"]
    assert caplog.messages == [
        f"{tree}: files that are not read, neither NIfTI nor DICOM; convert or unpack them: 7, such as old.hdr",
        f"{tree}: links that lead to nothing; what they should lead to is left out: 1, such as sub/Patient",
    ]


def test_first_bytes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 2 * HEAD_BYTES)
    (tmp_path / "dead").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert first_bytes(tmp_path / "long") == b"x" * HEAD_BYTES
    assert [first_bytes(tmp_path / name) for name in ("dead", "pipe", "missing", "")] == [b""] * 4


def test_scans_of_both_formats_behind_links(tmp_path: pathlib.Path) -> None:
    write_series(tmp_path / "store" / "series", np.zeros((8, 8, 4), np.int16))
    save(tmp_path / "store" / "x_0000.nii.gz", volume_lps())
    (tmp_path / "in").mkdir()
    for link in ("one", "two"):
        (tmp_path / "in" / link).symlink_to("../store")
    found = [scan.name for scan in find_scans(tmp_path / "in", FindOptions(recursive=True))]
    assert found[0] == "one/x"
    assert len(found) == 2


@pytest.mark.parametrize("number", [0, 7])
def test_folders_are_walked_where_a_file_system_gives_all_the_same_number(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As some do that are made of others, or of a network's."""
    (tree / "b").mkdir()
    (tree / "b" / "two").touch()
    (tree / "out").mkdir()
    plain = pathlib.Path.stat

    def numbered(self: pathlib.Path, *, follow_symlinks: bool = True) -> os.stat_result:
        about = plain(self, follow_symlinks=follow_symlinks)
        return os.stat_result((about.st_mode, number, *about[2:]))

    monkeypatch.setattr(pathlib.Path, "stat", numbered)
    assert names(tree) == ["a/one", "b/two"]
    if number == 0:
        assert names(tree, leave_out=tree / "out") == ["a/one", "b/two"]
        assert identity(tree / "a" / "one") != identity(tree / "b" / "two")


@pytest.mark.parametrize("name", ["notes", "IM0001"])
def test_one_entry_that_the_system_does_not_tell_of_stops_no_other(tree: pathlib.Path, name: str) -> None:
    """A dead mount, a stale handle, a link into a closed folder: `pathlib` raises for them; here, a name too long."""
    save(tree / "a_0000.nii.gz", volume_lps())
    (tree / name).symlink_to("x" * 300)
    found = find_cases(tree, tree.parent / "out")
    assert "a" in [case.name for case in found]


def test_a_dead_mount_is_said_though_output_is_not_there_yet(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "dead").mkdir()
    plain_stat, plain_scandir = pathlib.Path.stat, os.scandir

    def stat(self: pathlib.Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if self.name == "dead":
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), str(self))
        return plain_stat(self, follow_symlinks=follow_symlinks)

    def scandir(path: pathlib.Path) -> object:
        pathlib.Path(path).stat()
        return plain_scandir(path)

    monkeypatch.setattr(pathlib.Path, "stat", stat)
    monkeypatch.setattr(os, "scandir", scandir)
    walk = Walk(tree, leave_out=tree.parent / "no such output")
    assert [path.name for path, _ in walk] == ["one"]
    assert list(walk.unreadable) == [tree / "dead"]
