"""The search without gradients against closed forms, on models whose gradients are zero everywhere."""

import pytest
import torch
from torch import nn

from attackcheck import InputError
from attackcheck.attacks import ImageFlip, PixelFlip, boundary, registry
from attackcheck.models import exact

PIXELS = 24


class Stairs(nn.Module):
    """A model of quantised inputs or outputs; no gradient passes."""

    def __init__(self, model, inputs=0, outputs=0):
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, x):
        if self.inputs:
            x = (x * self.inputs).round() / self.inputs
        z = self.model(x)
        return (z * self.outputs).round() / self.outputs if self.outputs else z


def generators(seed=0):
    return [torch.Generator().manual_seed(seed + number) for number in range(PIXELS)]


def attack(net, seed=0, **options):
    """Distances, success, and the pixels that were attacked on one random image."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.rand(3, 9, 11, generator=draw)
    rows, columns = torch.randint(0, 9, (PIXELS,), generator=draw), torch.randint(0, 11, (PIXELS,), generator=draw)
    images = image.expand(PIXELS, *image.shape).contiguous()
    objective = PixelFlip(rows, columns, options.pop("target", None)).bind(net(images))
    found = boundary(net, images, objective, generator=generators(seed), **options)
    return (found - images).flatten(1).norm(dim=1).double(), objective(net(found)).success, image, rows, columns, found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "inputs", "outputs"), [("affine_conv", 16, 0), ("affine_conv", 0, 32), ("relu_pixel", 16, 0)]
)
def test_stairs_are_seen_through(name, inputs, outputs, seed):
    make = getattr(exact, name)
    truth = make(seed=seed)
    distance, success, image, rows, columns, _ = attack(Stairs(make(seed=seed).float(), inputs, outputs), seed)
    smooth = truth.flip_distance((image * inputs).round() / inputs if inputs else image.double())[rows, columns]
    assert success.float().mean() >= 0.95
    assert (distance[success] <= 1.1 * smooth[success]).double().mean() > 0.6
    assert distance[success].median() <= 1.05 * smooth[success].median()


@pytest.mark.parametrize("name", ["affine_conv", "affine_pixel", "folded_pixel", "relu_pixel"])
def test_never_below_and_near_the_closed_form_of_smooth_models(name):
    make = getattr(exact, name)
    distance, success, image, rows, columns, _ = attack(make(seed=2).float())
    truth = make(seed=2).flip_distance(image.double())[rows, columns]
    assert success.all()
    assert (distance >= truth * (1 - 1e-5))[success].all()
    assert (distance <= 1.1 * truth)[success].double().mean() >= 0.75


def test_decisions_alone_are_enough():
    class Hard(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(inner(x).argmax(dim=1), 4).movedim(3, 1).float()

    inner = exact.affine_conv(seed=3).float()
    distance, success, image, rows, columns, _ = attack(Hard())
    truth = exact.affine_conv(seed=3).flip_distance(image.double())[rows, columns]
    assert success.all()
    assert (distance / truth).median() < 1.6


def test_a_target_is_reached():
    model = exact.affine_conv(classes=3, seed=2).float()
    net = Stairs(model, 16)
    _, success, _, rows, columns, found = attack(net, target=1)
    row = torch.arange(PIXELS)
    assert success.float().mean() > 0.9
    assert (net(found).argmax(dim=1)[row, rows, columns] == 1)[success].all()


def test_rows_are_independent_and_repeatable():
    net = Stairs(exact.affine_conv(seed=4).float(), 16)
    image = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(1))
    rows, columns = torch.tensor([1, 4, 5]), torch.tensor([2, 6, 0])

    def run(chosen):
        images = image.expand(len(chosen), *image.shape).contiguous()
        objective = PixelFlip(rows[chosen], columns[chosen]).bind(net(images))
        seeds = [torch.Generator().manual_seed(number) for number in chosen]
        return boundary(net, images, objective, generator=seeds, directions=2, rounds=1)

    assert torch.equal(run([0, 1, 2]), run([0, 1, 2]))
    assert torch.allclose(run([0, 1, 2])[:2], run([0, 1]), atol=1e-6)


def test_the_box_and_the_costs_are_kept():
    count = [0]

    class Counted(nn.Module):
        def forward(self, x):
            count[0] += len(x)
            assert not torch.is_grad_enabled()
            return net(x)

    net = Stairs(exact.affine_conv(seed=4).float(), 16)
    draw = torch.Generator().manual_seed(3)
    images = torch.rand(2, 3, 6, 6, generator=draw)
    objective = PixelFlip(torch.tensor([1, 2]), torch.tensor([3, 4])).bind(net(images))
    found = boundary(Counted(), images, objective, box=(0.0, 1.0))
    assert found.min() >= 0
    assert found.max() <= 1
    assert count[0] / 2 <= 450


def test_a_constant_comes_back_unflipped_and_finite():
    class Constant(nn.Module):
        def forward(self, x):
            return x.new_zeros(len(x), 2, *x.shape[2:]) + torch.tensor([1.0, 0.0])[:, None, None]

    _, success, image, *_, found = attack(Constant())
    assert not success.any()
    assert torch.equal(found, image.expand_as(found))


def test_sets_are_refused():
    assert registry.get("boundary").objectives == {"pixel"}
    with pytest.raises(InputError, match="single pixels"):
        boundary(nn.Identity(), torch.rand(1, 3, 2, 2), ImageFlip(1.0))
