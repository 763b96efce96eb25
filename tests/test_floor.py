"""Operations and bytes of the benchmarks' floor, where they can be counted by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def floor():
    path = Path(__file__).parent.parent / "benchmarks" / "yardstick" / "floor.py"
    spec = importlib.util.spec_from_file_location("yardstick_floor", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_network_of_two_convolutions(floor):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1)).requires_grad_(False)
    forward, backward = floor.network_passes(model, torch.rand(3, 10, 12))
    pixels, weights = 120, 3 * 8 * 9 + 8 + 8 * 5 + 5
    products = 2 * pixels * (3 * 8 * 9 + 8 * 5)
    assert (forward.operations, backward.operations) == (products, products)
    assert forward.bytes == 4 * (3 * pixels + weights + 2 * (8 + 5) * pixels)
    assert backward.bytes == 4 * (5 * pixels + weights + 2 * (3 + 8) * pixels)
    one_of_many, _ = floor.network_passes(model, torch.rand(3, 10, 12), many=True)
    assert one_of_many.bytes == forward.bytes - 4 * weights


def test_the_longer_of_both_times(floor):
    peak = floor.Peak(operations=100.0, bytes=10.0)
    assert peak.seconds(floor.Work(50.0, 1.0)) == 0.5
    assert peak.seconds(floor.Work(50.0, 1.0) * 2 + floor.Work(0.0, 18.0)) == 2.0


def test_logits_are_read_once(floor):
    assert floor.certification(torch.zeros(7, 4, 5)) == floor.Work(280.0, 4 * 140 + 32 * 20)


def test_the_peak_is_that_of_a_machine(floor):
    peak = floor.Peak.measured()
    assert 1e8 < peak.operations < 1e14
    assert 1e7 < peak.bytes < 1e13
