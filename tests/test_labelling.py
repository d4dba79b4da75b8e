"""The streaming loop, with a network that thresholds instead of one that learnt."""

from __future__ import annotations

import pathlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from app.checkpoint import Checkpoint
from app.engines import Box
from app.engines.torch_engine import Model, TorchEngine, best_dtype, choose_batch_size, load_onto, refined_logits
from app.errors import DeviceError, InferenceError, NoMemoryError
from app.inference.grid import network_grid
from app.inference.labelling import Findings, Labelling, OnSlice
from app.inference.slabs import slab_weights
from app.network import HrnetOcrLogits, build, tensors_of
from tests.tiny import CONFIG, randomise

SPACING = (3.0, 1.0, 1.0)
NO_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
)


class ByBrightness(nn.Module):
    """Labels 0..4 by the brightness of the middle channel; remembers the batches it saw."""

    def __init__(self, largest_batch: int = 99, refusal: Exception = NO_MEMORY[0]) -> None:
        super().__init__()
        self.largest_batch, self.refusal = largest_batch, refusal
        self.batches: list[int] = []
        self.refused: list[int] = []

    def forward(self, image: Tensor) -> HrnetOcrLogits:
        if len(image) > self.largest_batch:
            self.refused.append(len(image))
            raise self.refusal
        self.batches.append(len(image))
        levels = torch.arange(5)[None, :, None, None] / 4
        logits = -((nn.functional.avg_pool2d(image[:, 1:2].float(), 4) - levels) ** 2)
        return HrnetOcrLogits(logits, logits)


def model(network: nn.Module) -> Model:
    return Model(CONFIG, network, torch.device("cpu"), torch.float32)


@dataclass
class Labelled(Findings):
    """What the loop found, and the batch size that it ended with."""

    batch_size: int = 0


def label_slices(
    placed: Model,
    planes: Iterable[tuple[int, NDArray[np.int16]]],
    spacing_mm: tuple[float, float, float],
    labels: NDArray[np.uint8],
    batch_size: int | None = None,
    on_slice: OnSlice = lambda count: None,
) -> Labelled:
    """Label with a model, on the grid that a segmenter would choose."""
    grid = network_grid(labels.shape[1:], spacing_mm[1:], CONFIG.spacing_mm)
    with TorchEngine(placed, {}).session(grid, batch_size) as session:
        findings = Labelling(session, CONFIG, spacing_mm, labels).run(planes, on_slice)
    return Labelled(**vars(findings), batch_size=session.batch_size)


def scan(depth: int, seed: int = 0) -> NDArray[np.int16]:
    """(Z, 64, 96) blocks of 16 pixels at the HU of the five levels."""
    blocks = np.random.default_rng(seed).integers(0, 5, (depth, 4, 6)).repeat(16, 1).repeat(16, 2)
    return (blocks * 100 - 125).astype(np.int16)


def slices(volume: NDArray[np.int16], descending: bool = False) -> Iterator[tuple[int, NDArray[np.int16]]]:
    order = range(len(volume))
    return ((z, volume[z]) for z in (reversed(order) if descending else order))


def test_labels_lie_where_the_brightness_is() -> None:
    volume = scan(5)
    labels = np.zeros(volume.shape, np.uint8)
    done: list[int] = []
    findings = label_slices(model(ByBrightness()), slices(volume), SPACING, labels, on_slice=done.append)
    truth = (volume + 125) // 100
    middle = (slice(None), slice(8, None, 16), slice(8, None, 16))  # of the blocks: borders are resampled
    np.testing.assert_array_equal(labels[middle], truth[middle])
    assert sum(done) == findings.network_slices == 5


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("batch_size", [2, 3, 7, 20])
def test_batch_size_and_order_change_no_label(batch_size: int, descending: bool) -> None:
    network = randomise(build(CONFIG), seed=5)
    volume = scan(7)
    volume[:] += np.random.default_rng(1).normal(0, 30, volume.shape).astype(np.int16)
    one_by_one, labels = np.zeros(volume.shape, np.uint8), np.zeros(volume.shape, np.uint8)
    label_slices(model(network), slices(volume), SPACING, one_by_one, 1)
    label_slices(model(network), slices(volume, descending), SPACING, labels, batch_size)
    assert len(np.unique(one_by_one)) > 1
    assert np.mean(one_by_one != labels) < 1e-4  # sums may be taken in another order


class Witnessed:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.planes: dict[int, NDArray[np.int16]] = {}

    def see(self, z: int, plane: NDArray[np.int16]) -> None:
        self.planes[z] = plane

    def labelled(self, z: int, labels: NDArray[np.uint8]) -> None:
        assert z in self.planes

    def finish(self, labels_zyx: NDArray[np.uint8]) -> None:
        assert len(self.planes) == len(labels_zyx)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(("spacing_z_mm", "network_slices"), [(2.5, 24), (1.25, 13), (0.8, 9), (0.5, 5)])
@pytest.mark.parametrize(("noise_in_2_5_mm", "slab_mm"), [(15, 2.5), (45, 5.0)])
def test_thin_slices_are_averaged_and_noisy_ones_smoothed_before_the_network_and_outputs_get_them_as_they_are(
    noise_in_2_5_mm: float, slab_mm: float, spacing_z_mm: float, network_slices: int, descending: bool
) -> None:
    noise = noise_in_2_5_mm * (2.5 / spacing_z_mm) ** 0.5
    volume = np.random.default_rng(3).normal(75, noise, (24, 64, 96)).astype(np.int16)
    low, high = CONFIG.window_hu
    parts = 32  # each slice as so many of the same, of which those of a slab are averaged
    reach = round(slab_mm / spacing_z_mm * parts / 2)
    fine = np.pad(volume, ((5, 5), (0, 0), (0, 0)), "edge").repeat(parts, 0)
    middles = parts * (np.arange(len(volume)) + 5.5)
    slabs = np.stack([fine[int(middle) - reach : int(middle) + reach].mean(0) for middle in middles])
    if slab_mm > 2.5:  # noisy
        slabs = gaussian_filter(slabs, (0, 1, 1), mode="nearest")
    expected = (slabs.clip(low, high) - low) / (high - low)
    shown: list[NDArray[np.float32]] = []

    class Sees(ByBrightness):
        def forward(self, image: Tensor) -> HrnetOcrLogits:
            shown.extend(image[:, 1].numpy())
            return super().forward(image)

    witness, labels = Witnessed(), np.zeros(volume.shape, np.uint8)
    # A pixel of the scan is one of the grid, so that nothing but the slab is averaged.
    with TorchEngine(model(Sees()), {}).session((64, 96), 1) as session:
        labelling = Labelling(session, CONFIG, (spacing_z_mm, 1.0, 1.0), labels, find_box=whole_box, witness=witness)
        labelling.run(slices(volume, descending))
    assert len(shown) == network_slices
    for image in shown:
        assert np.abs(expected - image).max((1, 2)).min() < 0.005
    for z, plane in witness.planes.items():
        np.testing.assert_array_equal(plane, volume[z])


def whole_box(inputs: NDArray[np.float32], spacing: Sequence[float], window: Sequence[float]) -> Box:
    return slice(0, inputs.shape[1]), slice(0, inputs.shape[2])


@pytest.mark.parametrize("slab_mm", [2.5, 5.0])
@pytest.mark.parametrize("spacing_z_mm", [0.05, 0.3, 0.8, 1.25, 2.0, 2.4999, 2.5, 2.6, 40.0])
def test_a_slab_is_as_thick_as_it_should_be_or_one_slice(spacing_z_mm: float, slab_mm: float) -> None:
    weights = slab_weights(spacing_z_mm, slab_mm)
    assert len(weights) % 2 == 1
    assert weights == weights[::-1]
    assert sum(weights) == pytest.approx(1, abs=1e-3)
    assert min(weights) > 0
    thickness = spacing_z_mm / max(weights)
    assert thickness == pytest.approx(max(slab_mm, spacing_z_mm), rel=1e-3)


def test_slices_of_air_skip_the_network() -> None:
    volume = scan(6)
    volume[[0, 1, 5]] = -1000
    volume[1, :20, :40] = 40  # 800 mm2: a table, no body
    network = ByBrightness()
    labels = np.zeros(volume.shape, np.uint8)
    done: list[int] = []
    findings = label_slices(model(network), slices(volume), SPACING, labels, 4, done.append)
    assert findings.network_slices == sum(network.batches) == 3
    assert not labels[[0, 1, 5]].any()
    assert labels[2:5].any(axis=(1, 2)).all()
    assert sum(done) == 6


def box_of_liver(depth: int, rows: range) -> NDArray[np.int16]:
    """(Z, 128, 128) muscle at 0 HU in every slice, a block that the fake network labels 2 in some."""
    volume = np.full((depth, 128, 128), -125, np.int16)
    volume[:, 16:112, 16:112] = -80  # nearest to level 0
    volume[rows, 40:80, 40:80] = 75  # level 2
    return volume


@pytest.mark.parametrize("descending", [False, True])
def test_scouts_spare_the_network_what_lies_between_two_that_show_nothing(descending: bool) -> None:
    volume = box_of_liver(61, range(30, 40))  # scouts every 4 slices of 3 mm
    network = ByBrightness()
    labels = np.zeros(volume.shape, np.uint8)
    done: list[int] = []
    findings = label_slices(model(network), slices(volume, descending), SPACING, labels, 4, done.append)
    assert np.flatnonzero(labels.any((1, 2))).tolist() == list(range(30, 40))
    assert (labels[30:40, 44:76, 44:76] == 2).all()
    # 16 scouts; of the gaps, those that touch the scouts 32 and 36: 28..32, 32..36, 36..40.
    assert findings.network_slices == sum(network.batches) == 16 + 3 * 3
    assert sum(done) == 61


@pytest.mark.parametrize("descending", [False, True])
def test_thin_slices_are_interpolated_between_anchors(descending: bool) -> None:
    volume = box_of_liver(50, range(21, 33))  # slices of 1 mm: anchors 0, 3, 6 ..., scouts 0, 12, 24 ...
    network = ByBrightness()
    labels = np.zeros(volume.shape, np.uint8)
    findings = label_slices(model(network), slices(volume, descending), (1.0, 1.0, 1.0), labels, 4)
    found = np.flatnonzero((labels == 2)[:, 44:76, 44:76].all((1, 2))).tolist()
    # Not as far as the anchors 18 and 33; 21 is a slab with a slice of muscle in it.
    assert set(range(22, 31)) <= set(found) <= set(range(19, 33))
    assert found == list(range(found[0], found[-1] + 1))
    assert findings.network_slices < 20


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_order_and_batch_size_change_no_label_of_thin_slices(batch_size: int) -> None:
    network = randomise(build(CONFIG), seed=5)
    volume = scan(30)
    found = []
    for descending, size in ((False, 4), (True, batch_size)):
        found.append(np.zeros(volume.shape, np.uint8))
        label_slices(model(network), slices(volume, descending), (0.7, 1.0, 1.0), found[-1], size)
    assert len(np.unique(found[0])) > 1
    assert np.mean(found[0] != found[1]) < 1e-4


@pytest.mark.parametrize("refusal", NO_MEMORY)
def test_a_full_memory_halves_the_batch_and_loses_nothing(refusal: Exception) -> None:
    volume = scan(16)
    expected, labels = np.zeros(volume.shape, np.uint8), np.zeros(volume.shape, np.uint8)
    label_slices(model(ByBrightness()), slices(volume), SPACING, expected, 8)
    network = ByBrightness(3, refusal)
    findings = label_slices(model(network), slices(volume), SPACING, labels, 8)
    np.testing.assert_array_equal(labels, expected)
    assert findings.batch_size == 2
    assert max(network.batches) == 2
    assert sum(network.batches) == 16
    assert len(network.refused) == 1  # it does not try the larger batch again


def test_a_batch_that_cannot_even_be_put_together_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = torch.stack

    def cramped(images: list[Tensor], *arguments: int) -> Tensor:
        if len(images) > 3 and images[0].shape == (3, 32, 64):  # a batch, not one slice's channels
            raise NO_MEMORY[0]
        return stack(images, *arguments)

    monkeypatch.setattr(torch, "stack", cramped)
    volume = scan(8)
    labels = np.zeros(volume.shape, np.uint8)
    findings = label_slices(model(ByBrightness()), slices(volume), SPACING, labels, 8)
    assert findings.batch_size == 2
    assert findings.network_slices == 8


def test_no_memory_for_one_slice_is_one_clear_line() -> None:
    line = r"cpu: not enough memory for a slice of 32 x 64; free memory, or choose model fast or device cpu"
    volume = scan(2)
    with pytest.raises(InferenceError, match=line):
        label_slices(model(ByBrightness(0)), slices(volume), SPACING, np.zeros(volume.shape, np.uint8))


def test_what_a_refused_batch_had_allocated_is_free_again() -> None:
    allocated: list[weakref.ref[Tensor]] = []

    class Full(nn.Module):
        def forward(self, image: Tensor) -> HrnetOcrLogits:
            features = image * 2
            allocated.append(weakref.ref(features))
            raise NO_MEMORY[0]

    with pytest.raises(NoMemoryError) as refused:
        refined_logits(model(Full()), [list(torch.rand(3, 32, 64))], (slice(0, 32), slice(0, 64)))
    assert allocated[0]() is None
    assert refused.value.__cause__ is NO_MEMORY[0]  # where it was, for the debug log


@pytest.mark.parametrize("refusal", NO_MEMORY)
def test_no_memory_for_the_weights_is_one_clear_line(refusal: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise refusal

    checkpoint = Checkpoint(CONFIG, tensors_of(build(CONFIG).state_dict()), {})
    monkeypatch.setattr(nn.Module, "to", full)
    with pytest.raises(DeviceError, match="cpu: no memory left for the weights; free the GPU or choose device cpu"):
        load_onto(checkpoint, torch.device("cpu"))


def test_another_runtime_error_is_not_taken_for_a_lack_of_memory() -> None:
    class Broken(nn.Module):
        def forward(self, image: Tensor) -> HrnetOcrLogits:
            raise RuntimeError("shapes do not match")

    volume = scan(2)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        label_slices(model(Broken()), slices(volume), SPACING, np.zeros(volume.shape, np.uint8))


def test_batch_size_follows_the_free_memory() -> None:
    chosen = [choose_batch_size(model(ByBrightness()), (512, 512), free) for free in (0, 20 << 20, 1 << 40)]
    assert chosen[0] == 1
    assert chosen[-1] == 4
    assert chosen == sorted(chosen)
    paper = replace(CONFIG, width=48, ocr_channels=512, key_channels=256)
    fast = replace(CONFIG, width=18, ocr_channels=128, key_channels=64)
    for config, grid, expected in ((paper, (512, 512), 2), (paper, (1024, 1024), 1), (fast, (288, 288), 8)):
        on_gpu = Model(config, nn.Identity(), torch.device("cuda"), torch.float16)
        assert choose_batch_size(on_gpu, grid, 80 << 30) == expected  # room enough, but little is taken of it


def test_precisions_of_the_cpu_agree() -> None:
    volume = scan(3)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        tensors = tensors_of(randomise(build(CONFIG), seed=6).state_dict())
        placed = load_onto(Checkpoint(CONFIG, tensors, {}), torch.device("cpu"), dtype)
        labels = np.zeros(volume.shape, np.uint8)
        label_slices(placed, slices(volume), SPACING, labels)
        found.append(labels)
    assert np.mean(found[0] != found[1]) < 0.02


@pytest.mark.parametrize(
    ("cpu", "dtype"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16", torch.bfloat16),
        ("vendor_id : AuthenticAMD\nflags : avx2", torch.float32),
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16", torch.float32),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 amx_bf16", torch.bfloat16),
        ("Features : asimd bf16", torch.float32),
        (None, torch.float32),
    ],
)
def test_the_precision_follows_the_processor(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, cpu: str | None, dtype: torch.dtype
) -> None:
    if cpu is not None:
        (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setattr("app.host.CPU_INFO", tmp_path / "cpuinfo")
    assert best_dtype(torch.device("cpu")) == dtype
    assert best_dtype(torch.device("cuda")) == torch.float16


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 65, 127), (1, 2048, 70)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    volume = np.full(shape, 75, np.int16)
    labels = np.zeros(shape, np.uint8)
    label_slices(model(ByBrightness()), slices(volume), SPACING, labels)
    assert (labels == 2).all()
