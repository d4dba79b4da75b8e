"""INPUT as an archive: what is in it is segmented, and nothing in it can do harm."""

from __future__ import annotations

import io
import pathlib
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from app.cli import main
from app.errors import InputError
from app.volumes import archive, unpacked
from phantom import make_phantom
from phantom.dicom import write_series

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
    found = {path.name for path in (tmp_path / "out").iterdir()}
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
        assert set(tmp_path.rglob("*")) - set(before) == {folder, folder.parent, *folder.rglob("*")}
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
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda folder: disk._replace(free=24 << 20))
    monkeypatch.setattr(zipfile.ZipFile, "extract", lambda *_: pytest.fail("it was unpacked"))
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
