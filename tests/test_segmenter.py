"""The Python door: what a caller may hand in, what comes back, and what is said of anything else."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import pathlib
import pickle
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from numpy.typing import NDArray
from PIL import Image

from app import Segmenter
from app.engines import Box
from app.errors import CheckpointError, InputError, ResultError, VolumeError
from app.inference.components import keep_largest
from app.inference.labelling import FindBox
from app.organs import ORGANS, Organ
from app.volumes import open_image, open_volume
from app.volumes.nifti import mask_header
from app.volumes.volume import to_int16
from phantom import make_phantom
from phantom.dicom import write_series
from tests.nifti_files import save, volume_lps, write_mask
from tests.tiny import segmentation_of


@pytest.fixture(scope="module")
def segmenter(tiny_weights: pathlib.Path) -> Segmenter:
    return Segmenter.load(tiny_weights, "cpu")


def in_memory(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)


WAYS_IN: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "text": lambda image: (str(image.get_filename()),),
    "image of a file": lambda image: (image,),
    "image in memory": lambda image: (in_memory(image),),
    "array": lambda image: (np.asarray(image.dataobj), image.affine),
    "array of floats and lists": lambda image: (image.get_fdata(), image.affine.tolist()),
    "array that is not contiguous": lambda image: (np.asarray(image.dataobj).repeat(2, axis=1)[:, ::2], image.affine),
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_every_way_in_gives_the_same(segmenter: Segmenter, phantom_path: pathlib.Path, way: str) -> None:
    expected = segmenter.run(phantom_path)
    found = segmenter.run(*WAYS_IN[way](nib.load(phantom_path)))
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert found.volumes_ml == expected.volumes_ml
    assert found.confidence == expected.confidence
    assert found.warnings == expected.warnings
    np.testing.assert_array_equal(found.volume.geometry.affine, expected.volume.geometry.affine)


def test_the_record_says_what_was_found(segmenter: Segmenter, phantom_path: pathlib.Path) -> None:
    found = segmenter.run(phantom_path)
    assert found.case == phantom_path.name
    assert found.mask.dtype == np.uint8
    assert found.mask.shape == nib.load(phantom_path).shape
    assert set(np.unique(found.mask)) == {0, *ORGANS}
    assert found.organs == ORGANS
    assert found.volumes_ml == {
        organ: pytest.approx((found.mask == organ).sum() * 3 * 3 * 13 / 1000) for organ in ORGANS
    }
    assert all(0 < value < 1 for value in found.confidence.values() if value is not None)
    assert None not in found.confidence.values()
    assert set(found.seconds) == {"read", "network", "postprocess"}
    assert found.network_slices > 0


def test_the_mask_alone(segmenter: Segmenter, phantom_path: pathlib.Path) -> None:
    np.testing.assert_array_equal(segmenter.segment(phantom_path), segmenter.run(str(phantom_path)).mask)


def test_the_mask_of_a_record_is_not_changed_in_place(segmenter: Segmenter, phantom_path: pathlib.Path) -> None:
    """Its volumes, warnings and outputs would be of another mask; the mask alone is the caller's."""
    found = segmenter.run(phantom_path)
    with pytest.raises(ValueError, match="read-only"):
        found.mask[found.mask == Organ.PANCREAS] = 0
    corrected = np.where(found.mask == Organ.PANCREAS, np.uint8(0), found.mask)
    assert found.volumes_ml[Organ.PANCREAS] > 0
    assert dataclasses.replace(found, mask=corrected).volumes_ml[Organ.PANCREAS] == 0
    with pytest.raises(ValueError, match="read-only"):
        pickle.loads(pickle.dumps(found)).mask[:] = 0
    segmenter.segment(phantom_path)[:] = 0


def test_records_can_be_compared_and_kept_in_sets(phantom_path: pathlib.Path) -> None:
    """As caches and user interfaces do; each is itself alone."""
    volume = open_volume(phantom_path)
    one, other = (segmentation_of(volume, np.zeros(volume.geometry.shape, np.uint8)) for _ in range(2))
    assert one != other
    assert {one, other, one} == {one, other}


# Warnings


def test_what_is_odd_about_a_scan_is_in_the_record_and_logged_with_the_mask_alone(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, segmenter: Segmenter
) -> None:
    image, _ = make_phantom((64, 64, 8), (5.0, 5.0, 30.0))
    path = save(tmp_path / "a.nii.gz", image + 1024, np.diag([-5.0, -5, 30, 1]))
    with caplog.at_level(logging.WARNING, logger="app"):
        warnings = segmenter.run(path).warnings
        assert caplog.messages == []
        segmenter.segment(path)
    assert any("intensities" in text and "subtract 1024" in text for text in warnings)
    assert caplog.messages == [f"a.nii.gz: {text}" for text in warnings]


@pytest.mark.parametrize(("organ", "ml"), [(Organ.LIVER, 8001), (Organ.PANCREAS, 501)])
def test_an_organ_larger_than_any_known_is_doubted(organ: Organ, ml: int) -> None:
    mask = np.zeros((20, 20, 40), np.uint8)
    mask.flat[:ml] = organ
    volume = open_image(np.zeros(mask.shape, np.int16), np.diag([-10.0, -10.0, 10.0, 1.0]))  # voxels of 1 ml
    (warning,) = (text for text in segmentation_of(volume, mask).warnings if "larger than any known" in text)
    assert warning.startswith(f"{organ.key} of {ml} ml")
    mask.flat[ml - 2 : ml] = 0
    assert not any("larger than any known" in text for text in segmentation_of(volume, mask).warnings)


@pytest.mark.parametrize("across", [0, 1, 2])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_liver_on_the_left_is_doubted(across: int, is_known: bool) -> None:
    """Whichever stored axis runs from side to side, and in whichever direction."""
    axes = np.roll(np.eye(3), across, axis=0) * 10.0
    affine = np.eye(4)
    affine[:3, :3] = axes.T
    line = int(np.flatnonzero(affine[0, :3])[0])
    for turn in (1, -1):
        affine[0, line] = turn * 10.0  # with 1 the axis grows to the right
        mask = np.zeros((12, 12, 12), np.uint8)
        right, left = (slice(8, 11), slice(2, 5))[::turn]
        mask[tuple(right if axis == line else slice(4, 8) for axis in range(3))] = Organ.LIVER
        mask[tuple(left if axis == line else slice(4, 8) for axis in range(3))] = Organ.SPLEEN
        for spot, expected in ((mask, False), (np.flip(mask, line), is_known)):
            volume = open_image(np.zeros(mask.shape, np.int16), affine)
            volume = dataclasses.replace(
                volume, geometry=dataclasses.replace(volume.geometry, orientation_known=is_known)
            )
            said = segmentation_of(volume, spot).warnings
            assert any("left of the spleen" in text for text in said) == expected


@pytest.mark.parametrize(("liver", "spleen", "is_doubted"), [(240, 661, True), (700, 690, False), (20, 290, False)])
def test_a_spleen_larger_than_the_liver_is_doubted(liver: int, spleen: int, is_doubted: bool) -> None:
    """As `fast` finds them in the mirror image of a patient whose liver has 1369 ml."""
    mask = np.zeros((20, 20, 40), np.uint8)
    mask[:10].reshape(-1)[:spleen], mask[10:].reshape(-1)[:liver] = Organ.SPLEEN, Organ.LIVER
    volume = open_image(np.zeros(mask.shape, np.int16), np.diag([10.0, 10.0, 10.0, 1.0]))  # voxels of 1 ml
    assert any("larger than the liver" in text for text in segmentation_of(volume, mask).warnings) == is_doubted


def test_missing_and_doubtful_organs_are_named(phantom_path: pathlib.Path) -> None:
    volume = open_volume(phantom_path)
    mask = np.zeros(volume.geometry.shape, np.uint8)
    mask[:5] = Organ.SPLEEN
    found = segmentation_of(volume, mask, confidence={Organ.SPLEEN: 0.5}, check=(Organ.SPLEEN,))
    assert found.warnings == (
        "no liver, no kidneys, no pancreas found; check that this is an abdominal CT",
        "check the spleen: the network is unsure of it (confidence 0.50)",
    )


@pytest.mark.parametrize(("third", "warns"), [(8, True), (2, False)])
def test_a_third_kidney_that_is_removed_is_said(phantom_path: pathlib.Path, third: int, warns: bool) -> None:
    """Somebody with a transplanted kidney has three."""
    volume = open_volume(phantom_path)
    mask = np.zeros(volume.geometry.shape, np.uint8, order="F")
    mask[10:20, 10:20, 2:6] = mask[40:50, 10:20, 2:6] = Organ.KIDNEYS
    mask[70 : 70 + third, 10:20, 2:4] = Organ.KIDNEYS
    components = keep_largest(mask)
    assert components[Organ.KIDNEYS] == [400, 400, 20 * third]
    found = segmentation_of(volume, mask, components=components)
    assert found.removed(Organ.KIDNEYS) == [20 * third]
    assert any("a piece of 19 ml labelled as kidneys was removed" in text for text in found.warnings) == warns


# What the network sees


def test_a_caller_chooses_what_the_network_sees(segmenter: Segmenter, phantom_path: pathlib.Path) -> None:
    """The front half of every slice; behind it nothing is labelled."""
    volume = open_volume(phantom_path)
    shapes: list[tuple[int, ...]] = []
    done: list[int] = []

    def front(inputs: NDArray[np.float32], spacing_yx_mm: Sequence[float], window_hu: Sequence[float]) -> Box:
        shapes.append(inputs.shape)
        assert 0 <= inputs.min() <= inputs.max() <= 1
        return slice(0, 32), slice(0, inputs.shape[2])

    def labels(find_box: FindBox) -> NDArray[np.uint8]:
        done.clear()
        found = segmenter.segment_volume(volume, volume.slices(), case="x", on_slice=done.append, find_box=find_box)
        return found.labels_zyx

    in_front = labels(front)
    assert sum(done) == len(in_front) == 20
    assert {shape[1:] for shape in shapes} == {(64, 64)}  # 384 mm at 6 mm
    assert in_front[:, :64].any()
    assert not in_front[:, 64 + 4 :].any()  # logits of 24 mm are interpolated over half of that
    everything = labels(lambda inputs, spacing, window: (slice(0, 64), slice(0, 64)))
    assert everything[:, 64 + 4 :].any()


# Outputs


def test_a_record_saves_outputs(segmenter: Segmenter, phantom_path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    found = segmenter.run(phantom_path)
    for name in ("nifti", "nifti-named", "statistics", "preview", "viewer"):
        found.save(str(tmp_path / f"{name}.nii" if name.startswith("nifti") else tmp_path / name), name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "nifti-named.nii",
        "nifti.nii",
        "preview",
        "statistics",
        "viewer",
    ]
    np.testing.assert_array_equal(nib.load(tmp_path / "nifti.nii").dataobj, found.mask)
    organs = json.loads((tmp_path / "statistics").read_text())["organs"]
    assert {name: row["voxels"] for name, row in organs.items()} == {o.key: n for o, n in found.voxels.items()}
    with Image.open(tmp_path / "preview") as picture:
        assert picture.width == 1000
    assert (tmp_path / "viewer").read_text().endswith("</html>\n")
    found.save(tmp_path / "scan.nii.gz")
    found.save(tmp_path / "scan.nii.gz")  # again
    np.testing.assert_array_equal(nib.load(tmp_path / "scan.nii.gz").dataobj, found.mask)


@pytest.mark.parametrize("way", ["its name", "a link", "an image of it"])
def test_the_scan_is_not_overwritten(
    segmenter: Segmenter, phantom_path: pathlib.Path, tmp_path: pathlib.Path, way: str
) -> None:
    scan, link = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    shutil.copy(phantom_path, scan)
    link.symlink_to(scan)
    found = segmenter.run(nib.load(scan) if way == "an image of it" else scan)
    for output in ("nifti", "statistics"):
        with pytest.raises(ResultError, match=r"nii\.gz: is the scan that was segmented; choose another name"):
            found.save(link if way == "a link" else scan, output)
    assert scan.read_bytes() == phantom_path.read_bytes()


def test_the_scan_is_not_overwritten_from_another_folder(
    segmenter: Segmenter, phantom_path: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(phantom_path, tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    records = [segmenter.run("scan.nii.gz"), segmenter.run(nib.load("scan.nii.gz"))]
    monkeypatch.chdir("/")
    for found in records:
        with pytest.raises(ResultError, match="is the scan that was segmented"):
            found.save(tmp_path / "scan.nii.gz")


def test_an_object_that_needs_a_scan_that_is_gone_says_so(segmenter: Segmenter, tmp_path: pathlib.Path) -> None:
    scan = tmp_path / "scan"
    write_series(scan, np.zeros((32, 32, 4), np.int16), (9.0, 9.0, 30.0))
    found = segmenter.run(scan)
    shutil.rmtree(scan)
    for name in ("dicom-seg", "rtstruct", "dicom-sr"):
        with pytest.raises(ResultError, match=r"needs the scan, which cannot be read again \(.*/scan/.*: No such file"):
            found.save(tmp_path / "x.dcm", name)
    found.save(tmp_path / "x.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["x.nii.gz"]


@pytest.mark.parametrize("trouble", ["gone", "cut", "damaged"])
def test_an_image_whose_file_changed_is_one_line(
    segmenter: Segmenter, phantom_path: pathlib.Path, tmp_path: pathlib.Path, trouble: str
) -> None:
    """Voxels are read when they are asked for."""
    path = tmp_path / "scan.nii.gz"
    content = phantom_path.read_bytes()
    path.write_bytes(content)
    image = nib.load(path)
    middle = len(content) // 2
    if trouble == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:middle] + (b"" if trouble == "cut" else bytes(100) + content[middle + 100 :]))
    with pytest.raises(VolumeError, match=r"scan\.nii\.gz: "):
        segmenter.run(image)


def test_a_record_can_be_sent_to_another_process(segmenter: Segmenter, phantom_path: pathlib.Path) -> None:
    found = segmenter.run(phantom_path)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.mask, found.mask)
    assert again.volumes_ml == found.volumes_ml


@pytest.mark.parametrize("send", [pickle.dumps, copy.deepcopy])
def test_a_model_cannot_be_sent_to_another_process(segmenter: Segmenter, send: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="load it in each process"):
        send(segmenter)


@pytest.mark.parametrize(
    ("output", "error", "line"),
    [
        ("dicom-seg", ResultError, "a DICOM segmentation needs a DICOM scan; save nifti instead"),
        ("statistics", ResultError, "statistics need the scan's values, which were not gathered"),
        ("nifti", ResultError, r"the name of a mask must end with \.nii\.gz or \.nii"),
        ("nifty", InputError, "'nifty': no such output; choose from nifti, nifti-named, dicom-seg"),
    ],
)
def test_what_cannot_be_saved_says_why(
    segmenter: Segmenter,
    phantom_path: pathlib.Path,
    tmp_path: pathlib.Path,
    output: str,
    error: type[Exception],
    line: str,
) -> None:
    found = segmenter.run(phantom_path, gather=False)
    with pytest.raises(error, match=line):
        found.save(tmp_path / "x", output)
    assert list(tmp_path.iterdir()) == []


def test_a_name_in_capital_letters_is_compressed_too(
    segmenter: Segmenter, phantom_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found = segmenter.run(phantom_path)
    found.save(tmp_path / "X.NII.GZ")
    np.testing.assert_array_equal(nib.load(tmp_path / "X.NII.GZ").dataobj, found.mask)


def test_a_folder_that_is_not_there_is_one_line(
    segmenter: Segmenter, phantom_path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found = segmenter.run(phantom_path)
    for name in ("nifti", "statistics"):
        with pytest.raises(ResultError, match=r"cannot be written \(No such file or directory\); check the folder"):
            found.save(tmp_path / "missing" / "x.nii.gz", name)


# What is no scan


class Foreign:
    """An image that is read voxel by voxel, as SimpleITK's are by NumPy."""

    def __len__(self) -> int:
        return 512 * 512 * 100

    def __getitem__(self, index: int) -> int:
        raise AssertionError("it takes minutes to read")


AFFINE = np.diag([-3.0, -3.0, 10.0, 1.0])
VOXELS = np.zeros((40, 40, 5), np.int16)
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "no affine": ((VOXELS,), "array: expected its affine, .* got None"),
    "an affine of 3 x 3": ((VOXELS, np.eye(3)), r"array: expected its affine, .* got \(3, 3\)"),
    "an affine of NaN": (
        (VOXELS, np.diag([np.nan, -3.0, 10.0, 1.0])),
        "array: (voxel spacing|singular affine) .*nan",
    ),
    "an affine without depth": (
        (VOXELS, np.diag([3.0, 3.0, 0.0, 1.0])),
        r"array: voxel spacing .*3\.0, 0\.0\) mm",
    ),
    "a file and an affine": (("scan.nii.gz", AFFINE), r"scan\.nii\.gz: an affine was given besides a file"),
    "an affine of words": ((VOXELS, np.full((4, 4), "x")), "array: expected its affine, .* got an array of kind 'U'"),
    "a complex affine": ((VOXELS, AFFINE + 0j), "array: expected its affine, .* got an array of kind 'c'"),
    "an affine of halves": (
        (VOXELS, np.diag([-3.0, -3.0, 10.0, 2.0])),
        r"array: expected its affine, .* whose last row is \[0\.0, 0\.0, 0\.0, 2\.0\] instead of 0, 0, 0, 1",
    ),
    "masked voxels": ((np.ma.masked_less(VOXELS, 0), AFFINE), r"array: a masked array; .* image\.filled\(-1024\)"),
    "two affines": ((nib.Nifti1Image(VOXELS, AFFINE), AFFINE), "image: an affine was given besides a nibabel image"),
    "2-D": ((VOXELS[..., 0], AFFINE), r"array: expected a 3-D CT, got shape \(40, 40\)"),
    "4-D": ((np.stack([VOXELS] * 2, axis=3), AFFINE), r"array: expected a 3-D CT, got shape \(40, 40, 5, 2\)"),
    "a 4-D image": (
        (nib.Nifti1Image(np.stack([VOXELS] * 3, axis=3), AFFINE),),
        r"image: expected a 3-D CT, got shape \(40, 40, 5, 3\); split the series",
    ),
    "no voxel": ((VOXELS[:0], AFFINE), "array: expected a 3-D CT, got shape"),
    "RGB": ((np.zeros(VOXELS.shape, RGB), AFFINE), "array: expected Hounsfield units as integers or floats, .* 'V'"),
    "an RGB image": (
        (nib.Nifti1Image(np.zeros(VOXELS.shape, RGB), AFFINE),),
        "image: expected Hounsfield units .* 'V'",
    ),
    "complex": ((VOXELS.astype(complex), AFFINE), "array: expected Hounsfield units as integers or floats, .* 'c'"),
    "true or false": ((VOXELS > 0, AFFINE), "array: expected Hounsfield units as integers or floats, .* 'b'"),
    "nothing": ((None, AFFINE), "expected a path, a nibabel image, or an array with its affine, got a NoneType"),
    "the bytes of a file": ((b"\x1f\x8b",), "expected a path, .* got a bytes"),
    "another library's image": ((Foreign(), AFFINE), "expected a path, .* got a Foreign"),
    "a tensor of bfloat16": ((torch.zeros(40, 40, 5).bfloat16(), AFFINE), "array: a Tensor .*BFloat16.*float"),
    "a tensor elsewhere": ((torch.zeros(40, 40, 5, device="meta"), AFFINE), r"array: a Tensor .*\.cpu\(\)"),
    "an affine with a gradient": ((VOXELS, torch.eye(4, requires_grad=True)), "array: a Tensor that NumPy cannot take"),
    "a ragged affine": ((VOXELS, [[1, 2], [3]]), "array: a list that NumPy cannot take"),
    "an empty path": (("",), "an empty path instead of a scan's; is a variable unset?"),
    "metres": ((VOXELS, np.diag([-3000.0, -3000.0, 10.0, 1.0])), "array: the scan measures .*, larger than any"),
    "no file": (("missing.nii.gz",), r"missing\.nii\.gz: "),
    "no scan": ((pathlib.Path(__file__),), r"test_segmenter\.py: not a scan; expected"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_scan_is_one_line(segmenter: Segmenter, kind: str) -> None:
    arguments, line = BAD[kind]
    with pytest.raises(VolumeError, match=line) as caught:
        segmenter.run(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("drift", [3e-4, 2.5e-3])
def test_the_mask_of_an_array_whose_axes_drift_can_be_opened_by_itk(tmp_path: pathlib.Path, drift: float) -> None:
    sheared = np.eye(4)
    sheared[1, 2] = drift
    affine = sheared @ AFFINE
    volume = open_image(VOXELS, affine)
    assert not any("disagree" in warning for warning in volume.warnings)
    write_mask(np.ones(VOXELS.shape, np.uint8), volume, tmp_path / "mask.nii.gz")
    assert SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz")).GetSpacing() == pytest.approx((3.0, 3.0, 10.0), rel=1e-4)
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii.gz").affine, affine, rtol=1e-6, atol=1e-7)


def test_voxels_of_nan_are_air(segmenter: Segmenter, phantom_path: pathlib.Path) -> None:
    image = nib.load(phantom_path)
    voxels = image.get_fdata()
    voxels[:20] = -1024
    expected = segmenter.run(voxels, image.affine).mask
    voxels[:20] = np.nan
    np.testing.assert_array_equal(segmenter.run(voxels, image.affine).mask, expected)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_floats_beyond_int16_are_its_limits(kind: str) -> None:
    values = np.array([60000, np.inf, -np.inf, np.nan, 99.6], kind)
    assert to_int16(values).tolist() == [32767, 32767, -32768, -1024, 100]


def test_an_affine_that_was_changed_in_place_counts(phantom_path: pathlib.Path) -> None:
    """The header gets it when nibabel saves the image."""
    image = nib.load(phantom_path)
    image.affine[:2] *= -1
    image.affine[:3, 3] += 7
    volume = open_image(image)
    np.testing.assert_array_equal(volume.geometry.affine, image.affine)
    assert volume.warnings == ()
    np.testing.assert_array_equal(mask_header(volume).get_best_affine(), image.affine)


class Place:
    """A path of another library."""

    def __fspath__(self) -> str:
        return "slow"


@pytest.mark.parametrize("name", ["slow", "slow.safetensors", pathlib.Path("slow"), Place(), ""])
def test_a_model_that_is_not_there_is_one_line(name: str | os.PathLike[str]) -> None:
    """An unset variable of a script is none either, and not the default."""
    with pytest.raises(CheckpointError, match=r"slow|model ''"):
        Segmenter.load(name, "cpu")


@pytest.mark.parametrize("size", [0, -1, "4", 2.5])
def test_a_batch_size_that_is_none_is_one_line(segmenter: Segmenter, size: Any) -> None:  # noqa: ANN401
    """OpenVINO would take all slices at a time."""
    with pytest.raises(InputError, match="expected a whole number from 1"):
        Segmenter(segmenter.engine, batch_size=size)


def test_a_device_of_torch_is_a_device(tiny_weights: pathlib.Path) -> None:
    assert Segmenter.load(tiny_weights, torch.device("cpu"), np.int64(2)).batch_size == 2  # type: ignore[arg-type]


def test_slices_of_a_scan_that_failed_are_closed(segmenter: Segmenter) -> None:
    """Whoever opened them need not."""
    volume = open_image(volume_lps(), np.diag([-60.0, -60.0, 60.0, 1.0]))
    slices = volume.slices()

    def fail(*_: object) -> Box:
        raise VolumeError("x")

    with pytest.raises(VolumeError, match="x"):
        segmenter.segment_volume(volume, slices, case="x", find_box=fail)
    assert list(slices) == []
