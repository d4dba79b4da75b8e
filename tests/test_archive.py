"""INPUT as an archive: what is in it is segmented, and nothing in it can do harm."""

from __future__ import annotations

import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from click.testing import CliRunner

from app.cases import find_cases
from app.cli import main
from app.errors import InputError
from app.process import ENDING
from app.volumes import archive, find_scans, unpacked
from phantom import make_phantom
from phantom.dicom import write_series
from tests.conftest import ROOT

SPACING = (4.0, 3.5, 20.0)


@pytest.fixture
def scratch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder of temporary files, to see what is left in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("extension", "kind"), [(".zip", "zip"), (".tar", "tar"), (".tar.gz", "gztar"), (".TGZ", "gztar")]
)
def test_scans_of_every_format_in_it_are_segmented(
    tmp_path: pathlib.Path,
    scratch: pathlib.Path,
    phantom_path: pathlib.Path,
    tiny_weights: pathlib.Path,
    extension: str,
    kind: str,
) -> None:
    write_series(tmp_path / "in" / "study" / "series", make_phantom((72, 80, 12), SPACING)[0], SPACING)
    shutil.copy(phantom_path, tmp_path / "in")
    made = pathlib.Path(shutil.make_archive(str(tmp_path / "made"), kind, tmp_path / "in"))
    source = made.rename(tmp_path / f"study{extension}")
    arguments = [
        str(source),
        str(tmp_path / "out"),
        "--weights",
        str(tiny_weights),
        "--device",
        "cpu",
        "--name-by",
        "folder",
    ]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    found = {re.sub("_[0-9a-f]{8}[.]", ".", path.name) for path in (tmp_path / "out").iterdir()}
    assert found == {"phantom.nii.gz", "series.nii.gz", "run_log.jsonl"}
    assert not list(scratch.iterdir())


def escaping_zip(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("../../escaped.nii.gz", b"x")
        made.writestr("/tmp/escaped.nii.gz", b"x")


def add(made: tarfile.TarFile, name: str, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    made.addfile(member, io.BytesIO(bytes(member.size)))


def escaping_tar(path: pathlib.Path) -> None:
    with tarfile.open(path, "w") as made:
        add(made, "../../escaped.nii.gz", size=1)


def linking_tar(path: pathlib.Path) -> None:
    with tarfile.open(path, "w") as made:
        add(made, "passwd", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(made, "pipe", type=tarfile.FIFOTYPE)
        add(made, "x.nii.gz", size=1)


@pytest.mark.parametrize("write", [escaping_zip, linking_tar])
def test_nothing_leaves_the_folder(
    tmp_path: pathlib.Path, scratch: pathlib.Path, write: Callable[[pathlib.Path], None]
) -> None:
    source = tmp_path / ("a.zip" if write is escaping_zip else "a.tar")
    write(source)
    before = sorted(tmp_path.rglob("*"))
    with unpacked(source) as folder:
        inside = [path for path in folder.rglob("*") if not path.is_dir()]
        assert inside
        assert all(path.is_file() and not path.is_symlink() for path in inside)
        lock = folder.parent / archive.LOCK
        assert set(tmp_path.rglob("*")) - set(before) == {folder, folder.parent, lock, *folder.rglob("*")}
    assert sorted(tmp_path.rglob("*")) == before
    assert not pathlib.Path("/tmp/escaped.nii.gz").exists()


def test_a_path_that_leads_outside_is_refused(tmp_path: pathlib.Path, scratch: pathlib.Path) -> None:
    escaping_tar(tmp_path / "a.tar")
    with pytest.raises(InputError, match=r"a\.tar: cannot be unpacked .*outside"), unpacked(tmp_path / "a.tar"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "scratch"]


def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: pathlib.Path, scratch: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "bomb.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as made:
        for i in range(20):
            made.writestr(f"{i}.nii.gz", bytes(1 << 20))
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: disk._replace(free=24 << 20))
    monkeypatch.setattr(archive.Content, "add", lambda *_: pytest.fail("it was unpacked"))
    with (
        pytest.raises(InputError, match=r"bomb\.zip: holds 20 MiB, .* has 24 MiB free; set TMPDIR elsewhere"),
        unpacked(source),
    ):
        pass
    assert not list(scratch.iterdir())


def test_a_member_larger_than_it_says_is_cut_off(tmp_path: pathlib.Path, scratch: pathlib.Path) -> None:
    source = tmp_path / "lies.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x.nii.gz", bytes(1 << 20))
    damaged = bytearray(source.read_bytes())
    for start in (damaged.find(b"PK\x03\x04") + 22, damaged.find(b"PK\x01\x02") + 24):
        damaged[start : start + 4] = (100).to_bytes(4, "little")  # the uncompressed size
    source.write_bytes(damaged)
    with pytest.raises(InputError, match="cannot be unpacked"), unpacked(source):
        pass
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
@pytest.mark.parametrize("cut", [0, 1, 100, 0.5])
def test_a_damaged_archive_is_one_line(tmp_path: pathlib.Path, scratch: pathlib.Path, name: str, cut: float) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.nii.gz").write_bytes(b"some scan" * 1000)
    kind = {".zip": "zip", ".tar": "tar"}.get(pathlib.Path(name).suffix, "gztar")
    made = pathlib.Path(shutil.make_archive(str(tmp_path / "made"), kind, tmp_path / "in"))
    content = made.read_bytes()
    source = tmp_path / name
    source.write_bytes(content[: int(cut if cut >= 1 or cut == 0 else cut * len(content))])
    with pytest.raises(InputError, match=rf"{name}: cannot be unpacked") as caught, unpacked(source):
        pass
    assert "\n" not in str(caught.value)
    assert not list(scratch.iterdir())


def test_anything_else_stays_as_it_is(phantom_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for source in (phantom_path, tmp_path, tmp_path / "missing.zip"):
        with unpacked(source) as folder:
            assert folder == source


def content(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_name_of_a_file_in_a_tar_is_one(
    tmp_path: pathlib.Path, scratch: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Second names (hard links), links beside and across folders, chains; and links that lead to nothing."""
    with tarfile.open(tmp_path / "a.tar", "w") as made:
        add(made, "./study/late", type=tarfile.SYMTYPE, linkname="one/IM1")  # before what it leads to
        add(made, "study/one/IM1", size=3)
        add(made, "study/one/IM2", size=5)
        add(made, "study/two/IM1", type=tarfile.LNKTYPE, linkname="study/one/IM1")
        add(made, "study/two/IM2", type=tarfile.SYMTYPE, linkname="../one/IM2")
        add(made, "study/two/IM3", type=tarfile.SYMTYPE, linkname="IM2")
        add(made, "study/three", type=tarfile.SYMTYPE, linkname="one")  # a folder, which is there as it is
        add(made, "study/two/dead", type=tarfile.SYMTYPE, linkname="../gone/IM9")
        add(made, "study/two/outside", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(made, "study/two/round", type=tarfile.SYMTYPE, linkname="round")
    with unpacked(tmp_path / "a.tar") as folder:
        found = {name: len(data) for name, data in content(folder).items()}
    sizes = {"one/IM1": 3, "one/IM2": 5, "late": 3, "two/IM1": 3, "two/IM2": 5, "two/IM3": 5}
    assert found == sizes | {"two/dead": 0, "two/outside": 0, "two/round": 0}  # read as damaged, not passed over
    (line,) = caplog.messages
    assert line.startswith(
        f"{tmp_path / 'a.tar'}: 3 links lead to nothing in the archive (study/two/dead -> study/gone"
    )


def test_links_in_a_zip_are_files_too(tmp_path: pathlib.Path, scratch: pathlib.Path) -> None:
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "a").write_bytes(b"content")
    (tmp_path / "in" / "b" / "c").symlink_to("../a")
    subprocess.run(["zip", "-qry", tmp_path / "a.zip", "."], cwd=tmp_path / "in", check=True)
    with unpacked(tmp_path / "a.zip") as folder:
        assert content(folder) == {"a": b"content", "b/c": b"content"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_files_of_one_name_are_all_read(
    tmp_path: pathlib.Path, scratch: pathlib.Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Two patients whose folders a portal left out; and a copy, which is one."""
    source = tmp_path / f"a.{kind}"
    for number, series in enumerate(("one", "two", "one")):
        write_series(tmp_path / str(number), np.zeros((8, 8, 4), np.int16), SPACING, series=series)
    files = [path for number in range(3) for path in sorted((tmp_path / str(number)).iterdir())]
    if kind == "zip":
        with zipfile.ZipFile(source, "w") as made, warnings.catch_warnings(action="ignore"):
            for path in files:
                made.write(path, f"IMAGES/{path.name}")
    else:
        with tarfile.open(source, "w") as made_tar:
            for path in files:
                made_tar.add(path, f"IMAGES/{path.name}")
    with unpacked(source) as folder:
        assert len(content(folder)) == 8
        assert len([scan for scan in find_scans(folder) if scan.problem is None]) == 2
    (line,) = caplog.messages
    assert line.startswith(f"{source}: 4 files share a name with another; read as 2_")


def test_a_file_and_a_folder_of_one_name_are_both_unpacked(tmp_path: pathlib.Path, scratch: pathlib.Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        for name in ("study/CT", "study/CT/1", "study/CT/2", "study/MR/1", "study/MR"):
            made.writestr(name, name)
    with unpacked(tmp_path / "a.zip") as folder:
        found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert sorted(found.values()) == ["study/CT", "study/CT/1", "study/CT/2", "study/MR", "study/MR/1"]
    assert {"CT", "CT_/1", "CT_/2"} <= set(found)


@pytest.mark.parametrize("place", ["data", "data/of/mine", ".", "a b/ä"])
@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_what_programs_pack_around_scans_is_passed_over(
    tmp_path: pathlib.Path, scratch: pathlib.Path, phantom_path: pathlib.Path, place: str, kind: str
) -> None:
    """Whoever packs a folder gets a mask of the scan's name, as from the folder itself."""
    (tmp_path / "in" / place).mkdir(parents=True)
    (tmp_path / "in" / "__MACOSX").mkdir()
    (tmp_path / "in" / "__MACOSX" / "._x.nii.gz").write_text("what macOS leaves")
    shutil.copy(phantom_path, tmp_path / "in" / place / "x_0000.nii.gz")
    made = pathlib.Path(shutil.make_archive(str(tmp_path / "a"), kind, tmp_path / "in"))
    with unpacked(made) as folder:
        assert [case.name for case in find_cases(folder, tmp_path / "out")] == ["x"]


def test_several_folders_in_an_archive_are_mirrored(
    tmp_path: pathlib.Path, phantom_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    for name in ("p1", "p2"):
        (tmp_path / "in" / "data" / name).mkdir(parents=True)
        shutil.copy(phantom_path, tmp_path / "in" / "data" / name / "ct.nii.gz")
    made = shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "in")
    arguments = [made, str(tmp_path / "out"), "--weights", str(tiny_weights), "--device", "cpu", "--list-series"]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0
    assert [line.split()[0] for line in shown.output.splitlines()] == ["p1/ct", "p2/ct"]


def test_names_with_backslashes_are_paths(tmp_path: pathlib.Path, scratch: pathlib.Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("one\\a.nii.gz", b"a")
        made.writestr("two\\a.nii.gz", b"b")
    with unpacked(tmp_path / "a.zip") as folder:
        assert content(folder) == {"one/a.nii.gz": b"a", "two/a.nii.gz": b"b"}


@pytest.mark.parametrize("mtime", [2**63, -(2**40), 1e300])
def test_a_time_that_no_clock_has_matters_to_nobody(
    tmp_path: pathlib.Path, scratch: pathlib.Path, mtime: float
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as made:
        member = tarfile.TarInfo("x.nii.gz")
        member.size, member.mtime = 4, mtime
        made.addfile(member, io.BytesIO(b"scan"))
    with unpacked(tmp_path / "a.tar") as folder:
        assert content(folder) == {"x.nii.gz": b"scan"}


def unpacking(tmp_path: pathlib.Path, ignored: signal.Signals | None = None) -> subprocess.Popen[bytes]:
    """A process that has unpacked an archive, and works on."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("patient.dcm", b"data of a patient")
    code = (
        "import pathlib, sys, time\nfrom app.process import set_up\nfrom app.volumes import unpacked\n"
        "set_up(False)\nwith unpacked(pathlib.Path(sys.argv[1])):\n"
        "    print('unpacked', flush=True)\n    time.sleep(60)"
    )

    def heed() -> None:  # the tests themselves may run under nohup
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.zip")],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path / "scratch")},
        stdout=subprocess.PIPE,
        preexec_fn=heed,
    )
    assert process.stdout is not None
    with process.stdout as stream:
        assert stream.readline() == b"unpacked\n"
    return process


def test_no_signal_leaves_a_patient_behind(tmp_path: pathlib.Path, scratch: pathlib.Path) -> None:
    processes = [(number, unpacking(tmp_path)) for number in ENDING]
    assert len(list(scratch.rglob("patient.dcm"))) == len(ENDING) > 10
    for number, process in processes:
        process.send_signal(number)
    for number, process in processes:
        assert process.wait(60) == 128 + number
    assert list(scratch.iterdir()) == []


def test_a_signal_that_the_caller_ignores_ends_nothing(tmp_path: pathlib.Path, scratch: pathlib.Path) -> None:
    """As under nohup."""
    process = unpacking(tmp_path, ignored=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM


def test_the_next_run_clears_what_a_killed_one_left_and_nothing_else(
    tmp_path: pathlib.Path, scratch: pathlib.Path
) -> None:
    killed, living = unpacking(tmp_path), unpacking(tmp_path)
    (scratch / "unpacked-by-others").mkdir()
    killed.kill()
    killed.wait()
    assert len(list(scratch.rglob("patient.dcm"))) == 2
    (scratch / f"{archive.PREFIX}link").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").mkdir()
    for name in (archive.LOCK, "file"):
        (tmp_path / "precious" / name).touch()
    (tmp_path / "empty").mkdir()
    assert CliRunner().invoke(main, [str(tmp_path / "empty"), str(tmp_path / "out"), "--list-series"]).exit_code == 2
    assert (tmp_path / "precious" / "file").exists()
    (scratch / f"{archive.PREFIX}link").unlink()
    assert len(list(scratch.rglob("patient.dcm"))) == 1
    assert (scratch / "unpacked-by-others").exists()
    living.terminate()
    living.wait(60)
    assert [path.name for path in scratch.iterdir()] == ["unpacked-by-others"]


def test_without_any_temporary_folder_only_archives_cannot_be_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose root file system is read-only."""

    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", nowhere)
    write_series(tmp_path / "in", make_phantom((32, 32, 6), SPACING)[0], SPACING)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as packed:
        packed.write(next((tmp_path / "in").iterdir()), "1.dcm")
    shown = CliRunner().invoke(main, [str(tmp_path / "in"), str(tmp_path / "out"), "--list-series"])
    assert shown.exit_code == 0, shown.exception
    assert "to be segmented" in shown.output
    with pytest.raises(InputError, match="TMPDIR"), unpacked(tmp_path / "in.zip"):
        pass
