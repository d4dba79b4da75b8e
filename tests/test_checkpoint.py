"""Weights on disk: round trip, shards, strictness, and the import of mmsegmentation's names."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from app import checkpoint
from app.checkpoint import ModelConfig, find_model, load_checkpoint
from app.errors import CheckpointError
from app.network import HrnetOcr
from tests.tiny import CONFIG, randomise
from training.mmsegmentation import from_mmsegmentation

MMSEGMENTATION = pathlib.Path(__file__).parent / "mmseg_ocrnet_hr48_state_dict.txt"


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    return checkpoint.save_checkpoint(CONFIG, randomise(CONFIG.build(), seed=0).state_dict(), tmp_path)[0]


def test_round_trip_keeps_configuration_and_weights(model: pathlib.Path) -> None:
    original = randomise(CONFIG.build(), seed=0)
    loaded = load_checkpoint(find_model("tiny", model.parent))
    assert loaded.config == CONFIG
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():  # convolutions are stored as fp16
        torch.testing.assert_close(loaded.network(image).refined, original(image).refined, rtol=2e-2, atol=2e-2)


def test_shards_are_read_as_one_model(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 100_000)
    state = CONFIG.build().state_dict()
    paths = checkpoint.save_checkpoint(CONFIG, state, tmp_path)
    assert len(paths) > 1
    loaded = load_checkpoint(find_model("tiny", tmp_path))
    found = loaded.network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.allclose(found[name].float(), state[name].float(), rtol=1e-3, atol=1e-6) for name in state)
    assert len(loaded.sha256) == len(paths)
    paths[0].unlink()
    with pytest.raises(CheckpointError, match=r"\d+ of \d+ shards of model 'tiny'; copy the folder again"):
        find_model("tiny", tmp_path)


def test_names_the_models_there_are(model: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights for model 'huge' \(there are: tiny\)"):
        find_model("huge", model.parent)


def test_an_altered_file_is_refused(model: pathlib.Path) -> None:
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tiny.safetensors: sha256 .* is not the one in SHA256SUMS"):
        load_checkpoint([model])


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100], ids=["empty", "text", "binary"])
def test_a_foreign_file_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x.safetensors: not a readable safetensors file"):
        load_checkpoint([path])


def test_a_truncated_file_is_refused(model: pathlib.Path) -> None:
    (model.parent / "SHA256SUMS").unlink()
    model.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint([model])


def test_another_programs_safetensors_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        load_checkpoint([path])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(CONFIG, width=4), r"tensor backbone.* is \(.*\), the configuration wants \("),
        (replace(CONFIG, classes=6), r"tensor fcn_head.classify.bias is \(5,\), the configuration wants \(6,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: pathlib.Path, config: ModelConfig, message: str) -> None:
    paths = checkpoint.save_checkpoint(config, CONFIG.build().state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(paths)


def test_a_missing_and_a_surplus_tensor_are_refused(tmp_path: pathlib.Path) -> None:
    state = CONFIG.build().state_dict()
    state["surplus"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="wants none of that name"):
        load_checkpoint(checkpoint.save_checkpoint(CONFIG, state, tmp_path))
    del state["surplus"], state["ocr_head.classify.bias"]
    with pytest.raises(CheckpointError, match=r"tensor ocr_head\.classify\.bias is missing"):
        load_checkpoint(checkpoint.save_checkpoint(CONFIG, state, tmp_path))


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
