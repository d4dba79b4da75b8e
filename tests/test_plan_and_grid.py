"""Neighbours in any order, and the way to the network's grid and back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engines.torch_images import network_input, to_grid, to_scan, window
from app.inference.grid import network_grid
from app.inference.plan import ANCHOR_MM, SCOUT_MM, Plan, neighbour_step, with_neighbours


@given(st.integers(1, 12), st.integers(0, 5), st.sampled_from([1, 3, 5, 7]), st.booleans())
def test_neighbours_are_those_of_z_in_either_order(depth: int, step: int, channels: int, descending: bool) -> None:
    order = list(range(depth))[:: -1 if descending else 1]
    most_held = 0
    pulled: list[int] = []

    def source() -> Iterator[tuple[int, int]]:
        for z in order:
            pulled.append(z)
            yield z, z

    seen: list[int] = []
    reach = channels // 2
    for z, rows in with_neighbours(source(), step, channels, depth):
        seen.append(z)
        most_held = max(most_held, len(pulled) - len(seen))
        assert rows == tuple(np.clip(z + step * np.arange(-reach, reach + 1), 0, depth - 1))
    assert seen == order
    assert most_held <= reach * step  # it never runs further ahead than it must


@pytest.mark.parametrize(
    ("spacing_mm", "neighbour_mm", "step"),
    [(3, 3.0, 1), (5, 3.0, 1), (0.7, 3.0, 4), (1, None, 0), (6.0001, 3.0, 1), (6.1, 3.0, 0), (30, 5.0, 0)],
)
def test_neighbours_are_chosen_by_millimetres(spacing_mm: float, neighbour_mm: float | None, step: int) -> None:
    assert neighbour_step(spacing_mm, neighbour_mm) == step


@pytest.mark.parametrize(
    ("shape", "spacing", "target", "grid"),
    [
        ((512, 512), (0.8, 0.8), None, (512, 512)),
        ((512, 416), (1.5, 0.6), None, (768, 416)),
        ((512, 512), (0.75, 0.75), 1.5, (256, 256)),
        ((333, 101), (1.0, 3.0), 1.5, (224, 192)),
        ((500, 30), (0.8, 0.8), None, (512, 32)),
        ((8, 8), (0.1, 0.1), 1.5, (32, 32)),
    ],
)
def test_grid(
    shape: tuple[int, int], spacing: tuple[float, float], target: float | None, grid: tuple[int, int]
) -> None:
    assert network_grid(shape, spacing, target) == grid


@given(st.integers(64, 200), st.integers(64, 200))
def test_there_and_back_lands_on_the_same_place(height: int, width: int) -> None:
    """A linear ramp survives both ways but for the border: no shift by half a pixel."""
    rows = torch.arange(height, dtype=torch.float32)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float32)[None].expand(height, width)
    ramps = torch.stack([rows, columns])[None]
    there = to_grid(ramps, network_grid((height, width), (1.0, 1.0), 1.5))
    back = to_scan(there, (height, width))
    inner = (..., slice(5, -5), slice(5, -5))
    torch.testing.assert_close(back[inner], ramps[inner], rtol=0, atol=0.3)


def test_a_slice_on_its_grid_is_not_touched() -> None:
    slices = torch.rand(1, 1, 64, 64)
    assert to_grid(slices, (64, 64)) is slices


def test_window_to_the_papers_range() -> None:
    hounsfield = torch.tensor([-3024.0, -125.0, 75.0, 275.0, 3071.0])
    windowed = window(hounsfield, -125.0, 275.0)
    torch.testing.assert_close(windowed, torch.tensor([0.0, 0.0, 127.5, 255.0, 255.0]))
    torch.testing.assert_close(network_input(windowed), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    assert hounsfield[0] == -3024.0  # the input is not changed


@given(st.integers(1, 200), st.floats(0.2, 20.0))
def test_the_plan_covers_every_slice_once(depth: int, spacing_z_mm: float) -> None:
    plan = Plan.of(depth, spacing_z_mm)
    scouts = [z for z in range(depth) if plan.is_scout(z)]
    anchors = [z for z in range(depth) if plan.is_anchor(z)]
    assert {0, depth - 1} <= set(scouts) <= set(anchors)
    covered = [z for low, high in plan.gaps() for z in range(low + 1, high)]
    assert sorted(scouts + covered) == list(range(depth))
    assert all((b - a) * spacing_z_mm <= max(ANCHOR_MM, spacing_z_mm) * 1.01 for a, b in pairwise(anchors))
    assert all((b - a) * spacing_z_mm <= max(SCOUT_MM, spacing_z_mm) * 1.01 for a, b in pairwise(scouts))
    for low, high in plan.gaps():  # a gap lies in one chunk, with the scout above it
        assert {plan.chunk(z) for z in range(low + 1, high + 1)} == {plan.chunk(high)}
    chunks = [plan.chunk(z) for z in range(depth)]
    assert chunks == sorted(chunks)


@pytest.mark.parametrize(
    ("spacing_z_mm", "anchor_step", "scout_step"),
    [(5, 1, 2), (3, 1, 4), (2.5, 1, 4), (2, 1, 6), (1.5, 2, 8), (1, 3, 12), (8, 1, 1)],
)
def test_the_plan_by_hand(spacing_z_mm: float, anchor_step: int, scout_step: int) -> None:
    assert Plan.of(100, spacing_z_mm) == Plan(100, anchor_step, scout_step)
