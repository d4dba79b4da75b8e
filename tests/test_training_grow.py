"""Growing a network: the wider one computes the same, and its new channels can learn."""

from __future__ import annotations

import pathlib
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from app.checkpoint import ModelConfig
from app.network import build
from tests.tiny import CONFIG, TINY, randomise
from training.__main__ import main
from training.cache import CachedCase
from training.engine import Run
from training.grow import fit_input_channels, grown_weights
from training.recipes.fast import RECIPE as FAST
from training.sampling import SliceSampler
from training.state import RunState
from training.weights import LAST, TrainingError

SMALL = replace(CONFIG, width=3, ocr_channels=8, key_channels=4, channels_in=7)
WIDER = {
    "backbone": replace(SMALL, width=8),
    "OCR head": replace(SMALL, ocr_channels=12),
    "attention": replace(SMALL, key_channels=9),
    "fewer input slices": replace(SMALL, channels_in=3),
    "more input slices": replace(SMALL, channels_in=9),
    "everything": replace(SMALL, width=7, ocr_channels=16, key_channels=8, channels_in=3),
}


@pytest.mark.parametrize("target", WIDER.values(), ids=WIDER.keys())
def test_the_wider_network_computes_the_same(target: ModelConfig) -> None:
    small, large = randomise(build(SMALL), seed=0), build(target).eval()
    large.load_state_dict(grown_weights(small.state_dict(), SMALL, large, target))
    one_slice = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = small(one_slice.expand(-1, SMALL.channels_in, -1, -1))
        after = large(one_slice.expand(-1, target.channels_in, -1, -1))
    for old, new in zip(before, after, strict=True):
        assert (old - new).abs().max() < 1e-5 * old.abs().max()


def test_dropped_slices_leave_their_weights_to_the_nearest_kept_one() -> None:
    stem = torch.arange(7.0)[None, :, None, None]
    assert fit_input_channels(stem, 3).flatten().tolist() == [0 + 1 + 2, 3, 4 + 5 + 6]
    assert fit_input_channels(stem, 9).flatten().tolist() == [0, *range(7), 0]
    assert torch.equal(fit_input_channels(stem, 7), stem)


def test_every_new_channel_gets_a_gradient() -> None:
    """In training mode; of convolutions, all but those behind the silent query channels."""
    torch.manual_seed(0)
    target = WIDER["everything"]
    small, large = randomise(build(SMALL), seed=0), build(target)
    large.load_state_dict(grown_weights(small.state_dict(), SMALL, large, target))
    logits = large.train()(torch.rand(4, 3, 64, 96))
    (logits.refined.square().mean() + logits.coarse.square().mean()).backward()
    names = ("ocr_head.attention.query.1.norm.weight", "ocr_head.classify.weight")
    query, reads = (large.get_parameter(name).grad for name in names)
    assert query is not None
    assert reads is not None
    assert (query[SMALL.key_channels :] != 0).all()
    reads_new = reads[:, SMALL.ocr_channels :]
    assert (reads_new != 0).any(dim=0).sum() > len(reads_new[0]) / 2


def test_a_network_cannot_shrink() -> None:
    target = replace(SMALL, width=2)
    with pytest.raises(ValueError, match="width cannot shrink from 3 to 2"):
        grown_weights(build(SMALL).state_dict(), SMALL, build(target), target)


def test_grow_begins_a_run_that_train_goes_on_with(tmp_path: pathlib.Path, cases: list[CachedCase]) -> None:
    recipe = tmp_path / "own.py"
    recipe.write_text(
        "from dataclasses import replace\n"
        "from training.recipes.fast import RECIPE as FAST\n"
        "RECIPE = replace(FAST, model=replace(FAST.model, width=20, channels_in=3))\n"
    )
    arguments = ["grow", "fast", "--recipe", str(recipe), "--to", str(tmp_path / "run")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    crops = replace(FAST.crops, batch=2, size=(64, 64))
    wide = replace(FAST, model=replace(FAST.model, width=20, channels_in=3), crops=crops)
    grown = RunState(tmp_path / "run", wide, torch.device("cpu"))
    grown.resume()
    assert grown.progress.step == 0
    stem = "backbone.stem.0.conv.weight"
    assert torch.equal(grown.network.state_dict()[stem], grown.average.module.state_dict()[stem])
    batch = SliceSampler(cases, [1.0, 1.0], wide, seed=0).batch()
    random = RunState(tmp_path / "random", wide, torch.device("cpu"))
    assert Run(grown).step(batch) < 0.7 * Run(random).step(batch)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert f"{LAST}: there is a run already; choose another folder" in result.output
    with pytest.raises(TrainingError, match="fast cannot grow into the recipe's network: width cannot shrink"):
        RunState(tmp_path / "other", TINY, torch.device("cpu")).grow_from("fast")
