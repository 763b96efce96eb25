"""Runs whose attacks see crops only, against closed forms and against the same runs on whole images."""

import numpy as np
import pytest
import torch
from torch import nn

import attackcheck as ac
from attackcheck import Kind, Verdict, examination
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.counterexample import Outcome, load_counterexample, replay
from attackcheck.crop_probe import CropProbe
from attackcheck.crops import Crops, disjoint
from attackcheck.events import Warned
from attackcheck.models import exact
from attackcheck.models.datasets import load_data
from attackcheck.models.shelf import shipped
from attackcheck.probe import Probe
from attackcheck.receptive import Field, windows

HEIGHT, WIDTH = 97, 90
EDGES = np.array([[0, r, c] for r in (0, 1, 48, 95, 96) for c in (0, 1, 45, 88, 89)])
MANY = Plan(
    "many",
    (
        Stage("linearised", options={"rays": 2}),
        Stage("ddn", pixels=6, options={"steps": 15}),
        Stage("cw", pixels=3, options={"steps": 8, "searches": 3}),
        Stage("pgd", pixels=2, options={"steps": 5, "restarts": 2}, eps=(0.2,)),
        Stage("foolbox.ddn", pixels=2, options={"steps": 10}),
        Stage("lipschitz", pixels=2, options={"steps": 10, "radii": (0.01, 0.1)}),
    ),
)


def picture(seed=0, height=HEIGHT, width=WIDTH):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def watched(model):
    """The model, and a list of the shapes it is called with."""
    shapes = []

    def call(x):
        shapes.append(tuple(x.shape))
        return model(x)

    return call, shapes


def strided(stride):
    """Affine: a strided convolution, laid out again on the full grid, plus a 3x3 convolution."""
    down = nn.Conv2d(3, 4, stride | 1, stride, padding=stride // 2)
    direct = nn.Conv2d(3, 4, 3, padding=1)
    generator = torch.Generator().manual_seed(stride)
    for parameter in [*down.parameters(), *direct.parameters()]:
        nn.init.normal_(parameter, std=0.3, generator=generator)
        parameter.requires_grad_(False)

    def call(x):
        coarse = down(x.to(down.weight.dtype)).repeat_interleave(stride, dim=2).repeat_interleave(stride, dim=3)
        return (coarse[:, :, : x.shape[2], : x.shape[3]] + direct(x.to(down.weight.dtype))).to(x.dtype)

    return call


@pytest.mark.parametrize("pixels", [EDGES, 40], ids=["borders", "inside"])
def test_crops_reach_the_closed_form(pixels):
    model = exact.affine_conv(kernel=5, seed=1).float()
    image = picture()
    call, shapes = watched(model)
    claim = ac.LipschitzClaim(100.0, "pixel")
    report = ac.verify(call, image, claim, attacks=["linearised"], pixels=pixels)
    assert max(rows for rows, *_, height, _ in shapes if height < HEIGHT) >= 20  # attacked as crops, many at once
    assert max(rows for rows, _, *size in shapes if size == [HEIGHT, WIDTH]) <= 4
    truth = model.double().flip_distance(image.double()).numpy()[report.attacked[0]]
    found = report.flip_distance[report.attacked]
    assert (found >= truth * (1 - 1e-5)).all()
    assert (found <= truth * 1.01).all()


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_crops_and_whole_images_agree(stride):
    model, claim = strided(stride), ac.LipschitzClaim(3.0, "pixel")
    reports = {}
    for crops in (True, False):
        call, shapes = watched(model)
        reports[crops] = ac.verify(call, picture(stride), claim, plan=MANY, pixels=EDGES[::2], crops=crops)
        rows = {size: max(shape[0] for shape in shapes if shape[2:] == size) for size in {s[2:] for s in shapes}}
        assert (rows[HEIGHT, WIDTH] <= 4) == crops  # whole images only to look at them and to confirm
    with_crops, without = reports[True], reports[False]
    assert with_crops.counts == without.counts
    found, expected = (r.flip_distance[r.attacked] for r in (with_crops, without))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert np.median(np.abs(found / expected - 1)) < 1e-4
    for one, other in zip(with_crops.attacks, without.attacks, strict=True):
        assert (one.name, one.attacked, one.flipped) == (other.name, other.attacked, other.flipped)


def test_planted_violations_are_found_through_crops_and_replay_on_the_whole_image(tmp_path):
    model = exact.affine_conv(kernel=5, seed=1).float()
    image = picture()
    true = float(torch.linalg.matrix_norm(model.weight.flatten(1).double(), 2))  # of a pixel away from the border
    plan = Plan("pixels", (Stage("linearised"), Stage("lipschitz", pixels=2)))
    report = ac.verify(model, image, ac.LipschitzClaim(true, "pixel"), plan=plan, pixels=10)
    assert report.sound
    assert report.counts == {"HELD": 10}
    claim = ac.LipschitzClaim(true / 2.5, "pixel")
    report = ac.verify(model, image, claim, plan=plan, pixels=10, counterexamples=tmp_path)
    assert {v.kind for v in report.violations} == {Kind.PIXEL, Kind.TWO_BALL, Kind.LIPSCHITZ}
    for violation in report.violations:
        example = load_counterexample(violation.counterexample)
        assert torch.equal(example.clean, image)
        assert int((example.perturbed != image).any(dim=0).sum()) <= 17 * 18  # zero outside one crop
        assert replay(example, model).outcome is Outcome.REPRODUCED


def test_wrong_radii_beside_the_attacked_pixel_are_not_overlooked():
    model = exact.affine_conv(classes=3, kernel=5, seed=4).float()
    image = picture(4)
    radii = model.double().flip_distance(image.double())[None]
    wrong = torch.zeros_like(radii)
    wrong[0, 50, 50] = radii[0, 50, 50] * 0.5
    for row, column in ((50, 49), (50, 51), (49, 50), (51, 50)):
        wrong[0, row, column] = 100.0  # flips on the way to the other pixel
    given = np.array([[0, 50, 50]])
    report = ac.verify(model.float(), image, ac.RadiusClaim(wrong), plan="quick", pixels=given)
    assert report.violations
    assert {v.pixel for v in report.violations} <= {(50, 49), (50, 51), (49, 50), (51, 50)}


def test_slopes_of_the_whole_map_are_seen_although_attacks_see_crops():
    model = exact.affine_conv(kernel=5, seed=1).float()
    image = picture()
    claim = ac.LipschitzClaim(1.2 * float(torch.linalg.matrix_norm(model.weight.flatten(1).double(), 2)))
    cropped, whole = (
        ac.verify(model, image, claim, plan="quick", pixels=20, crops=crops).limit.map for crops in (True, False)
    )
    assert cropped == pytest.approx(whole, rel=0.02)


def test_when_crops_are_found_out_late_the_pixels_are_attacked_on_whole_images(monkeypatch):
    inner = exact.affine_conv(seed=3).float()

    def model(x):
        return inner(x) + 0.5 * x.mean(dim=(1, 2, 3), keepdim=True) * torch.arange(4.0, dtype=x.dtype)[:, None, None]

    crops = windows(Field(1, 1, 1, 1, 1), 64, 96)
    monkeypatch.setattr(examination, "windows", lambda *_: crops)
    monkeypatch.setattr(examination, "measure_field", lambda *_: crops.field)
    monkeypatch.setattr(examination, "agrees", lambda *_, **__: True)
    events, image, claim = [], picture(3, 64, 96), ac.LipschitzClaim(4.0, "pixel")
    found = ac.verify(model, image, claim, plan="quick", pixels=6, on_event=events.append)
    expected = ac.verify(model, image, claim, plan="quick", pixels=6, crops=False)
    assert [event.code for event in events if isinstance(event, Warned)] == ["AC120"]
    assert np.array_equal(found.flip_distance[found.attacked], expected.flip_distance[expected.attacked])
    assert found.attacked_count == expected.attacked_count == 6


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_same_seed_gives_the_same_report_whatever_the_batch_size(batch):
    model, claim = strided(2), ac.LipschitzClaim(3.0, "pixel")
    one = ac.verify(model, picture(), claim, plan=MANY, pixels=8, seed=4, batch=8)
    other = ac.verify(model, picture(), claim, plan=MANY, pixels=8, seed=4, batch=batch)
    assert np.array_equal(one.flip_distance[one.attacked], other.flip_distance[other.attacked])
    assert one.counts == other.counts


def test_groups_that_fill_the_memory_for_points_are_judged_one_by_one(monkeypatch):
    monkeypatch.setattr("attackcheck.attacking.SLOT_BYTES", 4 * 3 * 16 * 18 * 7)  # seven crops
    model = exact.orthonormal_rows(seed=2).float()
    image = picture(2, 64, 66)
    report = ac.verify(model, image, ac.LipschitzClaim(0.9), plan="quick", pixels=30)
    assert sum(v.kind is Kind.PIXEL and v.verdict is Verdict.VIOLATED for v in report.violations) == 30
    assert report.attacked_count == 30


def setting(pixels):
    model = exact.affine_conv(kernel=3, seed=1).float()
    image = picture(0, 64, 80)
    claim = ac.LipschitzClaim(1.0, "pixel")
    logits = model(image[None])
    probe = Probe(model, image, logits[0], claim.radii(image[None], logits, None)[0], claim)
    crops = Crops(probe, windows(Field(1, 1, 1, 1, 1), 64, 80), torch.full((4,), 1e-4))
    rows, columns = torch.tensor(pixels).unbind(1)
    probe.aim(rows, columns, crops.windows)
    return probe, crops, rows, columns


def test_repeated_and_reordered_rows_are_noted_for_their_pixel():
    probe, crops, rows, columns = setting([(0, 0), (30, 40), (63, 79)])
    index = torch.tensor([2, 0, 2, 1, 0, 2, 1])
    generator = torch.Generator().manual_seed(3)
    with probe.attributed("points"):
        own = CropProbe(crops, probe, rows, columns)
        part = own.for_rows(index)
        points = own.clean[index] + torch.randn(part.clean.shape, generator=generator) * torch.rand(7, 1, 1, 1)
        logits = part(points)
        own.commit()
    row = torch.arange(7)
    flipped = logits[row, :, part.inner_rows, part.inner_columns].argmax(1) != own.logits.argmax(1)[index]
    distance = torch.where(flipped, (points - own.clean[index]).flatten(1).double().norm(dim=1), torch.inf)
    expected = torch.stack([distance[index == i].min() for i in range(3)])
    assert expected.isfinite().any()
    torch.testing.assert_close(probe.evidence.slots.distance, expected, rtol=1e-6, atol=0)
    # nothing of it counts before the whole image was asked
    assert not probe.evidence.flip_distance.isfinite().any()
    assert crops.confirm()
    torch.testing.assert_close(probe.evidence.flip_distance[rows, columns], expected, rtol=1e-6, atol=0)


def test_a_batch_without_a_row_for_every_pixel_is_refused():
    probe, crops, rows, columns = setting([(0, 0), (30, 40), (63, 79)])
    own = CropProbe(crops, probe, rows, columns)
    with pytest.raises(ValueError, match="expected 3 rows"):
        own(own.clean[:2])
    alone = own.for_rows(torch.tensor([1]))
    assert alone(own.clean[[1, 1, 1, 1]]).shape[0] == 4


def test_packs_hold_every_crop_once_and_none_overlap():
    generator = torch.Generator().manual_seed(0)
    top, left = torch.randint(60, (200,), generator=generator), torch.randint(300, (200,), generator=generator)
    packs = disjoint(top, left, 12, 20)
    assert torch.cat(packs).sort().values.tolist() == list(range(200))
    for pack in packs:
        overlap = ((top[pack, None] - top[pack]).abs() < 12) & ((left[pack, None] - left[pack]).abs() < 20)
        assert int(overlap.sum()) == len(pack)
    assert disjoint(top[:0], left[:0], 12, 20) == []


def test_a_shipped_network_shows_the_same_distances_in_crops(monkeypatch):
    monkeypatch.setattr("attackcheck.receptive.WORTHWHILE", 0.6)  # its crops are 64 x 72 of 64 x 128 pixels
    subject, image = ac.load(shipped()), load_data(None)[0].image
    found, expected = (
        ac.verify(subject.model, image, subject.claim, plan="quick", pixels=6, crops=crops) for crops in (True, False)
    )
    assert found.counts == expected.counts
    assert found.attacks[0].forward > expected.attacks[0].forward  # crops are confirmed
    np.testing.assert_allclose(
        found.flip_distance[found.attacked], expected.flip_distance[expected.attacked], rtol=1e-4
    )
