"""Neighbours in any order, and the way to the network's grid and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.intensity import network_input, window
from app.slices import neighbour_step, network_grid, to_grid, to_scan, with_neighbours


@given(st.integers(1, 12), st.integers(0, 5), st.booleans())
def test_neighbours_are_those_of_z_in_either_order(depth: int, step: int, descending: bool) -> None:
    order = list(range(depth))[:: -1 if descending else 1]
    most_held = 0
    pulled: list[int] = []

    def source() -> object:
        for z in order:
            pulled.append(z)
            yield z, z

    seen = []
    for z, rows in with_neighbours(source(), step, depth):  # type: ignore[arg-type]
        seen.append(z)
        most_held = max(most_held, len(pulled) - len(seen))
        assert rows == (max(z - step, 0), z, min(z + step, depth - 1))
    assert seen == order
    assert most_held <= step  # it never runs further ahead than it must


@pytest.mark.parametrize(
    ("spacing_mm", "neighbour_mm", "step"), [(3, 3.0, 1), (5, 3.0, 1), (0.7, 3.0, 4), (1, None, 0)]
)
def test_neighbours_are_chosen_by_millimetres(spacing_mm: float, neighbour_mm: float | None, step: int) -> None:
    assert neighbour_step(spacing_mm, neighbour_mm) == step


@pytest.mark.parametrize(
    ("shape", "spacing", "target", "grid"),
    [
        ((512, 512), (0.8, 0.8), None, (512, 512)),
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
