"""Arithmetic on rows: what spares a look at whole images says the same as looking."""

import pytest
import torch

import attackcheck.attacks._turning as turning
from attackcheck import synchrony
from attackcheck.attacks import PixelFlip
from attackcheck.attacks._newton import outlook
from attackcheck.attacks._refine import Track
from attackcheck.attacks._rows import (
    Noise,
    along,
    dot,
    downhill,
    falling,
    lengths,
    polar,
    replaced,
    rescaled,
    select,
    travelled,
)
from attackcheck.models.exact import orthonormal_rows


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_of_any_size_are_those_of_the_points(dtype, box):
    images = torch.rand(9, 3, 16, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    way, vectors = polar(normal(9, 3, 16, 24, dtype=dtype))[0], normal(9, 3, 16, 24, seed=2, dtype=dtype)
    distance = torch.logspace(-9, 0, 9, dtype=dtype)
    points = along(images, distance, way, box)
    norm, inner = travelled(images, points, distance, vectors, dot(vectors, way), box)
    delta = points.double() - images.double()
    assert torch.allclose(norm.double(), lengths(delta), rtol=3e-6, atol=0)
    assert torch.allclose(inner.double(), dot(vectors.double(), delta), rtol=1e-3, atol=1e-5)
    if dtype == torch.float32:
        assert norm[0] < 0.1 * distance[0]  # too short for most of its values


def test_directions_downhill_are_scaled_once():
    gradient, way = normal(5, 3, 8, 8), polar(normal(5, 3, 8, 8, seed=3))[0]
    for odd in (None, 0.0, 1e-25, torch.inf, torch.nan):
        if odd is not None:
            gradient[2] = odd
        vectors, scale, slope = falling(gradient, way)
        expected, length = downhill(gradient, way)
        assert torch.allclose(vectors * scale.reshape(-1, 1, 1, 1), expected, rtol=1e-6, atol=1e-9)
        assert torch.equal(slope, length)
    assert torch.equal(expected[2], way[2])


@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_ways_are_brought_to_a_length(box):
    images, delta = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(4)), normal(5, 3, 8, 8, seed=5)
    noise, distance = Noise(images, None), torch.linspace(0.1, 2, 5)
    for _ in range(2):
        points, there = rescaled(images, delta, distance, box, noise)
        assert torch.equal(there, points - images)
        direction = delta.clone()
        if not delta[1].any():
            direction[1] = noise.unit[1]
        assert torch.allclose(points, along(images, distance, polar(direction)[0], box), atol=1e-6)
        delta[1] = 0


def test_rows_are_replaced_where_they_are_better(monkeypatch):
    better = torch.tensor([True, False, True, False])
    for readable in (True, False):
        monkeypatch.setattr(synchrony, "readable", lambda *_, answer=readable: answer)
        old, new = normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=6)
        before, expected = old.clone(), torch.where(better.reshape(4, 1, 1, 1), new, old)
        assert torch.equal(select(better, new, old), expected)
        assert torch.equal(old, before)
        assert torch.equal(replaced(old, better, new), expected)
        assert torch.equal(old, expected if readable else before)
        assert torch.equal(replaced(before, ~better & better, new), before)
        assert torch.equal(replaced(before, better | ~better, new), new)


def test_turns_write_to_no_tensor_of_others_and_keep_directions_of_length_one():
    model = orthonormal_rows(seed=2).float()
    images = torch.rand(4, 3, 6, 7, generator=torch.Generator().manual_seed(7))
    objective = PixelFlip(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 2, 4, 6]))
    view = outlook(model, images, objective, 3, Noise(images, None))
    points, best = along(images, 1.5 * view.distance[0], view.direction[0], None), view.direction[0].clone()
    track = Track(points, view.direction[0], view.distance[0], torch.zeros(4, dtype=torch.bool))
    bests = turning.Bests(track, torch.full((4,), torch.inf), best, torch.full((4,), torch.inf))
    given = [tensor.clone() for tensor in (images, points, track.direction, best)]
    turned = turning.turn(model, images, view.objective, bests, [(0.5, 0.002)] * 60, None)
    for tensor, before in zip((images, points, track.direction, best), given, strict=True):
        assert torch.equal(tensor, before)
    assert turned.track.success.all()
    assert (lengths(turned.track.direction) - 1).abs().max() < 1e-5
    assert (lengths(turned.direction) - 1).abs().max() < 1e-5
