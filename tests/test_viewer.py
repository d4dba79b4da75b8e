"""The viewer in a real browser, with the network off: organs in every plane, keyboard, a phone's width, the index."""

from __future__ import annotations

import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from app import run_log
from app.cli import main
from app.errors import InputError, ResultError
from app.organs import ORGANS, Organ
from app.results import make_results, viewer
from app.results.viewer import Viewer
from app.run_log import CaseRecord
from app.volumes import open_volume
from phantom import write_phantom
from tests.conftest import ROOT
from tests.test_statistics import gathered
from tests.tiny import segmentation_of

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
FLAGS = ["--no-sandbox", "--enable-unsafe-swiftshader", "--use-angle=swiftshader"]  # WebGL without a GPU


@pytest.fixture(scope="module")
def library() -> None:
    """NiiVue, as the build fetches it."""
    subprocess.run([sys.executable, ROOT / "app" / "results" / "page" / "fetch.py"], check=True)


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory, library: None) -> pathlib.Path:
    """The page of a phantom whose mask is its label, stored head first and right to left."""
    folder = tmp_path_factory.mktemp("viewer")
    image, label = folder / "x_0000.nii.gz", folder / "x.nii.gz"
    write_phantom(image, label, (100, 90, 40), (3.9, 3.7, 6.0), axes="RAI")
    volume, mask = open_volume(image), np.asarray(nib.load(label).dataobj)
    gathering = gathered(volume, volume.geometry.orient(mask))
    case = segmentation_of(volume, mask, "Case <i>7</i> & Co", gathering=gathering, intensity_doubt="a <b>warning</b>")
    path = folder / "x.viewer.html"
    Viewer().write(case, path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


def opened(browser: Browser, path: pathlib.Path, width: int = 1200) -> tuple[Page, list[str]]:
    """A page opened without a network, and what it complained about or asked for since."""
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    page, trouble = context.new_page(), []
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on(
        "request", lambda request: None if re.match("file:|data:|blob:", request.url) else trouble.append(request.url)
    )
    page.goto(path.as_uri())
    return page, trouble


def ready(page: Page) -> None:
    page.wait_for_selector("body[data-ready=yes]", timeout=60_000)
    page.wait_for_timeout(300)


def canvas(page: Page) -> NDArray[np.int64]:
    page.wait_for_timeout(400)
    return np.asarray(Image.open(io.BytesIO(page.locator("#canvas").screenshot())).convert("RGB")).astype(np.int64)


def places(pixels: NDArray[np.int64], organ: Organ) -> NDArray[np.int64]:
    """Pixels whose hue is an organ's, which opacity does not change much; grey ones have none."""
    colour, centred = np.array(organ.rgb, float), pixels - pixels.mean(2, keepdims=True)
    wanted = colour - colour.mean()
    norms = np.linalg.norm(centred, axis=2)
    cosine = (centred @ wanted) / (np.linalg.norm(wanted) * np.maximum(norms, 1e-9))
    return np.argwhere((norms > 30) & (cosine > 0.98))


def test_every_organ_is_seen_from_every_side_without_a_network(browser: Browser, page_path: pathlib.Path) -> None:
    page, trouble = opened(browser, page_path)
    ready(page)
    assert page.locator("h1").inner_text() == "Case <i>7</i> & Co"
    assert page.locator("#warnings").inner_text() == "a <b>warning</b>"
    seen: dict[str, dict[Organ, NDArray[np.int64]]] = {}
    for view in ("axial", "coronal", "sagittal", "3-D"):
        page.get_by_role("button", name=view, exact=True).click()
        found: dict[Organ, NDArray[np.int64]] = {}
        for organ in ORGANS:  # through the middle of each
            page.evaluate(
                "(c) => { viewer.scene.crosshairPos = viewer.mm2frac(c); viewer.drawScene(); }", centre(page, organ)
            )
            found[organ] = places(canvas(page), organ)
        assert all(len(pixels) > 60 for pixels in found.values()), view
        seen[view] = found
    for view in ("axial", "coronal"):  # the patient's right is on the left of the screen
        assert seen[view][Organ.LIVER][:, 1].mean() < seen[view][Organ.SPLEEN][:, 1].mean()
    assert seen["coronal"][Organ.LIVER][:, 0].mean() < seen["coronal"][Organ.KIDNEYS][:, 0].mean()  # head up
    assert trouble == []
    assert page_path.stat().st_size < 8 << 20


def centre(page: Page, organ: Organ) -> list[float]:
    """A voxel of an organ near its middle, in patient mm."""
    found: list[float] = page.evaluate(
        """(label) => {
            const mask = viewer.volumes[1], [, nx, ny] = mask.dimsRAS, img = mask.img, at = [];
            const dims = mask.hdr.dims;
            for (let i = 0; i < img.length; i++) if (img[i] === label)
                at.push([i % dims[1], Math.floor(i / dims[1]) % dims[2], Math.floor(i / (dims[1] * dims[2]))]);
            const mean = [0, 1, 2].map((k) => at.reduce((s, p) => s + p[k], 0) / at.length);
            const far = (p) => p.reduce((s, v, k) => s + (v - mean[k]) ** 2, 0);
            const [x, y, z] = at.reduce((a, b) => far(b) < far(a) ? b : a);
            const a = mask.hdr.affine;
            return [0, 1, 2].map((r) => a[r][0] * x + a[r][1] * y + a[r][2] * z + a[r][3]);
        }""",
        int(organ),
    )
    return found


def test_it_works_by_keyboard(browser: Browser, page_path: pathlib.Path) -> None:
    page, trouble = opened(browser, page_path)
    ready(page)
    page.locator("#canvas").focus()
    for key, axis in (("ArrowRight", 0), ("ArrowUp", 1), ("PageUp", 2)):
        before = page.evaluate("Array.from(viewer.scene.crosshairPos)")
        page.keyboard.press(key)
        after = page.evaluate("Array.from(viewer.scene.crosshairPos)")
        assert after[axis] > before[axis]
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent || document.activeElement.type"))
    assert {"axial", "coronal", "sagittal", "3-D", "liver", "wide", "range", "checkbox"} <= reached
    page.get_by_role("button", name="axial", exact=True).click()
    page.evaluate("(c) => { viewer.scene.crosshairPos = viewer.mm2frac(c); }", centre(page, Organ.LIVER))
    assert len(places(canvas(page), Organ.LIVER)) > 60
    page.get_by_label("liver").focus()
    page.keyboard.press("Space")
    assert len(places(canvas(page), Organ.LIVER)) < 20
    assert trouble == []


def test_it_fits_a_phone(browser: Browser, page_path: pathlib.Path) -> None:
    page, trouble = opened(browser, page_path, width=400)
    ready(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert any(len(places(canvas(page), organ)) > 60 for organ in ORGANS)
    assert trouble == []


def test_the_index_lists_sorts_and_says_what_failed(
    browser: Browser, tmp_path: pathlib.Path, tiny_weights: pathlib.Path, library: None
) -> None:
    for name in ("b & <c>", "a"):
        write_phantom(tmp_path / "in" / f"{name}_0000.nii.gz", None, (72, 80, 12), (4.0, 3.5, 20.0))
    (tmp_path / "in" / "damaged.nii.gz").write_bytes(b"no scan")
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--weights", str(tiny_weights), "--save", "viewer"]
    assert CliRunner().invoke(main, arguments).exit_code == 1
    page, trouble = opened(browser, tmp_path / "out" / "index.html")
    names = page.locator("tbody tr td:first-child")
    assert [text.strip() for text in names.all_inner_texts()] == ["a", "b & <c>", "damaged"]
    assert page.locator("img").count() == 2
    # Not wait_for_function, whose polling evaluates text: the page forbids it.
    for picture in page.locator("img").all():
        picture.scroll_into_view_if_needed()
        picture.evaluate("(image) => image.complete || new Promise((done) => (image.onload = done))")
        assert picture.evaluate("(image) => image.naturalWidth") > 500
    assert "damaged.nii.gz" in page.locator("tbody tr").nth(2).inner_text()
    page.get_by_role("button", name="case").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert names.first.inner_text() == "damaged"
    page.get_by_role("link", name="a", exact=True).click()
    ready(page)
    assert page.locator("h1").inner_text() == "a"
    assert trouble == []


def test_what_others_wrote_is_left_alone(tmp_path: pathlib.Path, library: None) -> None:
    run_log.append(tmp_path, CaseRecord("x"))
    (tmp_path / "index.html").write_text("somebody's page")
    with pytest.raises(ResultError, match=r"index\.html: this program did not write it, or it was changed since"):
        Viewer().finish(tmp_path)
    assert (tmp_path / "index.html").read_text() == "somebody's page"


def test_without_niivue_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "LIBRARY", "missing.js")
    with pytest.raises(InputError, match="--save viewer needs NiiVue; fetch it once"):
        make_results(("viewer",))


def test_the_pinned_hash_is_checked(tmp_path: pathlib.Path) -> None:
    source = ROOT / "app" / "results" / "page"
    shutil.copy(source / "fetch.py", tmp_path)
    lock = json.loads((source / "package-lock.json").read_text())
    lock["packages"]["node_modules/@niivue/niivue"]["integrity"] = "sha512-" + "A" * 86 + "=="
    (tmp_path / "package-lock.json").write_text(json.dumps(lock))
    shown = subprocess.run([sys.executable, tmp_path / "fetch.py"], capture_output=True, text=True, check=False)
    assert shown.returncode != 0
    assert not (tmp_path / "niivue.umd.js").exists()
