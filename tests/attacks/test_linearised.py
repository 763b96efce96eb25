"""What is particular to attacks along rays: how far they reach, and what they cost."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attackcheck.attacks import PixelFlip, cw, ddn, fmn, linearised
from attackcheck.models import exact
from attackcheck.models.checkpoint import load_checkpoint
from attackcheck.models.datasets import load_data
from attackcheck.models.shelf import shipped


def picture(seed: int, side: int = 6) -> Tensor:
    return torch.rand((3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Saturating(nn.Module):
    """Two classes whose margin falls slower and slower: the boundary lies at `stretch` times the Newton step."""

    def __init__(self, stretch: float) -> None:
        super().__init__()
        self.stretch = stretch

    def forward(self, images: Tensor) -> Tensor:
        s = (images - 0.5).sum(1, keepdim=True)  # (B, 1, H, W); slope 1 at first, then 1/100 of the rest
        knee = 0.1
        bent = torch.where(s < knee, s, knee + (s - knee) * (1 - knee) / (self.stretch - knee))
        return torch.cat([torch.ones_like(s), bent], 1)


@pytest.mark.parametrize("stretch", [1.5, 3.0, 6.0])
def test_rays_extend_to_several_newton_steps(stretch: float) -> None:
    model = Saturating(stretch).double()
    images = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    truth = stretch / 3**0.5
    found = linearised(
        model, images, PixelFlip(torch.tensor([1]), torch.tensor([2])), search=6, iterations=0, refine=10
    )
    assert model(found)[0, :, 1, 2].argmax() == 1
    assert float((found - images).norm()) == pytest.approx(truth, rel=0.01)


def test_costs_are_as_documented() -> None:
    model, images = exact.affine_conv(classes=5), torch.stack([picture(0), picture(1)])
    objective = PixelFlip(torch.tensor([1, 2]), torch.tensor([2, 3]))
    count = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal count
        count += x.shape[0]
        return model(x)

    for attack, options, expected in (
        (linearised, {"rays": 2, "search": 6, "iterations": 5, "refine": 3}, 2 + 2 * (6 + 2) + 3 + 3),
        # an affine boundary is where it is expected, and its slope is even: nothing begins anew or leaps
        (linearised, {"search": 1, "iterations": 5, "refine": 1, "anew": 16}, 1 + 5 + 1),
        (linearised, {"search": 1, "iterations": 5, "refine": 1, "scouts": 3}, 1 + 3 + 5 + 3 * 2 + 1),
        (
            linearised,
            {"search": 2, "iterations": 5, "refine": 3, "scouts": 2, "leaps": (9,), "crossings": 4},
            2 + 2 + 3 * 2 + 5 + 2 * 2 + 3 + 4 + 2 * (10 + 13),
        ),
        (fmn, {"steps": 20, "turns": 6, "refine": 4}, 1 + 20 + 6 + 4),
        (ddn, {"steps": 20, "refine": 4}, 1 + 20 + 4),
        (cw, {"steps": 7, "searches": 3, "refine": 4}, 1 + 21 + 4),
    ):
        count = 0
        attack(counted, images, objective, **options)  # type: ignore[operator]
        assert count == 2 * expected


class Fading(nn.Module):
    """Two other classes: the margin to one fades, so that its boundary lies at 3 instead of 1; the other's lies at 1.2.

    Of every other row of the attack nothing fades.
    """

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.shown: list[Tensor] = []
        self.slope = slope

    def forward(self, images: Tensor) -> Tensor:
        return self.of(images, torch.arange(len(images)))

    def for_rows(self, index: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda images: self.of(images, index)

    def of(self, images: Tensor, index: Tensor) -> Tensor:
        assert len(index) == len(images)
        self.shown.append(index)
        fades = (index % 2 == 1)[:, None, None]  # rows that know whose they are
        ahead, side = (images[:, 0] - 0.5) * 6, (images[:, 1] - 0.5) * 6  # 36 pixels: norm 1 where all move by 1 / 6
        first = torch.where(fades & (ahead > 0.5), 0.5 + self.slope * (ahead - 0.5), ahead)
        return torch.stack([torch.ones_like(first), first, side / 1.2], 1)


@pytest.mark.parametrize("times", [3.0, 1.3, 1.1])
def test_rows_that_end_beyond_the_linearised_boundary_begin_anew(times: float) -> None:
    """From 1.15 times its distance on; at 1.1 times, the other class's boundary is no nearer."""
    model, where = Fading(0.5 / (times - 0.5)), torch.tensor([1, 2, 3])
    images = torch.full((3, 3, 6, 6), 0.5, dtype=torch.float64)
    objective = PixelFlip(where, where)
    quick = {"classes": 2, "search": 1, "iterations": 5, "refine": 1}
    short, long = 1 / 6, min(1.2, times) / 6  # one pixel alone has to move
    for anew, truth, passes in ((0, times / 6, 0), (16, long, (6 * 2 + 10 + 1) * (times > 1.15))):
        model.shown.clear()
        found = linearised(model, images, objective, anew=anew, **quick)  # type: ignore[arg-type]
        distance = (found - images).flatten(1).norm(dim=1)
        assert distance[[0, 2]].tolist() == pytest.approx([short] * 2, rel=0.01)
        assert float(distance[1]) == pytest.approx(truth, rel=0.01)
        assert (distance >= torch.tensor([short, long, short]) * (1 - 1e-9)).all()
        own = [index for index in model.shown if index.tolist() != [0, 1, 2]]
        assert sum(len(index) for index in own) == 2 * passes  # the row has company: itself
        assert all((index == 1).all() for index in own)


@pytest.mark.parametrize("leaps", [(), (7,), (7, 5, 3, 2, 4)])
@pytest.mark.parametrize(("crossings", "first"), [(0, 0), (1, 1), (3, 1), (4, 2)])
@pytest.mark.parametrize("scouts", [0, 1, 3])
def test_only_uneven_rows_leap(scouts: int, crossings: int, first: int, leaps: tuple[int, ...]) -> None:
    """Every row is crossed, a third as often as rows of many minima are besides."""
    even, uneven = exact.affine_conv(classes=2).double(), Saturating(3.0).double()
    images = torch.stack([picture(0), picture(1)])
    objective = PixelFlip(torch.tensor([1, 2]), torch.tensor([2, 3]))
    options = {"rays": 2, "scouts": scouts, "search": 2, "iterations": 8, "refine": 3}
    for model in (even, uneven):
        costs, distances = [], []
        for extra in ({}, {"leaps": leaps, "crossings": crossings}):
            count = 0

            def counted(x: Tensor, model: nn.Module = model) -> Tensor:
                nonlocal count
                count += x.shape[0]
                return model(x)  # type: ignore[no-any-return]

            found = linearised(counted, images, objective, **extra, **options)  # type: ignore[arg-type]
            costs.append(count)
            distances.append((found - images).flatten(1).norm(dim=1))
        expected = 2 * (4 + first * (10 + 13)) if leaps or crossings else 0
        if model is uneven:
            expected += 2 * sum(steps + 13 for steps in leaps) + 2 * crossings * 2 * (10 + 13)
        assert costs[1] - costs[0] == expected
        assert (distances[1] <= distances[0] * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("paths", "together"), [((5,), [2] * (5 + 13)), ((4, 9), [2] * (9 + 13)), ((7, 3, 6), [2] * (7 + 13 + 6 + 13))]
)
def test_a_single_uneven_row_never_leaps_alone(paths: tuple[int, ...], together: list[int]) -> None:
    """A batch of one is computed by another algorithm: the row would end elsewhere than beside others."""
    model, images = Saturating(3.0).double(), picture(0)[None]
    objective = PixelFlip(torch.tensor([1]), torch.tensor([2]))
    rows = []

    def counted(x: Tensor) -> Tensor:
        rows.append(x.shape[0])
        return model(x)  # type: ignore[no-any-return]

    options = {"rays": 2, "search": 2, "iterations": 4, "refine": 3}
    linearised(counted, images, objective, **options)  # type: ignore[arg-type]
    plain = len(rows)
    linearised(counted, images, objective, leaps=paths, **options)  # type: ignore[arg-type]
    assert rows[2 * plain + 4 - 1 : -1] == together  # after slopes were looked at, before the last look


class Half(Saturating):
    """Only the upper half of the pixels saturates."""

    def forward(self, images: Tensor) -> Tensor:
        bent, flat = super().forward(images), (images - 0.5).sum(1, keepdim=True)
        return torch.cat([bent[:, :, :3], torch.cat([torch.ones_like(flat), flat], 1)[:, :, 3:]], 2)


def test_paths_end_where_they_would_alone() -> None:
    """Paths of one row go at once where there is room, and one after another where most rows leap."""
    images = torch.stack([picture(seed) for seed in range(7)]) / 2
    where = torch.tensor([1, 2, 3, 4, 5, 3, 4])  # the first two saturate
    options = {"search": 2, "iterations": 4, "refine": 3, "leaps": (9, 30, 17), "rays": 2}
    model, calls, ends = Half(3.0).double(), [], []
    for rows in (range(7), range(2)):
        shown: list[int] = []

        def counted(x: Tensor, shown: list[int] = shown) -> Tensor:
            shown.append(len(x))
            return model(x)  # type: ignore[no-any-return]

        chosen = torch.tensor(rows)
        objective = PixelFlip(where[chosen], where[chosen])
        ends.append(linearised(counted, images[chosen], objective, **options))  # type: ignore[arg-type]
        calls.append(shown)
    assert torch.equal(ends[0][:2], ends[1])
    assert calls[0].count(6) == 9 + 13  # three paths of two rows until the shortest ends, and what they found turns
    assert 6 not in calls[1]


@pytest.mark.parametrize("name", ["isounet-xs", "lipnet-xs"])
def test_networks_with_certificates_hardly_ever_leap(name: str) -> None:
    """Their slopes are even; leaps cost some 600 passes a pixel and are meant for networks without constraints."""
    model, image = load_checkpoint(shipped(name)).model, load_data(None)[0].image
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(image.shape[1], (16,), generator=generator)
    columns = torch.randint(image.shape[2], (16,), generator=generator)
    shown = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal shown
        shown += len(x)
        return model(x)  # type: ignore[no-any-return]

    counts = []
    for leaps in ((), (1,)):
        shown = 0
        linearised(
            counted, image.expand(16, -1, -1, -1), PixelFlip(rows, columns), classes=3, iterations=6, leaps=leaps
        )
        counts.append(shown)
    leapt, rest = divmod(counts[1] - counts[0] - 4 * 16, 1 + 13)
    assert rest == 0
    assert leapt <= 2  # of 16
