"""Peak memory by the organisers' rule, from numbers instead of a GPU."""

from __future__ import annotations

import itertools
import time

import pytest

from app.gpu_memory import MemorySampler, nvml_reader, peak_flare2021


@pytest.mark.parametrize(
    ("samples", "peak"),
    [
        ([], None),
        ([500], 500),
        ([300] * 50 + [900] * 2 + [2000], 900),  # 2000 is 1.9 % of the samples
        ([300] * 97 + [900] * 3, 900),
        ([300] * 98 + [900] * 2, 300),  # exactly 2 % is not more than 2 %
        (list(range(100)), 99),  # every value rare: the plain maximum
    ],
)
def test_peak_flare2021(samples: list[int], peak: int | None) -> None:
    assert peak_flare2021(samples) == peak


def test_the_sampler_reads_until_it_is_left() -> None:
    numbers = itertools.count()
    with MemorySampler(lambda: next(numbers), interval_s=0.001) as sampler:
        time.sleep(0.05)
    taken = len(sampler.samples_mib)
    assert sampler.samples_mib == list(range(taken))
    assert taken >= 2
    time.sleep(0.01)
    assert len(sampler.samples_mib) == taken


def test_no_gpu_gives_no_samples() -> None:
    with nvml_reader(None) as read, MemorySampler(read) as sampler:
        pass
    assert read is None
    assert sampler.samples_mib == []


@pytest.mark.parametrize("card", ["00000000-0000-0000-0000-000000000000", 999])
def test_a_card_that_is_not_there_has_no_reader(card: str | int) -> None:
    with nvml_reader(card) as read:
        assert read is None
