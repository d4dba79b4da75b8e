"""The CPU engine without torch: its graph, its images and its labels are those of the torch engine, to rounding."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from app import Segmenter
from app.checkpoint import Checkpoint, ModelConfig, bundled_models, folded
from app.cli import main
from app.engines import choose_engine, engine_class, torch_images
from app.engines.numpy_images import prepared, to_labels
from app.engines.openvino_engine import OpenvinoEngine, best_precision, compile_network
from app.engines.openvino_graph import network_graph
from app.errors import DeviceError, InferenceError, NoMemoryError
from app.gpu_memory import has_gpu
from app.network import HrnetOcr, build, tensors_of
from app.organs import ORGANS
from evaluation.overlap import dice
from phantom import write_phantom
from tests.conftest import ROOT
from tests.tiny import CONFIG, randomise

WINDOW = (-125.0, 275.0)
SIZES = [(1, 96, 160), (3, 32, 64), (1, 32, 32), (2, 64, 224)]  # images, height, width
WIDTHS = {18: (7, 128, 64), 32: (7, 128, 64), 48: (3, 512, 256)}  # channels in, OCR head's, attention's


def random_model(config: ModelConfig, seed: int) -> tuple[HrnetOcr, Checkpoint]:
    """A network with random weights whose attention is sharp enough to show, and its checkpoint."""
    network = randomise(build(config), seed)
    with torch.no_grad():
        for part in (network.ocr_head.attention.query, network.ocr_head.attention.key):
            part.get_parameter("1.norm.weight").mul_(4)
    return network, Checkpoint(config, tensors_of(network.state_dict()), {})


@pytest.mark.parametrize("width", WIDTHS)
def test_logits_are_those_of_torch(width: int) -> None:
    channels_in, ocr_channels, key_channels = WIDTHS[width]
    config = replace(CONFIG, width=width, channels_in=channels_in, ocr_channels=ocr_channels, key_channels=key_channels)
    network, checkpoint = random_model(config, seed=width)
    compiled = compile_network(checkpoint, "float32")
    for n, height, across in SIZES:
        image = torch.rand(n, channels_in, height, across, generator=torch.Generator().manual_seed(n))
        with torch.inference_mode():
            expected = network(image).refined.numpy()
        found = compiled(image.numpy())[0]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        assert expected.std(axis=(2, 3)).min() > 1e-2  # neither has one value everywhere


def test_another_number_of_labels() -> None:
    network, checkpoint = random_model(replace(CONFIG, labels=("background", "spleen", "liver")), seed=3)
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        expected = network(image).refined.numpy()
    np.testing.assert_allclose(compile_network(checkpoint, "float32")(image.numpy())[0], expected, rtol=0, atol=1e-4)


def test_the_graph_takes_every_tensor_once() -> None:
    _, checkpoint = random_model(CONFIG, seed=0)
    tensors = folded(checkpoint.tensors)
    read: list[str] = []

    class Recorded(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:  # noqa: ANN401
            read.append(name)
            return super().__getitem__(name)

    network_graph(Recorded(tensors), CONFIG.channels_in)
    assert set(read) == set(tensors)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((512, 512), (256, 256)),
        ((512, 512), (384, 448)),
        ((333, 401), (320, 512)),
        ((700, 61), (32, 64)),
        ((64, 64), (64, 64)),
        ((1, 40), (32, 32)),
    ],
)
def test_slices_reach_the_grid_and_come_back_as_in_torch(shape: tuple[int, int], grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    hounsfield = rng.integers(-1024, 1500, shape).astype(np.int16)
    before = hounsfield.copy()
    found = prepared(hounsfield, WINDOW, grid)
    expected = torch_images.network_input(torch_images.windowed_slice(torch.from_numpy(hounsfield), WINDOW, grid))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(hounsfield, before)
    logits = torch.from_numpy(rng.normal(size=(1, 5, grid[0] // 4, grid[1] // 4)).astype(np.float32))
    smooth = torch.nn.functional.avg_pool2d(logits, 5, 1, 2)
    for background in (-9.0, 0.0, 0.3, 9.0):
        smooth[0, 0] += background
        labels = to_labels(smooth[0].numpy(), shape)
        assert labels.dtype == np.uint8
        wanted = torch_images.to_scan(smooth, shape).max(1)[1][0].numpy()
        assert np.count_nonzero(labels != wanted) <= 1e-4 * labels.size
        smooth[0, 0] -= background


def test_a_single_organ_pixel_at_the_edge_is_not_cut_off() -> None:
    logits = np.zeros((3, 8, 8), np.float32)
    logits[0] = 1
    logits[2, 0, 7] = 9
    wanted = torch_images.to_scan(torch.from_numpy(logits)[None], (50, 60)).max(1)[1][0].numpy()
    assert np.count_nonzero(wanted == 2) > 10
    np.testing.assert_array_equal(to_labels(logits, (50, 60)), wanted)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("phantom") / "p_0000.nii.gz"
    write_phantom(path, None, (192, 192, 40), (2.0, 2.0, 6.0), axes="RAS", seed=5)
    return path


@pytest.mark.parametrize("model", bundled_models())
def test_masks_of_both_engines_agree(tmp_path: pathlib.Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32: to bfloat16 each of them rounds in places of its own, which moves some voxels of a border."""
    phantom = tmp_path / "p_0000.nii.gz"
    write_phantom(phantom, None, (96, 96, 6), (4.0, 4.0, 40.0), axes="RAS", seed=5)  # small, for `paper`
    for module in ("openvino_engine", "torch_engine"):
        monkeypatch.setattr(f"app.engines.{module}.has_fast_bfloat16", lambda: False)
    masks = [Segmenter.load(model, "cpu", engine=engine).segment(phantom) for engine in ("openvino", "torch")]
    for organ in ORGANS:
        one, other = (mask == organ for mask in masks)
        assert one.any()
        assert dice(one, other) > 0.9995, organ


@pytest.mark.parametrize("batch_size", [2, 3])
def test_batches_change_no_label(phantom: pathlib.Path, tiny_weights: pathlib.Path, batch_size: int) -> None:
    one, other = (
        Segmenter.load(tiny_weights, "cpu", size, engine="openvino", postprocess=False).segment(phantom)
        for size in (None, batch_size)
    )
    assert len(np.unique(one)) > 1
    assert np.mean(one != other) < 1e-4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python's, about forks of a process with threads
def test_a_model_that_was_loaded_before_a_fork_is_refused_and_does_not_hang(tiny_weights: pathlib.Path) -> None:
    """As in a pool of `multiprocessing`, or a data loader's workers."""
    segmenter = Segmenter.load(tiny_weights, device="cpu", engine="openvino")
    volume, affine = np.zeros((64, 64, 3), np.int16), np.diag([-4, -4, 5, 1.0])
    segmenter.run(volume, affine)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends it, should it hang
        try:
            segmenter.run(volume, affine)
        except InferenceError as error:
            os._exit(int("loaded before this process was forked" not in str(error)))
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("load_in", ["parent", "child"])
def test_torch_computes_in_a_fork(tmp_path: pathlib.Path, tiny_weights: pathlib.Path, load_in: str) -> None:
    """With one thread, since a fork has none of OpenMP's, and would wait for them for ever.

    In a process of its own, for the fork must find that its parent had several threads.
    """
    (tmp_path / "script.py").write_text(
        "import os, signal, sys\n"
        "import numpy as np, torch\n"
        "from app import Segmenter\n"
        "torch.set_num_threads(2)\n"
        "def segment(load_anew):\n"
        "    model = Segmenter.load(sys.argv[1], 'cpu', engine='torch') if load_anew else segmenter\n"
        "    return model.run(np.zeros((64, 64, 3), np.int16), np.diag([-4, -4, 5, 1.0])).mask.tobytes()\n"
        "segmenter = Segmenter.load(sys.argv[1], 'cpu', engine='torch')\n"
        "expected = segment(False)\n"
        "if os.fork() == 0:\n"
        "    signal.alarm(60)\n"
        "    os._exit(int(segment(sys.argv[2] == 'child') != expected))\n"
        "print(os.wait()[1])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", tmp_path / "script.py", tiny_weights, load_in],
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | {"PYTHONPATH": str(ROOT)},
    )
    assert (ended.stdout, ended.stderr) == ("0\n", "")


def test_a_slice_for_which_there_is_no_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenvinoEngine(random_model(CONFIG, seed=0)[1], "float32")
    monkeypatch.setattr("app.engines.openvino_engine.available_memory", lambda: 1000)
    with (
        pytest.raises(NoMemoryError, match="cpu: not enough memory for a slice of 512 x 512"),
        engine.session((512, 512)),
    ):
        pass


def test_memory_that_runs_out_in_the_network_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenvinoEngine(random_model(CONFIG, seed=0)[1], "float32")
    box = slice(0, 32), slice(0, 32)
    images = [[np.full((32, 32), i + c, np.float32) / 9 for c in range(3)] for i in range(5)]
    with engine.session((32, 32)) as session:
        expected = list(session.logits(images, box))
    running: set[object] = set()

    class Refuses:
        """A request that fails where more than two are running."""

        def __init__(self) -> None:
            self.real = engine.compiled.create_infer_request()

        def start_async(self, inputs: list[np.ndarray], **options: bool) -> None:
            running.add(self)
            self.fails = len(running) > 2
            self.real.start_async(inputs, **options)

        def wait(self) -> None:
            self.real.wait()
            running.discard(self)
            if self.fails:
                raise RuntimeError("std::bad_alloc")

        def get_output_tensor(self) -> Any:  # noqa: ANN401
            return self.real.get_output_tensor()

    class Compiled:
        create_infer_request = Refuses

    with engine.session((32, 32), 4) as session:
        monkeypatch.setattr(session, "_compiled", Compiled)
        found = list(session.logits(images, box))
        assert session.batch_size == 2
        assert not running
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("capabilities", "is_fast", "precision"),
    [(["FP32", "BF16"], True, "bfloat16"), (["FP32", "BF16"], False, "float32"), (["FP32"], True, "float32")],
)
def test_bfloat16_only_where_the_cpu_is_fast_with_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: list[str], is_fast: bool, precision: str
) -> None:
    class Core:
        def get_property(self, *_: str) -> list[str]:
            return capabilities

    monkeypatch.setattr("app.engines.openvino_engine.has_fast_bfloat16", lambda: is_fast)
    assert best_precision(Core()) == precision


class TestChoice:
    """Of an engine and a device."""

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.installed, self.gpu, self.usable = {"openvino", "torch"}, False, False
        monkeypatch.setattr("app.engines.find_spec", lambda name: name in self.installed or None)
        monkeypatch.setattr("app.engines.has_gpu", lambda: self.gpu)
        monkeypatch.setattr("torch.cuda.is_available", lambda: self.usable)

    def choose(self, *wanted: str) -> tuple[str, str]:
        engine, device = choose_engine(*wanted)
        return engine.__name__, device

    def test_on_a_cpu(self) -> None:
        assert self.choose() == ("OpenvinoEngine", "cpu")
        assert self.choose("auto", "cpu") == ("OpenvinoEngine", "cpu")
        self.installed = {"torch"}
        assert self.choose() == ("TorchEngine", "cpu")

    def test_on_a_gpu(self) -> None:
        self.gpu = self.usable = True
        assert self.choose() == ("TorchEngine", "cuda")
        assert self.choose("auto", "cpu") == ("OpenvinoEngine", "cpu")
        assert self.choose("openvino") == ("OpenvinoEngine", "cpu")

    def test_a_gpu_that_torch_cannot_use(self) -> None:
        self.gpu = True
        assert self.choose() == ("OpenvinoEngine", "cpu")

    def test_a_gpu_without_torch_is_a_hint(self, caplog: pytest.LogCaptureFixture) -> None:
        self.gpu, self.installed = True, {"openvino"}
        with caplog.at_level(logging.WARNING):
            assert self.choose() == ("OpenvinoEngine", "cpu")
        assert "an NVIDIA GPU was found, but PyTorch is not installed; to use it: pip install" in caplog.text

    @pytest.mark.parametrize(
        ("installed", "wanted", "message"),
        [
            ({"openvino"}, ("torch", "auto"), "engine torch: torch is not installed; pip install"),
            ({"torch"}, ("openvino", "auto"), "engine openvino: openvino is not installed; pip install openvino"),
            ({"openvino"}, ("auto", "cuda"), "engine torch: torch is not installed"),
            ({"openvino", "torch"}, ("auto", "cuda"), "device cuda: no usable NVIDIA GPU"),
            ({"openvino", "torch"}, ("openvino", "cuda"), "engine openvino computes on the CPU"),
            (set(), ("auto", "auto"), "engine openvino: openvino is not installed"),
            ({"torch"}, ("auto", "cuda:0"), "device 'cuda:0': no such device; choose from auto, cuda, cpu"),
            ({"numpy"}, ("numpy", "auto"), "engine 'numpy': no such engine; choose from auto, openvino, torch"),
        ],
    )
    def test_what_is_not_there_is_one_line(self, installed: set[str], wanted: tuple[str, str], message: str) -> None:
        self.installed = installed
        with pytest.raises(DeviceError, match=message):
            choose_engine(*wanted)


def test_an_engine_is_imported_when_it_is_asked_for() -> None:
    code = "import sys; from app.engines import engine_class; print('openvino' in sys.modules, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == "False False\n"
    assert engine_class("torch").__name__ == "TorchEngine"


@pytest.mark.parametrize(
    ("files", "expected"), [([], False), (["nvidia0"], True), (["dxg"], True), (["nvidiactl", "nvram"], False)]
)
def test_device_files_tell_of_a_gpu(tmp_path: pathlib.Path, files: list[str], expected: bool) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert has_gpu(tmp_path) == expected


FORBIDDEN = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "openvino_telemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Forbidden())
"""


def test_a_run_needs_no_torch_and_no_telemetry(
    phantom_path: pathlib.Path, tmp_path: pathlib.Path, tiny_weights: pathlib.Path
) -> None:
    code = FORBIDDEN + "from app.__main__ import entry\nentry()\n"
    saved = [word for name in ("nifti", "statistics", "preview", "viewer") for word in ("--save", name)]
    options = ["--device", "cpu", "--weights", str(tiny_weights), *saved]
    command = [sys.executable, "-c", code, str(phantom_path), str(tmp_path), *options]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "phantom.nii.gz").exists()


def test_everything_but_the_torch_engine_imports_without_torch() -> None:
    code = FORBIDDEN + (
        "import importlib, pkgutil, app\n"
        "names = [m.name for m in pkgutil.walk_packages(app.__path__, 'app.', onerror=lambda name: None)]\n"
        "names = [n for n in names if not n.startswith('app.network') and 'torch' not in n and n != 'app.__main__']\n"
        "[importlib.import_module(name) for name in names]\n"
        "print(len(names), 'torch' in sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    count, has_torch = shown.stdout.split()
    assert int(count) > 40
    assert has_torch == "False"


def test_a_slice_that_cannot_fit_into_memory_is_refused_before_the_system_ends_the_process(
    phantom_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tiny_weights: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copy(phantom_path, tmp_path / "a_0000.nii.gz")
    monkeypatch.setattr("app.engines.openvino_engine.available_memory", lambda: 1000)
    arguments = [str(tmp_path), str(tmp_path / "out"), "--device", "cpu", "--weights", str(tiny_weights)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    (record,) = map(json.loads, (tmp_path / "out" / "run_log.jsonl").read_text().splitlines())
    assert record["error"].startswith("cpu: not enough memory for a slice of 64 x 64; free memory")


@pytest.mark.parametrize(
    "refusal", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 18.00 MiB"), MemoryError("12.1 GiB")]
)
@pytest.mark.parametrize(
    "place",
    ["openvino_engine.prepared", "openvino_engine.to_labels", "torch_engine.windowed_slice", "torch_engine.to_scan"],
)
def test_memory_that_runs_out_beside_the_network_is_one_clear_line_and_the_next_case_goes_on(
    place: str,
    refusal: Exception,
    phantom_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_weights: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    for name in "ab":
        shutil.copy(phantom_path, tmp_path / f"{name}_0000.nii.gz")
    module, name = f"app.engines.{place}".rsplit(".", 1)
    real, calls = getattr(importlib.import_module(module), name), itertools.count()

    def full_at_first(*arguments: object) -> object:
        if next(calls) == 0:
            raise refusal
        return real(*arguments)

    monkeypatch.setattr(f"{module}.{name}", full_at_first)
    engine = place.split("_")[0]
    arguments = [str(tmp_path), str(tmp_path / "out"), "--engine", engine, "--weights", str(tiny_weights)]
    assert CliRunner().invoke(main, [*arguments, "--device", "cpu"]).exit_code == 1
    one, two = map(json.loads, (tmp_path / "out" / "run_log.jsonl").read_text().splitlines())
    assert one["error"].startswith("cpu: not enough memory for a slice of 64 x 64; free memory")
    assert two["status"] == "done"


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        ("core.cpp:117:\ncan't protect\n", "OpenVINO cannot compile the network (can't protect); where the system"),
        ("node.cpp:823:\n[CPU] Interpolate node can't alloc\n", "cpu: not enough memory for a slice of 64 x 64"),
    ],
)
def test_a_network_that_cannot_be_compiled_is_one_clear_line(
    phantom_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tiny_weights: pathlib.Path, trouble: str, line: str
) -> None:
    """Memory that can be written and executed may be forbidden; memory may be limited by `ulimit -v`."""

    def fail(*_: object) -> None:
        raise RuntimeError(trouble)

    monkeypatch.setattr("app.engines.openvino_engine.compile_network", fail)
    segmenter = Segmenter.load(tiny_weights, "cpu", engine="openvino")
    with pytest.raises(InferenceError, match=re.escape(line)):
        segmenter.run(phantom_path)
