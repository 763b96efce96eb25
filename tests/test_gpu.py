"""The same results on a GPU as on a CPU, and memory measured there; skipped where there is none."""

import numpy as np
import pytest
import torch

import attackcheck as ac
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.memory import Meter, Room, available
from attackcheck.models import exact
from attackcheck.models.datasets import load_data
from attackcheck.models.shelf import shipped

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

PLAN = Plan(
    "some",
    (
        Stage("linearised", options={"rays": 2}),
        Stage("ddn", pixels=4, options={"steps": 20}),
        Stage("linearised", objective="region"),
        Stage("lipschitz", objective="map", options={"steps": 10}),
    ),
)


def agree(on_cpu, on_gpu):
    assert on_cpu.sound == on_gpu.sound
    assert on_cpu.counts == on_gpu.counts
    assert np.array_equal(on_cpu.attacked, on_gpu.attacked)
    aimed = on_cpu.attacked
    assert np.allclose(on_cpu.flip_distance[aimed], on_gpu.flip_distance[aimed], rtol=1e-4)


@pytest.mark.parametrize("constant", [1.0, 0.4])
def test_verdicts_and_distances_agree_on_a_closed_form(constant):
    model = exact.orthonormal_rows(seed=0).float()
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    options = {"plan": PLAN, "pixels": 12}
    agree(*(ac.verify(model, images, ac.LipschitzClaim(constant), device=name, **options) for name in ("cpu", "cuda")))


def test_verdicts_and_distances_agree_on_a_network_that_ships():
    subject = ac.load(shipped("lipnet-xs"))
    image = load_data(None)[0].image[None]
    options = {"plan": "quick", "pixels": 16, "audit": False}
    agree(*(ac.verify(subject.model, image, subject.claim, device=name, **options) for name in ("cpu", "cuda")))


def test_memory_of_a_gpu_is_measured():
    assert available("cuda") > 2**20
    with Meter("cuda") as meter:
        block = torch.ones(2**24, device="cuda")
        del block
    assert 2**26 <= meter.bytes < 2**27
    assert Room("cuda").fitted("a", 8, lambda rows: rows, measure=True) == 2
