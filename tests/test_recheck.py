"""One proposal for every verdict, on models whose answer is known."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from attackcheck import LipschitzClaim, RadiusClaim, Verdict
from attackcheck.arithmetic import Reference, frozen
from attackcheck.models import exact
from attackcheck.probe import Kind
from attackcheck.receptive import Field, measure_field
from attackcheck.recheck import Judge

SIZE = 3


def gadget(seed=0):
    """Orthonormal rows: L = 1 and d = m / sqrt(2), so the certificate is exact to the last bit."""
    model = frozen(exact.orthonormal_rows(seed=seed).float())
    image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed + 9))
    return model, image


def scene_of(model, image, claim, tolerance=1e-5):
    judge = Judge(model, Reference(model, image[None]), claim, tolerance=tolerance)
    logits = model(image[None])
    return judge, judge.scene(0, image, logits[0], claim.radii(image[None], logits, 0)[0])


def towards_boundary(model, image, row, column, overshoot):
    """The closest point of another class, and a relative ``overshoot`` beyond it."""
    weight = model.weight.detach().double()
    z = model(image[None].double())[0, :, row, column]
    order = z.argsort(descending=True)
    direction = weight[order[1]] - weight[order[0]]
    gap = z[order[0]] - z[order[1]]
    point = image.double().clone()
    point[:, row, column] += direction * gap / direction.square().sum() * (1 + overshoot)
    return point.float()


@pytest.mark.parametrize("seed", range(4))
def test_an_exact_certificate_is_never_violated_and_a_slightly_larger_one_is(seed):
    model, image = gadget(seed)
    point = towards_boundary(model, image, 1, 1, 1e-5)
    for constant, expected in ((1.0, Verdict.HELD), (1 / 1.03, Verdict.VIOLATED), (1 / 1.001, Verdict.VIOLATED)):
        judge, scene = scene_of(model, image, LipschitzClaim(constant))
        judgement = judge.pixel(scene, point, 1, 1)
        assert judgement.verdict is expected
        assert judgement.distance == pytest.approx(float((point - image).double().norm()), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_point_just_short_of_a_flip_is_pushed_along_its_ray_but_never_beyond_the_radius(seed):
    model, image = gadget(seed)
    point = towards_boundary(model, image, 1, 1, -5e-6)
    judge, scene = scene_of(model, image, LipschitzClaim(1 / 1.03))
    judgement = judge.pixel(scene, point, 1, 1)
    assert judgement.verdict is Verdict.VIOLATED
    assert judgement.distance < judgement.bound
    far = towards_boundary(model, image, 1, 1, -0.1)
    judge, scene = scene_of(model, image, LipschitzClaim(1 / 0.97))
    assert judge.pixel(scene, far, 1, 1).verdict is Verdict.NOT_REPRODUCED


@pytest.mark.parametrize("seed", range(4))
def test_a_small_excess_is_met_by_small_steps_along_the_ray(seed):
    model, image = gadget(seed)
    point = towards_boundary(model, image, 1, 1, -5e-6)
    judge, scene = scene_of(model, image, LipschitzClaim(1 / 1.00008))
    assert judge.pixel(scene, point, 1, 1).verdict is Verdict.VIOLATED


def test_a_radius_too_large_by_less_than_the_tolerance_is_rounding():
    model, image = gadget()
    point = towards_boundary(model, image, 0, 2, 1e-6)
    judge, scene = scene_of(model, image, LipschitzClaim(1 / (1 + 8e-6)))
    assert judge.pixel(scene, point, 0, 2).verdict is Verdict.ROUNDING
    judge, scene = scene_of(model, image, LipschitzClaim(1 / (1 + 8e-6)), tolerance=1e-7)
    assert judge.pixel(scene, point, 0, 2).verdict is Verdict.VIOLATED


def test_a_tie_at_the_clean_image_decides_nothing():
    model = frozen(nn.Conv2d(1, 2, 1, bias=False))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([1.0, 1.0]).reshape(2, 1, 1, 1))
    image = torch.full((1, 1, 1), 0.5)
    judge, scene = scene_of(model, image, RadiusClaim(torch.ones(1, 1, 1)))
    assert judge.pixel(scene, image + 0.1, 0, 0).verdict is Verdict.UNDECIDED


class Edge(nn.Module):
    """Class 1 leads wherever the first channel is not 0."""

    def forward(self, x):
        return torch.stack([0.0 * x[:, 0], x[:, 0].abs()], dim=1)


def test_an_infinite_radius_around_a_tie_is_violated_by_two_classes_inside_it():
    model = frozen(nn.Conv2d(2, 3, 1, bias=False))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]).reshape(3, 2, 1, 1))
    image, point = torch.zeros(2, 1, 1), torch.tensor([-0.1, 0.2]).reshape(2, 1, 1)
    judge, scene = scene_of(model, image, RadiusClaim(torch.full((1, 1, 1), math.inf)))
    assert judge.pixel(scene, point, 0, 0).verdict is Verdict.VIOLATED
    # One class everywhere, whatever the tie: nothing contradicts the claim.
    flat = frozen(nn.Conv2d(2, 2, 1, bias=False))
    with torch.no_grad():
        flat.weight.zero_()
    judge, scene = scene_of(flat, image, RadiusClaim(torch.full((1, 1, 1), math.inf)))
    assert judge.pixel(scene, point, 0, 0).verdict is Verdict.UNDECIDED
    # Class 1 is nowhere below class 0: the tie is an edge, and all that is beyond it is of one class.
    edge = Edge()
    judge, scene = scene_of(edge, image, RadiusClaim(torch.full((1, 1, 1), math.inf)))
    assert judge.pixel(scene, point, 0, 0).verdict is Verdict.UNDECIDED


def test_a_tie_at_the_clean_image_excuses_a_clear_flip_elsewhere():
    model = frozen(nn.Conv2d(2, 2, 1, bias=False))
    with torch.no_grad():
        model.weight.copy_(torch.eye(2).reshape(2, 2, 1, 1))
    image = torch.full((2, 1, 1), 0.5)
    judge, scene = scene_of(model, image, RadiusClaim(torch.ones(1, 1, 1)))
    point = torch.tensor([0.4, 0.6]).reshape(2, 1, 1)
    assert judge.pixel(scene, point, 0, 0).verdict is Verdict.UNDECIDED


def test_a_certified_class_that_is_not_the_functions_own_is_about_the_program():
    inner = frozen(nn.Conv2d(2, 2, 1, bias=False))
    with torch.no_grad():
        inner.weight.copy_(torch.eye(2).reshape(2, 2, 1, 1))
    model = frozen(Cancelling(inner))
    image = torch.tensor([0.5, 0.5 + 1e-3]).reshape(2, 1, 1)  # float32 sees a tie and takes the first class
    judge, scene = scene_of(model, image, RadiusClaim(torch.ones(1, 1, 1)))
    assert scene.predicted.item() == 0
    assert judge.pixel(scene, image + torch.tensor([-0.2, 0.2]).reshape(2, 1, 1), 0, 0).verdict is Verdict.DEPLOYED_ONLY


def test_a_point_that_flips_nothing_is_not_reproduced():
    model, image = gadget()
    judge, scene = scene_of(model, image, LipschitzClaim(1.0))
    point = towards_boundary(model, image, 1, 1, -0.5)
    assert judge.pixel(scene, point, 1, 1).verdict is Verdict.NOT_REPRODUCED


def test_a_point_just_short_of_the_boundary_is_pushed_along_its_ray():
    model, image = gadget()
    judge, scene = scene_of(model, image, LipschitzClaim(0.5))
    point = towards_boundary(model, image, 1, 1, -2e-5)
    judgement = judge.pixel(scene, point, 1, 1)
    assert judgement.verdict is Verdict.VIOLATED
    assert judgement.distance > float((point - image).double().norm())


class Cancelling(nn.Module):
    """Adds and takes away a huge number: float32 flips where the real-number function does not."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return (self.model(x) + 2.0**17) - 2.0**17


def test_flips_of_float32_alone_are_about_the_program_as_deployed():
    found = set()
    for seed in range(4):
        inner, image = gadget(seed)
        model = frozen(Cancelling(inner))
        judge, scene = scene_of(model, image, LipschitzClaim(1.0))
        logits = inner(image[None])[0]
        for row in range(SIZE):
            for column in range(SIZE):
                best, second = logits[:, row, column].topk(2).values.tolist()
                for missing in torch.linspace(1e-3, 0.012, 20).tolist():  # deployed logits are multiples of 1 / 64
                    point = towards_boundary(inner, image, row, column, -missing / (best - second))
                    if model(point[None])[0, :, row, column].argmax() != scene.predicted[row, column]:
                        found.add(judge.pixel(scene, point, row, column).verdict)
    assert Verdict.DEPLOYED_ONLY in found
    assert Verdict.VIOLATED not in found


def test_a_real_violation_behind_a_float32_flip_is_still_found():
    inner, image = gadget(4)
    model = frozen(Cancelling(inner))
    judge, scene = scene_of(model, image, LipschitzClaim(0.25))  # four times too large a radius
    row, column = divmod(int(scene.radius.argmax()), SIZE)
    point = towards_boundary(inner, image, row, column, -0.3)  # not flipped in float64
    assert judge.pixel(scene, point, row, column).verdict is Verdict.VIOLATED


def test_overlapping_balls_need_no_exact_boundary():
    model, image = gadget(1)
    point = towards_boundary(model, image, 1, 1, 2.0)  # three times the distance: no PIXEL violation at L / 2
    judge, scene = scene_of(model, image, LipschitzClaim(0.5))
    assert judge.pixel(scene, point, 1, 1).verdict is Verdict.HELD
    judgement = judge.two_ball(scene, point)
    assert judgement.verdict is Verdict.VIOLATED
    assert judgement.ratio == pytest.approx(2.0, rel=1e-4)  # exact balls touch: twice too large, twice the distance
    judge, scene = scene_of(model, image, LipschitzClaim(1.0))
    assert judge.two_ball(scene, point).verdict in (Verdict.HELD, Verdict.ROUNDING)


def test_a_set_shares_the_budget():
    model, image = gadget(1)
    point = image.clone()
    for row in range(SIZE):
        point[:, row, 0] = towards_boundary(model, image, row, 0, 1e-3)[:, row, 0]
    judge, scene = scene_of(model, image, LipschitzClaim(1 / 1.01))
    judgement = judge.flipped_set(scene, point)
    assert judgement.verdict is Verdict.VIOLATED
    assert len(judgement.pixels) == SIZE
    assert judgement.ratio == pytest.approx(1.01, rel=1e-4)
    judge, scene = scene_of(model, image, LipschitzClaim(1.0))
    assert judge.flipped_set(scene, point).verdict in (Verdict.HELD, Verdict.ROUNDING)
    judge, scene = scene_of(model, image, LipschitzClaim(0.5, "pixel"))
    assert judge.flipped_set(scene, point) is None


def test_a_set_pays_the_joint_constant_with_radii_of_the_pixels_own():
    model, image = gadget(1)
    point = image.clone()
    for row in range(SIZE):
        point[:, row, 0] = towards_boundary(model, image, row, 0, 1e-3)[:, row, 0]
    # a pixel's own constant makes its radius larger, and a set's budget no larger
    judge, scene = scene_of(model, image, LipschitzClaim(1.0, pixel=0.5))
    judgement = judge.flipped_set(scene, point)
    assert judgement.verdict in (Verdict.HELD, Verdict.ROUNDING)
    assert judgement.ratio == pytest.approx(1.0, rel=2e-3)


def test_a_ball_about_the_class_that_the_program_sees_says_nothing_of_the_class_of_the_function():
    """Where float64 has flipped and the program has not, its certifier's ball is about the clean class."""
    model, image = gadget(1)
    point = towards_boundary(model, image, 1, 1, 1e-3)
    clean = model(image[None])
    claim = RadiusClaim(lambda images: torch.full((len(images), SIZE, SIZE), 10.0))
    blind = Judge(lambda images: clean.expand(len(images), -1, -1, -1), Reference(model, image[None]), claim)
    scene = blind.scene(0, image, clean[0], torch.full((SIZE, SIZE), 1e-6, dtype=torch.float64))
    assert blind.two_ball(scene, point) is None
    seeing = Judge(model, Reference(model, image[None]), claim)
    assert seeing.two_ball(scene, point).verdict is Verdict.VIOLATED


def test_an_expansion_needs_no_flip():
    model = frozen(exact.affine_conv(seed=3).float())
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    norm = exact.affine_conv(seed=3).lipschitz_joint(4, 4)
    matrix = exact.affine_conv(seed=3).matrix(4, 4)
    steepest = torch.linalg.svd(matrix)[2][0].reshape(3, 4, 4)
    point = (image.double() + 1e-3 * steepest).float()
    for constant, expected in ((norm / 1.001, Verdict.VIOLATED), (norm, None)):
        judge, scene = scene_of(model, image, LipschitzClaim(constant))
        judgement = judge.expansion(scene, point)
        assert judgement.kind is Kind.LIPSCHITZ
        if expected is not None:
            assert judgement.verdict is expected
        else:
            assert judgement.verdict in (Verdict.HELD, Verdict.ROUNDING)


def test_an_infinite_radius_can_be_broken():
    model, image = gadget()
    judge, scene = scene_of(model, image, RadiusClaim(torch.full((1, SIZE, SIZE), math.inf)))
    point = towards_boundary(model, image, 1, 1, 1e-3)
    assert judge.pixel(scene, point, 1, 1).verdict is Verdict.VIOLATED


def locally(seed=0):
    """A network of small fields, its field, and an image of 40x48."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, 2),
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    image = torch.rand(3, 40, 48, generator=generator)
    return frozen(model.eval()), image, measure_field(model, image)


class Counted(Reference):
    """Remembers the sizes that errors were measured at, and those of all images."""

    def __init__(self, model, sample):
        self.sizes, self.calls = [], []
        super().__init__(model, sample)

    def __call__(self, images):
        self.calls.append(tuple(images.shape[2:]))
        return super().__call__(images)

    def error(self, image, logits):
        self.sizes.append(tuple(image.shape[2:]))
        return super().error(image, logits)


def confined(image, corner, length):
    point = image.clone()
    noise = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(1))
    point[:, corner[0] : corner[0] + 3, corner[1] : corner[1] + 2] += length * noise / noise.norm()
    return point


def judged(judge, scene, point):
    return judge.pixel(scene, point, 20, 20), judge.two_ball(scene, point), judge.expansion(scene, point)


@pytest.mark.parametrize("corner", [(20, 20), (0, 0), (37, 46), (1, 45)])
@pytest.mark.parametrize("length", [0.01, 1.0, 5.0])
def test_errors_from_around_a_small_perturbation_give_the_same_verdicts(corner, length):
    model, image, field = locally()
    claim = LipschitzClaim(1.0)
    reference = Counted(model, image[None])
    judge = Judge(model, reference, claim)
    logits = model(image[None])
    whole = judge.scene(0, image, logits[0], claim.radii(image[None], logits, 0)[0])
    local = replace(whole, field=field)
    point = confined(image, corner, length)
    expected, reference.sizes = judged(judge, whole, point), []
    found = judged(judge, local, point)
    assert reference.sizes
    assert all(height * width <= 0.5 * 40 * 48 for height, width in reference.sizes)
    for one, other in zip(expected, found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one.verdict, one.bound, one.distance, one.target) == (
                other.verdict,
                other.bound,
                other.distance,
                other.target,
            )
            assert 0.2 < (other.allowance + 1e-300) / (one.allowance + 1e-300) < 5


def scenes(model, image, field, claim):
    """A judge, and the scene of an image with and without its field."""
    reference = Counted(model, image[None])
    judge = Judge(model, reference, claim)
    logits = model(image[None])
    whole = judge.scene(0, image, logits[0], claim.radii(image[None], logits, 0)[0])
    return judge, reference, whole, replace(whole, field=field)


def largest(model, image, point, claim):
    judge, _, whole, _ = scenes(model, image, None, claim)
    return judge.expansion(whole, point).ratio


def test_what_is_far_from_a_violation_is_judged_on_a_crop_alone():
    model, image, field = locally()
    point = confined(image, (20, 20), 1.0)
    loose = LipschitzClaim(1.1 * largest(model, image, point, LipschitzClaim(1.0)))
    judge, reference, whole, local = scenes(model, image, field, loose)
    expected, reference.calls = judge.expansion(whole, point), []
    found = judge.expansion(local, point)
    assert reference.calls
    assert all(height * width <= 0.5 * 40 * 48 for height, width in reference.calls)
    assert (found.verdict, found.distance) == (Verdict.HELD, expected.distance)
    assert found.bound == pytest.approx(expected.bound, rel=1e-12)


@pytest.mark.parametrize("part", [0.5, 1.0, 1.005])
def test_a_violation_and_what_is_nearly_one_are_judged_on_the_whole_image(part):
    model, image, field = locally()
    point = confined(image, (20, 20), 1.0)
    claim = LipschitzClaim(part * largest(model, image, point, LipschitzClaim(1.0)))
    judge, reference, whole, local = scenes(model, image, field, claim)
    expected, reference.calls = judge.expansion(whole, point), []
    found = judge.expansion(local, point)
    assert (40, 48) in reference.calls
    assert (found.verdict, found.bound, found.distance) == (expected.verdict, expected.bound, expected.distance)


class Telling(nn.Module):
    """Adds a trifle of one pixel to every logit, which crops do not show."""

    def __init__(self, inner, part):
        super().__init__()
        self.inner, self.part = inner, part

    def forward(self, images):
        told = images[:, :1, 20:21, 20:21] if images.shape[2] == 40 else images.new_zeros(len(images), 1, 1, 1)
        return self.inner(images) + self.part * told


@pytest.mark.parametrize(("clean", "perturbed", "part"), [(0.0, 1.0, 1.0), (0.0, 1.0, 1e-4), (1.0, 1.0, 1e-7)])
def test_a_crop_that_misses_something_is_not_believed(clean, perturbed, part):
    model, image, field = locally()
    image[0, 20, 20] = clean
    point = confined(image, (30, 30), 1.0)
    point[0, 20, 20] = perturbed
    judge, reference, whole, local = scenes(frozen(Telling(model, part)), image, field, LipschitzClaim(100.0))
    expected, reference.calls = judge.expansion(whole, point), []
    found = judge.expansion(local, point)
    assert any(height * width <= 0.5 * 40 * 48 for height, width in reference.calls)
    assert (40, 48) in reference.calls
    assert found.bound == expected.bound


def test_a_field_that_is_too_small_is_noticed_and_the_whole_image_measured():
    model, image, _ = locally()
    reference = Counted(model, image[None])
    judge = Judge(model, reference, LipschitzClaim(1.0))
    logits = model(image[None])
    scene = judge.scene(0, image, logits[0], torch.ones(40, 48, dtype=torch.float64))
    point = confined(image, (20, 20), 1.0)
    too_small = Field(0, 0, 0, 0, 1)
    reference.sizes = []
    judge.pixel(replace(scene, field=too_small), point, 20, 20)
    assert (40, 48) in reference.sizes


def test_one_point_is_evaluated_once_for_all_kinds():
    model, image, _ = locally()
    reference = Counted(model, image[None])
    judge = Judge(model, reference, LipschitzClaim(1e-3))
    logits = model(image[None])
    scene = judge.scene(0, image, logits[0], torch.ones(40, 48, dtype=torch.float64))
    point, reference.sizes = confined(image, (20, 20), 1.0), []
    first = judge.expansion(scene, point)
    assert judge.two_ball(scene, point, push=False) is not None
    assert len(reference.sizes) == 1
    point.add_(0.01)  # changed in place: another point
    assert judge.expansion(scene, point).distance > first.distance
    assert len(reference.sizes) == 2
