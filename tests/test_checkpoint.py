"""Weights on disk: round trip, both formats, strictness, and the import of mmsegmentation's names."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from app.architecture import tensor_shapes
from app.checkpoint import FORMAT, LABELS_1, ModelConfig, find_model, folded, load_checkpoint, save_checkpoint
from app.errors import CheckpointError
from app.network import HrnetOcr, build, fold_batch_norm, load, tensors_of
from app.organs import Organ
from tests.conftest import ROOT
from tests.tiny import CONFIG, largest_rounding, randomise
from training.__main__ import main
from training.mmsegmentation import from_mmsegmentation

MMSEGMENTATION = pathlib.Path(__file__).parent / "mmseg_ocrnet_hr48_state_dict.txt"


@pytest.fixture
def tensors() -> dict[str, NDArray[np.float32]]:
    return tensors_of(randomise(build(CONFIG), seed=0).state_dict())


@pytest.fixture
def model(tmp_path: pathlib.Path, tensors: dict[str, NDArray[np.float32]]) -> pathlib.Path:
    return save_checkpoint(CONFIG, tensors, tmp_path)


def rewrite(
    path: pathlib.Path, config: dict[str, Any], drop: str = "", tensors: Mapping[str, NDArray[Any]] | None = None
) -> pathlib.Path:
    """Change fields of a file's configuration and tensors in it; leaves the manifest out."""
    with safe_open(path, framework="numpy") as file:
        fields = json.loads(file.metadata()["config"]) | config
        stored = {name: file.get_tensor(name) for name in file.keys() if name != drop}  # noqa: SIM118
    save_file(stored | dict(tensors or {}), path, {"format": FORMAT, "config": json.dumps(fields)})
    (path.parent / "SHA256SUMS").unlink(missing_ok=True)
    return path


@pytest.mark.parametrize("width", [2, 18, 32, 48])
@pytest.mark.parametrize("channels_in", [3, 7])
def test_shapes_are_those_of_the_network(width: int, channels_in: int) -> None:
    for classes, ocr_channels, key_channels in ((5, 512, 256), (3, 16, 8)):
        dimensions = width, classes, channels_in, ocr_channels, key_channels
        with torch.device("meta"):
            state = HrnetOcr(*dimensions).state_dict()
        expected = {n: tuple(t.shape) for n, t in state.items() if not n.endswith("num_batches_tracked")}
        assert tensor_shapes(*dimensions) == expected


def test_round_trip_keeps_configuration_and_weights(
    model: pathlib.Path, tensors: dict[str, NDArray[np.float32]]
) -> None:
    loaded = load_checkpoint(find_model("tiny", model.parent))
    assert loaded.config == CONFIG
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded.tensors[name].dtype == np.float32
        if tensor.ndim == 4:  # half a step of each output channel's own scale
            for found, channel in zip(loaded.tensors[name], tensor, strict=True):
                np.testing.assert_allclose(found, channel, rtol=0, atol=np.abs(channel).max() / 127 / 2 * 1.001)
        else:
            np.testing.assert_array_equal(loaded.tensors[name], tensor)
    again = load_checkpoint(save_checkpoint(CONFIG, loaded.tensors, model.parent))
    for name, tensor in loaded.tensors.items():  # rounded weights are kept
        np.testing.assert_allclose(again.tensors[name], tensor, rtol=1e-6, atol=0)


def test_a_dead_channel_stays_dead(tmp_path: pathlib.Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    tensors["ocr_head.pixels.conv.weight"][3] = 0
    loaded = load_checkpoint(save_checkpoint(CONFIG, tensors, tmp_path))
    assert not loaded.tensors["ocr_head.pixels.conv.weight"][3].any()


def test_the_order_of_weights_in_memory_does_not_matter(
    model: pathlib.Path, tmp_path: pathlib.Path, tensors: dict[str, NDArray[np.float32]]
) -> None:
    """Those of a network that was trained with channels last, or transposed, lie in another order."""
    strided = {name: np.asfortranarray(tensor) for name, tensor in tensors.items()}
    again = load_checkpoint(save_checkpoint(CONFIG, strided, tmp_path / "strided")).tensors
    for name, tensor in load_checkpoint(model).tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_convolutions_take_one_byte_per_weight(model: pathlib.Path) -> None:
    with safe_open(model, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118
            expected = np.int8 if file.get_tensor(name).ndim == 4 else np.float32
            assert file.get_tensor(name).dtype == expected, name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_written(
    tmp_path: pathlib.Path, tensors: dict[str, NDArray[np.float32]], value: float
) -> None:
    tensors["backbone.stage1.1.conv.conv.weight"][0, 0, 1, 1] = value
    with pytest.raises(CheckpointError, match=r"tiny: tensor backbone\.stage1\.1\.conv\.conv\.weight holds values"):
        save_checkpoint(CONFIG, tensors, tmp_path)
    assert not list(tmp_path.iterdir())


def old_format(folder: pathlib.Path, tensors: dict[str, NDArray[np.float32]], count: int) -> list[pathlib.Path]:
    """A model as versions up to 0.6 wrote it: fp16 convolutions, no names of labels, in `count` shards."""
    fields = asdict(CONFIG) | {"classes": 5}
    del fields["labels"]
    half = [(name, t.astype(np.float16) if t.ndim == 4 else t) for name, t in tensors.items()]
    paths = [folder / f"old-{i + 1}-of-{count}.safetensors" for i in range(count)]
    for i, path in enumerate(paths):
        part = dict(half[i * len(half) // count : (i + 1) * len(half) // count])
        save_file(part, path, {"format": "hrnet-ocr/1", "config": json.dumps(fields)})
    return paths


def test_format_1_is_read(tmp_path: pathlib.Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    (path,) = old_format(tmp_path, tensors, 1)
    loaded = load_checkpoint(path)
    assert loaded.config == CONFIG
    assert loaded.config.labels == LABELS_1
    for name, tensor in tensors.items():
        np.testing.assert_allclose(loaded.tensors[name], tensor, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("count", [1, 3])
def test_old_weights_are_converted(tmp_path: pathlib.Path, tensors: dict[str, NDArray[np.float32]], count: int) -> None:
    paths = old_format(tmp_path, tensors, count)
    result = CliRunner().invoke(main, ["convert", *map(str, paths), "--to", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    loaded = load_checkpoint(find_model("tiny", tmp_path / "new"))
    assert loaded.config == CONFIG
    for name, tensor in tensors.items():
        atol = largest_rounding(tensor) + 1e-3 * np.abs(tensor).max()
        np.testing.assert_allclose(loaded.tensors[name], tensor, rtol=0, atol=atol)


def test_a_shard_alone_is_not_a_model(tmp_path: pathlib.Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    result = CliRunner().invoke(
        main, ["convert", str(old_format(tmp_path, tensors, 2)[1]), "--to", str(tmp_path / "new")]
    )
    assert result.exit_code == 1
    assert "is missing, the configuration wants" in result.output
    assert not (tmp_path / "new").exists()


def test_names_the_models_there_are(model: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights for model 'huge' \(available: tiny\)"):
        find_model("huge", model.parent)


def test_an_altered_file_is_refused(model: pathlib.Path) -> None:
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tiny.safetensors: sha256 .* is not the one in SHA256SUMS"):
        load_checkpoint(model)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100], ids=["empty", "text", "binary"])
def test_a_foreign_file_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x.safetensors: not a readable safetensors file"):
        load_checkpoint(path)


def test_a_truncated_file_is_refused(model: pathlib.Path) -> None:
    (model.parent / "SHA256SUMS").unlink()
    model.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(model)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "hrnet-ocr/3", "config": "{}"}])
def test_another_programs_safetensors_is_refused(tmp_path: pathlib.Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, path, metadata)
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 4}, r"tensor backbone.* is \(.*\), the configuration wants \("),
        ({"labels": LABELS_1[:4]}, r"tensor fcn_head.classify.bias is \(5,\), the configuration wants \(4,\)"),
        ({"labels": (*LABELS_1[:4], "gallbladder")}, r"label 'gallbladder' is unknown, .*pancreas; update the program"),
        ({"labels": (*LABELS_1[:4], "")}, "label '' is unknown"),
        ({"labels": (*LABELS_1[:4], "Pancreas")}, "label 'Pancreas' is unknown"),
        ({"labels": (*LABELS_1[:4], "liver")}, r"expected background first, and each once"),
        ({"labels": LABELS_1[::-1]}, r"expected background first, and each once"),
        ({"labels": ()}, r"labels none: expected background first"),
        ({"labels": "liver"}, r"its configuration cannot be read \(labels: expected a list of names\)"),
        ({"labels": None}, "its configuration cannot be read"),
        ({"width": -2}, "its configuration cannot be read .*positive integers"),
        ({"key_channels": "4"}, "its configuration cannot be read .*positive integers"),
        ({"colour": "red"}, "its configuration cannot be read .*colour"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    model: pathlib.Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"tiny.safetensors: .*{message}"):
        load_checkpoint(rewrite(model, fields))


def test_a_missing_and_a_surplus_tensor_are_refused(model: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"tensor surplus is \(1,\), the configuration wants none of that name"):
        load_checkpoint(rewrite(model, {}, tensors={"surplus": np.zeros(1, np.float32)}))
    rewrite(model, {}, drop="surplus")
    with pytest.raises(CheckpointError, match=r"tensor ocr_head\.classify\.bias is missing"):
        load_checkpoint(rewrite(model, {}, drop="ocr_head.classify.bias"))


def test_weights_in_8_bits_without_their_scales_are_refused(model: pathlib.Path) -> None:
    name = "backbone.stem.1.conv.weight"
    with pytest.raises(CheckpointError, match=r"stem\.1\.conv\.weight is int8 with scales \(3,\), expected .* \(64,\)"):
        load_checkpoint(rewrite(model, {}, tensors={f"{name}_scale": np.ones(3, np.float32)}))
    with pytest.raises(CheckpointError, match=rf"{name} is int8 with no scales, expected {name}_scale \(64,\)"):
        load_checkpoint(rewrite(model, {}, drop=f"{name}_scale"))
    with pytest.raises(CheckpointError, match=rf"tensor {name} is missing"):
        load_checkpoint(rewrite(model, {}, drop=name, tensors={f"{name}_scale": np.ones(64, np.float32)}))


def test_labels_are_values_of_a_mask() -> None:
    assert CONFIG.organs == tuple(Organ)
    assert replace(CONFIG, labels=("background", "pancreas", "liver")).organs == (0, Organ.PANCREAS, Organ.LIVER)


@pytest.mark.parametrize("labels", [("background", "spleen"), ("background", "pancreas", "liver")])
def test_other_labels_are_kept(tmp_path: pathlib.Path, labels: tuple[str, ...]) -> None:
    config: ModelConfig = replace(CONFIG, labels=labels)
    loaded = load_checkpoint(save_checkpoint(config, tensors_of(build(config).state_dict()), tmp_path))
    assert loaded.config == config
    assert load(loaded)(torch.rand(1, 3, 32, 32)).refined.shape[1] == len(labels)


def test_folding_is_exact(tensors: dict[str, NDArray[np.float32]]) -> None:
    """The folded convolutions in torch give what batch norm gave after the plain ones."""
    before = {name: tensor.copy() for name, tensor in tensors.items()}
    result = folded(tensors)
    assert not any(".norm." in name for name in result)
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensors[name], tensor)  # the originals are left alone
    network = randomise(build(CONFIG), seed=0)
    image = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        expected = network(image).refined
        found = fold_batch_norm(network)(image).refined
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(result[name], tensor.numpy())


def test_reading_weights_imports_no_torch(model: pathlib.Path) -> None:
    code = (
        "import pathlib, sys; from app.checkpoint import folded, load_checkpoint\n"
        "folded(load_checkpoint(pathlib.Path(sys.argv[1])).tensors); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(model)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"


def synthetic_mmsegmentation() -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of the public `ocrnet_hr48` checkpoints."""
    state = {}
    for line in MMSEGMENTATION.read_text().splitlines():
        name, *shape = line.split()
        state[name] = torch.rand([int(n) for n in shape])
    return state


def test_mmsegmentation_names_map_one_to_one() -> None:
    theirs = synthetic_mmsegmentation()
    ours = from_mmsegmentation({"meta": {}, "state_dict": theirs})
    with torch.device("meta"):
        network = HrnetOcr(width=48)
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.items()} == wanted
    assert len(ours) == len(theirs)


def test_mmsegmentation_names_keep_their_meaning() -> None:
    """Shapes alone would not notice two swapped layers of one size."""
    ours = from_mmsegmentation(theirs := synthetic_mmsegmentation())
    for name, other in {
        "backbone.stem.1.conv.weight": "backbone.conv2.weight",
        "backbone.stage1.2.reduce.norm.running_var": "backbone.layer1.2.bn1.running_var",
        "backbone.stage1.0.shortcut.conv.weight": "backbone.layer1.0.downsample.0.weight",
        "backbone.stage2.open.norm.bias": "backbone.transition1.1.0.1.bias",
        "backbone.stage4.open.conv.weight": "backbone.transition3.3.0.0.weight",
        "backbone.stage4.fusion_modules.2.fuse.3.paths.0.1.conv.weight": "backbone.stage4.2.fuse_layers.3.0.1.0.weight",
        "backbone.stage3.fusion_modules.1.fuse.0.paths.2.norm.weight": "backbone.stage3.1.fuse_layers.0.2.1.weight",
        "ocr_head.pixels.conv.weight": "decode_head.1.bottleneck.conv.weight",
        "ocr_head.combine.conv.weight": "decode_head.1.object_context_block.bottleneck.conv.weight",
        "ocr_head.attention.key.1.conv.weight": "decode_head.1.object_context_block.key_project.1.conv.weight",
        "ocr_head.attention.query.1.conv.weight": "decode_head.1.object_context_block.query_project.1.conv.weight",
        "ocr_head.attention.value.conv.weight": "decode_head.1.object_context_block.value_project.conv.weight",
        "fcn_head.classify.bias": "decode_head.0.conv_seg.bias",
    }.items():
        assert ours[name] is theirs[other], name


def test_a_foreign_state_dict_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"tensor 'layer4\.0\.conv1\.weight' is not part of"):
        from_mmsegmentation({"layer4.0.conv1.weight": torch.zeros(1)})
