"""The probe against brute force over every point that was visited."""

import math

import pytest
import torch

from attackcheck import LipschitzClaim
from attackcheck.models import exact
from attackcheck.probe import Kind, Probe

SIZE = 5


@pytest.fixture
def setting():
    model = exact.affine_conv(classes=4, seed=1).float()
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(3, SIZE, SIZE, generator=generator)
    claim = LipschitzClaim(0.7 * model.lipschitz_joint(SIZE, SIZE))
    logits = model(image[None])
    radius = claim.radii(image[None], logits, None)[0]
    points = image + 0.3 * torch.randn(40, 3, SIZE, SIZE, generator=generator)
    return model, image, claim, logits, radius, points


def visited(setting, batch):
    model, image, claim, logits, radius, points = setting
    probe = Probe(model, image, logits[0], radius, claim)
    rows, columns = torch.tensor([0, 2, 4]), torch.tensor([1, 2, 3])
    probe.aim(rows, columns)
    with probe.attributed("points"):
        for part in points.split(batch):
            probe(part)
    return probe.evidence


def test_a_tie_is_no_flip():
    image = torch.tensor([0.75, 0.5]).reshape(2, 1, 1)
    claim = LipschitzClaim(1.0)
    probe = Probe(lambda images: images, image, image, claim.radii(image[None], image[None], None)[0], claim)
    probe(torch.full((1, 2, 1, 1), 0.625))
    assert probe.evidence.flip_distance.item() == math.inf
    probe(torch.tensor([0.5, 0.75]).reshape(1, 2, 1, 1))
    assert probe.evidence.flip_distance.item() == pytest.approx(0.25 * math.sqrt(2))


def test_radii_of_any_memory_layout_and_few_or_many_flips_give_the_same(setting):
    model, image, claim, logits, radius, points = setting
    found = visited(setting, 40)
    turned = visited((model, image, claim, logits, radius.mT.contiguous().mT, points), 1)
    assert turned.flip_distance.equal(found.flip_distance)
    assert turned.flip_distance.isfinite().sum() > 3
    few = visited((model, image, claim, logits, radius.mT.contiguous().mT, image + 0.2 * (points - image)), 1)
    flipped = few.flip_distance.isfinite()
    assert 0 < flipped.sum() < flipped.numel()


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_smallest_flip_distances_of_all_pixels(setting, batch):
    model, image, _, logits, _, points = setting
    distance = (points - image).flatten(1).double().norm(dim=1)
    flipped = model(points).argmax(1) != logits[0].argmax(0)
    expected = torch.where(flipped, distance[:, None, None], math.inf).amin(0)
    evidence = visited(setting, batch)
    torch.testing.assert_close(evidence.flip_distance, expected, rtol=1e-6, atol=0)
    assert ((evidence.flipped_by == 0) == expected.isfinite()).all()
    assert evidence.costs[0].forward == 40
    assert evidence.costs[0].backward == 0


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_slots_hold_the_very_points(setting, batch):
    model, image, _, logits, _, _ = setting
    slots = visited(setting, batch).slots
    assert slots.distance.isfinite().any()
    for i in slots.distance.isfinite().nonzero()[:, 0].tolist():
        row, column = slots.rows[i], slots.columns[i]
        predicted = model(slots.point[i][None])[0, :, row, column].argmax()
        assert predicted == slots.target[i] != logits[0, :, row, column].argmax()
        assert (slots.point[i] - image).double().norm() == pytest.approx(slots.distance[i].item(), rel=1e-6)


def test_witnesses_are_the_worst_ratios(setting):
    model, image, claim, logits, radius, points = setting
    z, z0 = model(points).double(), logits.double()
    distance = (points - image).flatten(1).double().norm(dim=1)
    clean = z0[0].argmax(0)
    lead = (
        z.scatter(1, clean.expand(40, 1, SIZE, SIZE), -math.inf).amax(1)
        - z.gather(1, clean.expand(40, 1, SIZE, SIZE))[:, 0]
    )
    sums = torch.where(lead > 0, radius + lead / (math.sqrt(2) * claim.lipschitz), 0.0).flatten(1)
    expected = {
        Kind.PIXEL: (torch.where(lead > 0, radius, 0.0).flatten(1).amax(1) / distance).max(),
        Kind.TWO_BALL: (sums.amax(1) / distance).max(),
        Kind.SET: (sums.norm(dim=1) / distance).max(),
        Kind.LIPSCHITZ: ((z - z0).flatten(1).norm(dim=1) / distance).max() / claim.lipschitz,
    }
    evidence = visited(setting, 7)
    for kind, ratio in expected.items():
        assert evidence.witnesses[kind].ratio.max().item() == pytest.approx(ratio.item(), rel=1e-5)


def test_the_clean_image_and_broken_points_are_no_evidence(setting):
    model, image, claim, logits, radius, _ = setting
    probe = Probe(model, image, logits[0], radius, claim)
    with probe.attributed("broken"):
        probe(image[None])
        probe(torch.full((1, 3, SIZE, SIZE), math.nan))
        probe(torch.full((1, 3, SIZE, SIZE), math.inf))
    assert not probe.evidence.flip_distance.isfinite().any()
    assert all(float(w.ratio.max()) == 0 for w in probe.evidence.witnesses.values())


def test_backward_passes_are_counted_and_gradients_flow(setting):
    model, image, claim, logits, radius, points = setting
    probe = Probe(model, image, logits[0], radius, claim)
    x = points[:6].clone().requires_grad_(True)
    with probe.attributed("a"):
        probe(x).sum().backward()
    assert (probe.evidence.costs[0].forward, probe.evidence.costs[0].backward) == (6, 6)
    assert x.grad is not None


def test_spurious_ratios_at_tiny_distances_do_not_crowd_out_the_real_ones(setting):
    model, image, claim, logits, radius, points = setting
    probe = Probe(model, image, logits[0] + 1e-3, radius, claim)  # as if rounding had moved the clean logits
    with probe.attributed("tiny"):
        probe(points[:5])
        real = probe.evidence.witnesses[Kind.LIPSCHITZ].ratio.clone()
        probe((image + 1e-7)[None])
    ratio = probe.evidence.witnesses[Kind.LIPSCHITZ].ratio
    assert ratio.max() > 100 * real.max()
    assert (ratio[real > 0] == real[real > 0]).all()
