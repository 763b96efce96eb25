"""Cases that once fooled the judge or the probe, one way or the other."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import attackcheck as ac
from attackcheck import Kind, Verdict
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.models import exact

SIZE = 6
PLAN = Plan(
    "reviewed",
    (
        Stage("linearised"),
        Stage("ddn", pixels=4, options={"steps": 20}),
        Stage("lipschitz", objective="map", options={"steps": 20}),
        Stage("lipschitz", pixels=2, options={"steps": 10, "radii": (0.1,)}),
    ),
)


def pictures(seed=0, count=1):
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


class Wrapped(nn.Module):
    """An exact model with something done to its logits."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x):
        return self.change(self.inner(x))


def low_precision(dtype):
    model = exact.affine_pixel(seed=1)

    def forward(x):
        weight, bias = model.weight.to(dtype), model.bias.to(dtype)
        return functional.conv2d(x.to(dtype), weight[:, :, None, None], bias).to(x.dtype)

    return forward


# Never cry wolf -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(3))
def test_low_precision_inside_is_no_violation(dtype, seed):
    claim = ac.LipschitzClaim(exact.affine_pixel(seed=1).lipschitz_joint(SIZE, SIZE))
    report = ac.verify(low_precision(dtype), pictures(seed), claim, plan=PLAN, pixels=8)
    assert report.sound, report.violations


@pytest.mark.parametrize("offset", [100.0, 2.0**17, 2.0**40])
@pytest.mark.parametrize("how", ["operator", "in place"])
def test_exact_radii_of_a_cancelling_model_hold(offset, how):
    inner = exact.affine_pixel(seed=2).float()

    def cancel(z):
        return z.clone().add_(offset).sub_(offset) if how == "in place" else (z + offset) - offset

    images = pictures(3)
    radii = exact.affine_pixel(seed=2).flip_distance(images[0].double())[None]
    for claim in (ac.RadiusClaim(radii), ac.ClassPairClaim(1.0, inner.weight)):
        report = ac.verify(Wrapped(inner, cancel), images, claim, plan=PLAN, pixels="all")
        assert report.sound, report.violations


def test_close_rows_of_a_class_pair_claim_are_no_alarm():
    inner = exact.affine_pixel(classes=4, seed=0).double()
    with torch.no_grad():
        inner.weight[3] = inner.weight[2] + 1e-13
    model = Wrapped(inner, lambda z: (z + 1024.0) - 1024.0)
    report = ac.verify(model, pictures(1), ac.ClassPairClaim(1.0, inner.weight), plan=PLAN, pixels=6)
    assert report.sound, report.violations


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_final_upsampling_is_sound_for_single_pixels(mode):
    inner = exact.orthonormal_rows(seed=1).float()

    def forward(x):
        return functional.interpolate(inner(functional.avg_pool2d(x, 2)), scale_factor=2, mode=mode)

    report = ac.verify(forward, pictures(4), ac.LipschitzClaim(0.5, "pixel"), plan=PLAN, pixels=8)
    assert report.sound, report.violations


def test_a_model_that_works_in_place_changes_nobodys_image():
    inner = exact.affine_pixel(seed=1).float()

    def forward(x):
        return inner(x.sub_(0.5).add_(0.5))

    images = pictures(2)
    before = images.clone()
    report = ac.verify(forward, images, ac.LipschitzClaim(inner.lipschitz_joint(SIZE, SIZE)), plan=PLAN, pixels=4)
    assert report.sound
    assert torch.equal(images, before)


# Find every one -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [-1e4, -1e12, -1e30, torch.finfo(torch.float32).min])
def test_a_masked_class_hides_no_violation(mask):
    inner = exact.affine_pixel(classes=4, seed=3).float()

    def forward(z):
        return torch.cat([z[:, :3], torch.full_like(z[:, :1], mask)], dim=1)

    images = pictures(5)
    reduced = exact.AffinePixel(inner.weight[:3].double(), inner.bias[:3].double())
    truth = reduced.flip_distance(images[0].double())[None]
    model = Wrapped(inner, forward)
    assert ac.verify(model, images, ac.RadiusClaim(truth * (1 - 1e-5)), plan=PLAN, pixels="all").sound
    report = ac.verify(model, images, ac.RadiusClaim(truth * 1.3), plan=PLAN, pixels="all")
    assert len(report.violations) >= 0.99 * SIZE**2


def test_a_pixel_at_a_tie_on_a_black_image_hides_nothing():
    torch.manual_seed(0)
    inner = exact.affine_conv(classes=4, seed=1).float()
    with torch.no_grad():
        inner.bias.copy_(torch.tensor([30.0, 29.0, 28.0, 27.0]))
    constant = inner.lipschitz_joint(SIZE, SIZE)
    tie = torch.zeros(1, 4, SIZE, SIZE)
    tie[0, 1, 0, 0] = 1.0 - 2e-6
    model = Wrapped(inner, lambda z: z + tie.to(z))
    report = ac.verify(model, torch.zeros(1, 3, SIZE, SIZE), ac.LipschitzClaim(constant / 1.2), plan=PLAN, pixels="all")
    assert Kind.LIPSCHITZ in {v.kind for v in report.violations}


def test_never_flipped_pixels_of_infinite_radius_hide_nothing():
    model = exact.affine_conv(classes=3, kernel=5, seed=4).float()
    images = pictures(4)
    radii = exact.affine_conv(classes=3, kernel=5, seed=4).flip_distance(images[0].double())[None]
    wrong = radii.clone()
    wrong[0, 0] = math.inf
    wrong[0, 3, 2] = 100.0
    plan = Plan("wide", (*PLAN.stages, Stage("linearised", objective="region")))
    report = ac.verify(
        model, images, ac.RadiusClaim(wrong), plan=plan, pixels=np.array([[0, 3, 3]]), regions=["rect:2,1,3,3"]
    )
    assert (3, 2) in {v.pixel for v in report.violations}
    assert not math.isnan(report.limit.least)


@pytest.mark.parametrize("factor", [1.1, 1.5])
def test_a_constant_of_single_pixels_is_attacked_on_single_pixels(factor):
    model = exact.affine_conv(classes=19, seed=0).float()
    joint, pixel = model.lipschitz_joint(SIZE, SIZE), model.lipschitz_pixel(SIZE, SIZE)
    for claim in (
        ac.LipschitzClaim(pixel / factor, "pixel"),
        ac.LipschitzClaim(joint, pixel=pixel / factor),
    ):
        assert not ac.verify(model, pictures(0), claim, plan=PLAN, pixels=16).sound
    assert ac.verify(model, pictures(0), ac.LipschitzClaim(joint, pixel=pixel), plan=PLAN, pixels=16).sound


def test_unused_close_rows_do_not_excuse_the_others():
    inner = exact.affine_pixel(classes=5, seed=0).double()
    with torch.no_grad():
        inner.weight[4] = inner.weight[3] + 1e-7
        inner.bias[3:] = -50.0
    report = ac.verify(inner.float(), pictures(1), ac.ClassPairClaim(0.5, inner.weight), plan=PLAN, pixels="all")
    assert report.counts == {"VIOLATED": SIZE**2}


@pytest.mark.parametrize("scale", [1e-24, 1e-10, 1e4])
def test_the_size_of_logits_does_not_matter(scale):
    inner = exact.affine_pixel(seed=6).float()
    constant = inner.lipschitz_joint(SIZE, SIZE) * scale
    model = Wrapped(inner, lambda z: z * scale)
    assert ac.verify(model, pictures(7), ac.LipschitzClaim(constant), plan=PLAN, pixels=6).sound
    assert not ac.verify(model, pictures(7), ac.LipschitzClaim(constant / 1.03), plan=PLAN, pixels=6).sound


@pytest.mark.parametrize("constant", [1e-320, 1e-300])
def test_an_absurdly_small_constant_is_violated(constant):
    model = exact.orthonormal_rows(seed=1).float()
    report = ac.verify(model, pictures(1), ac.LipschitzClaim(constant), plan="quick", pixels=4)
    assert report.exit_code() == 1


# And say it right ---------------------------------------------------------------------------------------------------


def test_a_clean_run_promises_no_more_than_it_saw():
    inner = exact.affine_pixel(seed=2).float()
    model = Wrapped(inner, lambda z: (z + 2.0**12) - 2.0**12)
    report = ac.verify(model, pictures(1), ac.LipschitzClaim(inner.lipschitz_joint(SIZE, SIZE)), plan=PLAN, pixels=8)
    assert report.sound
    assert report.limit.least >= 1.0 - 1e-5


def test_no_more_violations_than_asked_for():
    model = exact.orthonormal_rows(seed=1).float()
    for wanted in (1, 3):
        report = ac.verify(model, pictures(1, 3), ac.LipschitzClaim(0.5), plan=PLAN, pixels=8, maxfail=wanted)
        assert len(report.violations) == wanted


def test_the_same_pixel_twice_is_one_pixel():
    model = exact.orthonormal_rows(seed=1).float()
    given = np.array([[0, 1, 1], [0, 1, 1], [0, 2, 2]])
    report = ac.verify(model, pictures(1), ac.LipschitzClaim(0.5), plan="quick", pixels=given)
    assert report.counts == {"VIOLATED": 2}


def test_an_error_after_the_first_image_keeps_what_was_found():
    class Folder(list):
        name, classes, ignore = "folder", None, 255

        def __getitem__(self, index):
            if index == 1:
                raise ac.InputError("expected a picture in b.png, which cannot be read")
            return super().__getitem__(index)

    from attackcheck.engine import run
    from attackcheck.subject import Settings, Subject
    from attackcheck.verification import ArrayImages

    data = Folder(ArrayImages(pictures(1, 2))[i] for i in range(2))
    model = exact.orthonormal_rows(seed=1).float()
    for constant, code in ((0.5, 1), (1.0, 2)):
        settings = Settings(Plan("ray", (Stage("linearised"),)), pixels=3)
        *_, last = run(Subject(model, ac.LipschitzClaim(constant), {}), data, settings)
        assert "b.png" in last.report.stopped
        assert last.report.attacked_count == 3
        assert last.report.exit_code() == code


@pytest.mark.parametrize("workers", [2, 3])
def test_images_side_by_side_give_the_same_report(workers):
    model = exact.affine_conv(seed=1).float()
    claim = ac.LipschitzClaim(model.lipschitz_joint(SIZE, SIZE) / 1.05)
    one, many = (ac.verify(model, pictures(1, 5), claim, plan=PLAN, pixels=6, workers=n) for n in (1, workers))
    assert np.array_equal(one.flip_distance, many.flip_distance)
    assert one.counts == many.counts
    assert [(v.kind, v.image, v.pixel, v.distance) for v in one.findings] == [
        (v.kind, v.image, v.pixel, v.distance) for v in many.findings
    ]
    assert [(a.name, a.forward, a.backward, a.attacked) for a in one.attacks] == [
        (a.name, a.forward, a.backward, a.attacked) for a in many.attacks
    ]


def test_a_failing_model_stops_all_workers():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = exact.orthonormal_rows(seed=1).float(), 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 60:
                raise RuntimeError("out of order")
            return self.inner(x)

    report = ac.verify(Failing().eval(), pictures(1, 30), ac.LipschitzClaim(0.5), plan=PLAN, pixels=4, workers=2)
    assert "out of order" in report.stopped
    assert report.failed
    assert any(v.verdict is Verdict.VIOLATED for v in report.findings)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_can_be_checked():
    model = torch.jit.script(nn.Conv2d(3, 4, 1)).eval()
    report = ac.verify(model, pictures(1), ac.LipschitzClaim(10.0), plan=PLAN, pixels=4)
    assert report.attacked_count == 4
    assert report.sound
