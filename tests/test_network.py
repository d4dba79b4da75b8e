"""The architecture to the digit: parameters, flops by the paper's rule, pinned arithmetic, folding."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch
from torch import nn

from app.network import HrnetOcr, fold_batch_norm
from app.network.ocr import ObjectAttention, gather_object_regions
from tests.tiny import randomise

PAPER_PARAMETERS = 70_354_170
PAPER_FLOPS = 162_178_878_720
GOLDEN = pathlib.Path(__file__).parent / "golden_logits.json"


def test_width_48_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        network = HrnetOcr(width=48)
    assert sum(p.numel() for p in network.parameters()) == PAPER_PARAMETERS


def test_width_48_has_the_papers_flops_at_512() -> None:
    """The paper's rule: convolution multiply-adds + biases + 2 x batch-norm outputs + ReLU outputs."""
    with torch.device("meta"):
        network = HrnetOcr(width=48)
    counted = {"multiply_adds": 0, "bias": 0, "norm": 0, "relu": 0}

    def count(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            counted["multiply_adds"] += output.numel() * module.weight[0].numel()
            counted["bias"] += output.numel() if module.bias is not None else 0
        elif isinstance(module, nn.BatchNorm2d):
            counted["norm"] += 2 * output.numel()
        elif isinstance(module, nn.ReLU):
            counted["relu"] += output.numel()

    for module in network.modules():
        module.register_forward_hook(count)
    network.eval()(torch.empty(1, 3, 512, 512, device="meta"))
    assert counted["multiply_adds"] == 161_634_385_920
    assert sum(counted.values()) == PAPER_FLOPS


def test_only_the_two_last_convolutions_have_a_bias_and_nothing_drops_out() -> None:
    with torch.device("meta"):
        network = HrnetOcr(width=18)
    biased = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    assert biased == ["fcn_head.classify", "ocr_head.classify"]
    assert not any(isinstance(m, nn.Dropout | nn.Dropout2d) for m in network.modules())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 70), (96, 32)])
def test_logits_are_at_a_quarter_of_the_resolution(height: int, width: int) -> None:
    network = HrnetOcr(width=2, ocr_channels=8, key_channels=4).eval()
    with torch.inference_mode():
        logits = network(torch.zeros(1, 3, height, width))
    quarter = (1, 5, -(-height // 4), -(-width // 4))
    assert tuple(logits.refined.shape) == quarter
    assert tuple(logits.coarse.shape) == quarter


def golden_case() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a small network with fixed weights on a fixed image whose sides are no multiple of 32."""
    network = randomise(HrnetOcr(width=4, ocr_channels=16, key_channels=8), seed=1)
    with torch.no_grad():  # sharp attention, so that its scale matters
        for part in (network.ocr_head.attention.query, network.ocr_head.attention.key):
            part.get_parameter("1.norm.weight").mul_(10)
    image = torch.rand(1, 3, 72, 104, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        logits = network(image)
    return logits.refined, logits.coarse


def test_golden_logits() -> None:
    """Pins what no parameter shows: bilinear resizing, align_corners False, order of concatenation, attention scale."""
    golden = json.loads(GOLDEN.read_text())
    for name, logits in zip(("refined", "coarse"), golden_case(), strict=True):
        expected = torch.tensor(golden[name])
        torch.testing.assert_close(logits[0, :, ::5, ::5], expected, rtol=1e-4, atol=2e-5)


def test_folding_batch_norm_is_exact() -> None:
    network = randomise(HrnetOcr(width=4, ocr_channels=16, key_channels=8), seed=3)
    image = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        before = network(image)
        after = fold_batch_norm(network)(image)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    torch.testing.assert_close(after.refined, before.refined, rtol=0, atol=1e-4)
    torch.testing.assert_close(after.coarse, before.coarse, rtol=0, atol=1e-4)


def test_object_regions_survive_half_precision() -> None:
    """On 10^6 pixels of equal logits, fp16 would round each weight of 1e-6 to a multiple of 6e-8, 1.3 % off."""
    features = torch.ones(1, 2, 1000, 1000, dtype=torch.float16)
    regions = gather_object_regions(features, torch.zeros(1, 3, 1000, 1000, dtype=torch.float16))
    assert regions.dtype == torch.float16
    torch.testing.assert_close(regions.float(), torch.ones(1, 3, 2), rtol=0, atol=1e-3)


def test_object_attention_is_scaled_dot_product_attention_over_the_regions() -> None:
    torch.manual_seed(0)
    attention = ObjectAttention(channels=6, key_channels=4).eval()
    for module in attention.modules():
        if isinstance(module, nn.Conv2d):
            nn.Conv2d.reset_parameters(module)  # torch's own weights are small enough
    pixels, regions = 10 * torch.randn(1, 6, 2, 3), 10 * torch.randn(1, 5, 6)
    with torch.inference_mode():
        found = attention(pixels, regions)
        for y, x in ((0, 0), (1, 2)):
            query = attention.query(pixels)[0, :, y, x]
            keys, values = (part(regions.mT[..., None])[0, :, :, 0] for part in (attention.key, attention.value))
            weights = (query @ keys / 4**0.5).softmax(0)
            assert 0.3 < weights.max() < 0.999  # neither even nor saturated, or the scale would not show
            expected = attention.out((values @ weights)[None, :, None, None])[0, :, 0, 0]
            torch.testing.assert_close(found[0, :, y, x], expected)


def test_starts_by_he_initialisation() -> None:
    torch.manual_seed(0)
    conv = HrnetOcr(width=18).get_submodule("backbone.stage1.1.conv.conv")
    assert isinstance(conv, nn.Conv2d)
    expected = (2 / (conv.out_channels * 9)) ** 0.5  # He et al. 2015, fan-out
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.03)


def test_draws_no_weights_that_come_from_a_file() -> None:
    state = torch.get_rng_state()
    HrnetOcr(width=2, ocr_channels=8, key_channels=4, initialise=False)
    assert torch.equal(torch.get_rng_state(), state)


if __name__ == "__main__":  # rewrites the golden file: python -m tests.test_network
    refined, coarse = golden_case()
    GOLDEN.write_text(
        json.dumps({n: t[0, :, ::5, ::5].tolist() for n, t in (("refined", refined), ("coarse", coarse))}) + "\n"
    )
