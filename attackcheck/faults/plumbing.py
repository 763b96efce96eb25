"""Right radii, given to the wrong pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.certifiers import certified, margin_over_runner_up, stored
from attackcheck.faults.networks import (
    Tiled,
    balanced,
    classifier,
    isometric,
    orthogonal_convolution,
    patches,
    pictures,
    random,
    true_radii,
)
from attackcheck.faults.norms import product_of_norms
from attackcheck.faults.proofs import flipped, within_radii, within_rows
from attackcheck.models.layers import MaxMin

__all__ = ["CASES"]


def _network(seed: int, count: int = 1, height: int = 12, width: int = 12) -> tuple[nn.Sequential, Tensor, float]:
    g = random(seed, "plumbing")
    images = pictures(g, count, height=height, width=width)
    model = isometric(images, g)
    return model, images, product_of_norms(model, images[0]) * (1 + 1e-6)


@control(Family.PLUMBING, "stored radii of each image in its place, on a map that is not square", prove=within_rows)
def stored_radii(seed: int) -> Built:
    """The twin of most cases here."""
    model, images, lipschitz = _network(seed, 2, 12, 16)
    return Built(model, stored(true_radii(model, images, lipschitz), "stored"), images)


@fault(Family.PLUMBING, "height and width are swapped in the stored radii of square images", prove=flipped)
def axes_swapped(seed: int) -> Built:
    """No shape complains."""
    model, images, lipschitz = _network(seed)
    return Built(model, stored(true_radii(model, images, lipschitz).mT, "stored as (W, H)"), images)


@scaled_fault(
    Family.PLUMBING,
    "the map of radii is shifted by some pixels",
    prove=flipped,
    knob="pixels",
    severities=(3, 2, 1),
)
def map_shifted(seed: int, severity: float) -> Built:
    """A crop or a padding that one side does and the other does not."""
    model, images, lipschitz = _network(seed)
    radii = true_radii(model, images, lipschitz).roll((int(severity),) * 2, (1, 2))
    return Built(model, stored(radii, "stored"), images)


@fault(Family.PLUMBING, "radii of mirrored images are not mirrored back", prove=flipped)
def not_mirrored_back(seed: int) -> Built:
    """Test-time augmentation."""
    model, images, lipschitz = _network(seed)
    return Built(model, stored(true_radii(model, images, lipschitz).flip(2), "of the mirrored image"), images)


@fault(Family.PLUMBING, "the radii of one image are given to another image of its batch", prove=flipped)
def rows_mixed(seed: int) -> Built:
    """Sorted by size for speed and not sorted back."""
    model, images, lipschitz = _network(seed, 2)
    return Built(model, stored(true_radii(model, images, lipschitz).flip(0), "stored"), images)


@fault(Family.PLUMBING, "the certifier reads the image's channels in the other order", prove=flipped)
def channels_in_the_other_order(seed: int) -> Built:
    """BGR here, RGB there."""
    model, images, lipschitz = _network(seed)

    def of_reversed_channels(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
        return margin_over_runner_up(model, images.flip(1), lipschitz)

    return Built(model, certified(of_reversed_channels, model, lipschitz), images)


def _low_resolution(seed: int, mode: str) -> Built:
    g = random(seed, "coarse")
    images = pictures(g, height=16, width=16)
    layers = [patches(3, g), MaxMin(), orthogonal_convolution(12, g), MaxMin(), classifier(12, g, 5)]
    coarse = balanced(nn.Sequential(*layers), images)
    model = nn.Sequential(*coarse, nn.Upsample(scale_factor=2, mode="nearest")).eval()
    radii = true_radii(coarse, images, product_of_norms(coarse, images[0]) * (1 + 1e-6))
    large = F.interpolate(radii[:, None], scale_factor=2, mode=mode)[:, 0]
    return Built(model, stored(large, f"{mode} interpolation of the radii"), images)


@fault(Family.PLUMBING, "radii of a smaller map are interpolated to the labels' size, as if they were pictures",
       prove=flipped)  # fmt: skip
def radii_interpolated(seed: int) -> Built:
    """Beside a boundary a weak pixel borrows from its strong neighbour."""
    return _low_resolution(seed, "bilinear")


@control(Family.PLUMBING, "radii of a smaller map are repeated as its logits are", prove=within_radii)
def radii_repeated(seed: int) -> Built:
    """The twin."""
    return _low_resolution(seed, "nearest")


def _tiled(seed: int, merged_by_maximum: bool) -> Built:
    g = random(seed, "tiles")
    images = pictures(g, width=16)
    inner = isometric(images[..., :12], g)
    model = Tiled(inner, 12, 8).eval()
    lipschitz = product_of_norms(inner, images[0, :, :, :12]) * (1 + 1e-6)
    with torch.no_grad():
        left, right = (margin_over_runner_up(nn.Identity(), tile, lipschitz) for tile in model.tiles(images))
    radii = torch.maximum(left, right) if merged_by_maximum else true_radii(model, images, lipschitz)
    return Built(model, stored(radii, "tiles"), images)


@fault(Family.PLUMBING, "where tiles overlap logits are averaged, and of two radii the larger one is kept",
       prove=flipped)  # fmt: skip
def tiles_merged_by_maximum(seed: int) -> Built:
    """Where the tiles disagree the mean is undecided."""
    return _tiled(seed, merged_by_maximum=True)


@control(Family.PLUMBING, "where tiles overlap the radius is that of the averaged logits", prove=within_radii)
def tiles_averaged(seed: int) -> Built:
    """The twin: a mean of maps with constant L has constant L, pixel by pixel."""
    return _tiled(seed, merged_by_maximum=False)


CASES = (
    stored_radii,
    axes_swapped,
    map_shifted,
    not_mirrored_back,
    rows_mixed,
    channels_in_the_other_order,
    radii_interpolated,
    radii_repeated,
    tiles_merged_by_maximum,
    tiles_averaged,
)
