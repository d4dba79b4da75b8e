"""The way through an archive as docs/DICOM.md tells it: fetched by DICOMweb, segmented, stored back, found again."""

from __future__ import annotations

import json
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner

from app.cli import main
from phantom import make_phantom
from phantom.dicom import uid, write_series

PLUGIN = pathlib.Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")  # Debian's orthanc-dicomweb
pytestmark = pytest.mark.skipif(
    shutil.which("Orthanc") is None or not PLUGIN.exists(), reason="no Orthanc with DICOMweb (Debian: orthanc-dicomweb)"
)


@pytest.fixture
def archive(tmp_path: pathlib.Path) -> Iterator[str]:
    """The DICOMweb address of an empty archive."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    log = (tmp_path / "orthanc.log").open("w")
    process = subprocess.Popen(["Orthanc", tmp_path / "orthanc.json"], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/system", timeout=1)
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "orthanc.log").read_text()
                time.sleep(0.1)
        yield f"{address}/dicom-web"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def client(address: str, *words: object) -> str:
    program = pathlib.Path(sys.executable).with_name("dicomweb_client")
    shown = subprocess.run(
        [program, "--url", address, *map(str, words)], capture_output=True, text=True, check=False, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_a_study_goes_through_an_archive(archive: str, tmp_path: pathlib.Path, tiny_weights: pathlib.Path) -> None:
    slices = write_series(
        tmp_path / "scanner", make_phantom((72, 80, 12), (4.0, 3.5, 20.0))[0], (4.0, 3.5, 20.0), StudyDate="20200101"
    )
    study, series = uid("study"), uid("one")
    client(archive, "store", "instances", *slices)
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    inputs.mkdir()
    fetched_series = ("--study", study, "--series", series)
    client(archive, "retrieve", "series", *fetched_series, "full", "--save", "--output-dir", inputs)
    assert len(list(inputs.iterdir())) == 12
    wanted = ("--save", "dicom-seg", "--save", "rtstruct", "--save", "dicom-sr")
    arguments = [str(inputs), str(outputs), "--weights", str(tiny_weights), "--device", "cpu", *wanted]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    client(archive, "store", "instances", *sorted(outputs.glob("*.dcm")))
    found = json.loads(client(archive, "search", "series", "--study", study))
    assert sorted(one["00080060"]["Value"][0] for one in found) == ["CT", "RTSTRUCT", "SEG", "SR"]
    (written,) = outputs.glob("*.seg.dcm")
    segmentation = pydicom.dcmread(written)
    back = tmp_path / "back"
    back.mkdir()
    of = ("--study", study, "--series", segmentation.SeriesInstanceUID)
    client(archive, "retrieve", "series", *of, "full", "--save", "--output-dir", back)
    (fetched,) = back.iterdir()
    np.testing.assert_array_equal(pydicom.dcmread(fetched).pixel_array, segmentation.pixel_array)
