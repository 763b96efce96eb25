"""Receptive fields against networks whose fields are known, and crops against the whole image."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attackcheck.models import exact
from attackcheck.receptive import Field, agrees, measure_field, windows

TOLERANCE = torch.full((4,), 1e-4)


class Strided(nn.Module):
    """A strided convolution, a 3x3 one on the coarse grid, and each coarse pixel back to stride x stride pixels."""

    def __init__(self, stride, padding_mode="zeros"):
        super().__init__()
        self.stride = stride
        self.down = nn.Conv2d(3, 8, stride | 1, stride, padding=stride // 2, padding_mode=padding_mode)
        self.wide = nn.Conv2d(8, 4, 3, padding=1, padding_mode=padding_mode)
        self.direct = nn.Conv2d(3, 4, 3, padding=1, padding_mode=padding_mode)
        seed_weights(self)

    def forward(self, x):
        coarse = self.wide(self.down(x).relu())
        fine = coarse.repeat_interleave(self.stride, dim=2).repeat_interleave(self.stride, dim=3)
        return fine[:, :, : x.shape[2], : x.shape[3]] + self.direct(x)


class WithMean(nn.Module):
    """Every pixel sees the mean of the whole image, a little."""

    def __init__(self, weight):
        super().__init__()
        self.inner, self.weight = exact.affine_conv(seed=3).float(), weight

    def forward(self, x):
        return self.inner(x) + self.weight * x.mean(dim=(1, 2, 3), keepdim=True) * torch.arange(4.0)[:, None, None]


class LongArm(nn.Module):
    """One connection of small weight to a pixel far to the left, beside a 3x3 convolution."""

    def __init__(self, arm, weight=1e-3):
        super().__init__()
        self.inner, self.arm, self.weight = exact.affine_conv(seed=3).float(), arm, weight

    def forward(self, x):
        far = F.pad(x, (self.arm, 0))[..., : x.shape[3]].mean(dim=1, keepdim=True)
        return self.inner(x) + self.weight * far * torch.arange(4.0)[:, None, None]


def seed_weights(model):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    model.eval().requires_grad_(False)


def picture(height, width, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kernel", "reach"), [(1, 0), (3, 1), (7, 3)])
def test_the_field_of_one_convolution(kernel, reach):
    model = exact.affine_conv(kernel=kernel).float()
    assert measure_field(model, picture(96, 100)) == Field(reach, reach, reach, reach, 1)


def test_fields_need_not_be_symmetric():
    model = nn.Sequential(nn.ZeroPad2d((5, 0, 0, 2)), nn.Conv2d(3, 4, (3, 6)))
    assert measure_field(model, picture(96, 100)) == Field(0, 2, 5, 0, 1)


@pytest.mark.parametrize("stride", [2, 3, 4, 8])
def test_strides_are_found(stride):
    field = measure_field(Strided(stride), picture(96, 120))
    assert field.stride == stride
    # A coarse pixel sees its neighbours, whose kernels begin half a stride before them; up to two cells more where the
    # block that is measured around is no whole number of cells.
    reach = stride + stride // 2
    assert reach <= field.up <= reach + (2 * stride if 32 % stride else 0)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(96, 96), (97, 131), (64, 203)])
def test_crops_show_every_pixel_of_the_whole_image(stride, size):
    model = Strided(stride)
    image = picture(*size)
    crops = windows(measure_field(model, image), *size)
    assert crops.height * crops.width <= 0.5 * size[0] * size[1]
    logits = model(image[None])[0]
    rows, columns = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1]))[:: 1 + 6 * stride].unbind(1)
    part = model(crops.cut(image, rows, columns))
    inner_rows, inner_columns = crops.inside(rows, columns)
    shown = part[torch.arange(len(rows)), :, inner_rows, inner_columns]
    torch.testing.assert_close(shown, logits[:, rows, columns].T, rtol=1e-5, atol=1e-5)
    assert agrees(model, image, logits, crops, tolerance=TOLERANCE, scale=0.1, seed=0)


def test_a_pasted_crop_is_the_image_again():
    image = picture(70, 90)
    crops = windows(Field(3, 4, 5, 6, 2), 70, 90)
    rows, columns = torch.tensor([0, 40, 69]), torch.tensor([89, 40, 0])
    part = crops.cut(image, rows, columns)
    assert torch.equal(crops.pasted(image, rows, columns, part), image)
    changed = crops.pasted(image, rows, columns, part + 1)
    assert int((changed != image).any(dim=0).sum()) == 3 * crops.height * crops.width


@pytest.mark.parametrize(
    "model",
    [
        Strided(1, "circular"),
        Strided(2, "circular"),
        WithMean(1e-2),
        LongArm(150),
        LongArm(400, 1e-2),
        nn.Sequential(exact.affine_conv(seed=1).float(), nn.InstanceNorm2d(4)),
        nn.Sequential(exact.affine_conv(seed=1).float(), nn.AdaptiveAvgPool2d(48), nn.Upsample((96, 480))),
    ],
    ids=["circular", "circular, strided", "mean", "long arm", "longer arm", "instance norm", "adaptive pooling"],
)
def test_what_depends_on_the_whole_image_is_not_cropped(model):
    image = picture(96, 480)
    field = measure_field(model, image)
    crops = None if field is None else windows(field, 96, 480)
    logits = model(image[None])[0]
    assert crops is None or not agrees(model, image, logits, crops, tolerance=TOLERANCE, scale=0.1, seed=0)


def test_models_of_one_size_or_without_gradient_are_not_cropped():
    image = picture(96, 96)

    def fixed(x):
        return x + torch.zeros(3, 96, 96)

    assert measure_field(fixed, image) is None
    assert measure_field(lambda x: (x * 8).round() / 8, image) is None
    assert measure_field(lambda x: x.detach(), image) is None


def test_crops_that_would_save_little_are_not_made():
    assert windows(Field(30, 30, 30, 30, 8), 64, 128) is None
    small = windows(Field(30, 30, 30, 30, 8), 128, 256)
    assert (small.height, small.width) == (72, 72)
    assert windows(Field(0, 0, 0, 0, 1), 64, 64).height == 16
