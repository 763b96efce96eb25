"""Objectives against definitions written out pixel by pixel."""

import pytest
import torch
from torch import Tensor

from attackcheck.attacks import ImageFlip, PixelFlip, RegionFlip
from attackcheck.attacks.objectives import LOSSES, Objective
from attackcheck.errors import InputError

B, K, H, W = 3, 5, 4, 6


def logits(seed: int) -> Tensor:
    return torch.randn((B, K, H, W), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ROWS, COLS = torch.tensor([0, 3, 2]), torch.tensor([5, 1, 0])
MASK = torch.zeros(H, W, dtype=torch.bool)
MASK[1:3, 2:5] = True


def objectives(loss: str, target: int | None = None) -> list[Objective]:
    found: list[Objective] = [RegionFlip(MASK, target, loss=loss), RegionFlip(MASK, target, 0.5, loss=loss)]
    if loss in LOSSES[:4]:
        found.append(PixelFlip(ROWS, COLS, target, loss=loss))
    if target is None:
        found += [ImageFlip(0.3, loss=loss), ImageFlip(0.5, torch.rand(H, W, dtype=torch.float64), loss=loss)]
    return found


@pytest.mark.parametrize("target", [None, 2])
def test_margins_and_successes_are_the_textbook_ones(target: int | None) -> None:
    clean, z = logits(0), logits(1)
    pixel = PixelFlip(ROWS, COLS, target).bind(clean)(z)
    region = RegionFlip(MASK, target).bind(clean)(z)
    for b in range(B):
        label = clean[b].argmax(0)

        def margin(row: int, col: int, b: int = b, label: Tensor = label) -> float:
            own = int(label[row, col]) if target is None else target
            others = max(float(z[b, k, row, col]) for k in range(K) if k != own)
            gap = float(z[b, own, row, col]) - others
            return gap if target is None else -gap

        row, col = int(ROWS[b]), int(COLS[b])
        assert float(pixel.loss[b]) == pytest.approx(margin(row, col))
        assert bool(pixel.success[b]) == (margin(row, col) < 0)
        inside = [margin(int(r), int(c)) for r, c in MASK.nonzero()]
        assert float(region.loss[b]) == pytest.approx(sum(max(m, 0) for m in inside))
        assert bool(region.success[b]) == all(m < 0 for m in inside)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_a_fraction_counts_the_cheapest_weights(fraction: float) -> None:
    clean, z = logits(0), logits(1)
    weights = torch.rand((H, W), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weights[0] = 0
    goal = ImageFlip(fraction, weights).bind(clean)(z)
    for b in range(B):
        label = clean[b].argmax(0)
        own = z[b].gather(0, label[None])[0]
        rest = z[b].scatter(0, label[None], -torch.inf).amax(0)
        pairs = sorted(
            (float(m), float(w)) for m, w in zip((own - rest).flatten(), weights.flatten(), strict=True) if w
        )
        total, share, loss = float(weights.sum()), 0.0, 0.0
        for m, w in pairs:
            if share < fraction * total * (1 - 1e-6):
                loss += w * max(m, 0)
            share += w
        assert float(goal.loss[b]) == pytest.approx(loss)
        flipped = sum(w for m, w in pairs if m < 0)
        assert bool(goal.success[b]) == (flipped >= fraction * total * (1 - 1e-6))


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_select_and_repeat(loss: str) -> None:
    clean, z = logits(0), logits(1)
    index = torch.tensor([2, 0, 0])
    for objective in objectives(loss):
        bound = objective.bind(clean)
        whole, part = bound(z), bound.rows(index)(z[index])
        torch.testing.assert_close(part.loss, whole.loss[index])
        assert torch.equal(part.success, whole.success[index])
        late = objective.rows(index).bind(clean[index])(z[index])
        torch.testing.assert_close(late.loss, whole.loss[index])


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_fall_on_the_way_to_success_and_have_finite_gradients(loss: str) -> None:
    """Moving every pixel's logits from the clean class to another lowers every loss."""
    clean = logits(0)
    label = clean.argmax(1, keepdim=True)
    rival = clean.scatter(1, label, -torch.inf).argmax(1, keepdim=True)
    shift = torch.zeros_like(clean).scatter(1, rival, 1.0).scatter(1, label, -1.0)
    gap = (clean.gather(1, label) - clean.gather(1, rival)) / 2
    for objective in objectives(loss):
        bound = objective.bind(clean)
        losses = [bound(clean + t * gap * shift).loss for t in (0.0, 0.5, 0.9)]
        assert (losses[1] < losses[0]).all()
        assert (losses[2] < losses[1]).all()
        assert bound(clean + 1.01 * gap * shift).success.all()
        assert not bound(clean).success.any()
        z = (clean + 0.1 * gap * shift).requires_grad_()
        bound(z).loss.sum().backward()
        assert z.grad is not None
        assert torch.isfinite(z.grad).all()
        assert (z.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e15])
def test_cross_entropies_do_not_feel_the_scale_of_the_logits(scale: float) -> None:
    clean, z = logits(0), logits(0) + 0.3 * logits(1)
    for loss in ("ce", "js", "dlr"):
        for objective in objectives(loss):
            plain, scaled = objective.bind(clean)(z), objective.bind(clean * scale)(z * scale)
            torch.testing.assert_close(scaled.loss, plain.loss, rtol=1e-6, atol=1e-12)


def test_candidates_aim_at_the_largest_other_logits() -> None:
    clean = logits(0)
    bound = PixelFlip(ROWS, COLS, loss="ce").bind(clean)
    found = bound.candidates(clean, 99)
    assert len(found) == K - 1
    margins = torch.stack([variant(clean).loss for variant in found])
    assert (margins.diff(dim=0) >= 0).all()
    z = clean[torch.arange(B), :, ROWS, COLS]
    gaps = z.amax(1, keepdim=True) - z
    torch.testing.assert_close(margins.sort(dim=0).values, gaps.sort(dim=1).values[:, 1:].T)
    targeted = PixelFlip(ROWS, COLS, 1).bind(clean)
    assert len(targeted.candidates(clean, 5)) == 1


def test_region_candidates_never_aim_a_pixel_at_its_own_class() -> None:
    clean = logits(0)
    found = RegionFlip(MASK).bind(clean).candidates(clean, 99)
    assert len(found) == K + 1
    assert all((variant(clean).loss > 0).all() for variant in found)


def test_targets_may_differ_by_row_and_flipped_pixels_count_as_reached() -> None:
    clean = logits(0)
    own = clean[torch.arange(B), :, ROWS, COLS].argmax(1)
    goal = PixelFlip(ROWS, COLS, own).bind(clean)(clean)
    assert goal.success.all()
    assert not PixelFlip(ROWS, COLS, (own + 1) % K).bind(clean)(clean).success.any()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: PixelFlip(ROWS, COLS, loss="hinge"), "expected a loss among"),
        (lambda: PixelFlip(ROWS, COLS, loss="segpgd"), "expected a loss among"),
        (lambda: PixelFlip(ROWS, COLS[:2]), "one shape"),
        (lambda: RegionFlip(MASK.double()), "bool mask"),
        (lambda: RegionFlip(MASK, 1, loss="js"), "no target"),
        (lambda: ImageFlip(0.0), "fraction"),
        (lambda: RegionFlip(MASK)(logits(0)), "bind"),
        (lambda: RegionFlip(MASK[:2]).bind(logits(0)), "size"),
        (lambda: PixelFlip(ROWS, COLS).bind(logits(0)[:2]), "one per pixel"),
        (lambda: PixelFlip(ROWS, COLS, loss="dlr").bind(logits(0)[:, :2]), "classes"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(make: object, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize("target", [None, 2])
def test_a_region_seen_alone_is_the_same_region(target: int | None, fraction: float) -> None:
    clean, z = logits(0), logits(1)
    several = torch.stack([MASK, MASK.roll(1, 0), MASK.roll(2, 1)])
    for mask in (MASK, several):
        whole = RegionFlip(mask, target, fraction)
        places = whole.places()
        assert places is not None
        assert len(places) == int(mask.reshape(-1, H, W).any(0).sum())
        part = whole.narrowed(places).bind(clean.flatten(2)[:, :, None, places])
        goal = part(z.flatten(2)[:, :, None, places])
        expected = whole.bind(clean)(z)
        torch.testing.assert_close(goal.loss, expected.loss)
        assert torch.equal(goal.success, expected.success)
        values = torch.rand((B, H, W), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        chosen = part.smallest(values.flatten(1)[:, None, places])
        assert torch.equal(chosen, whole.smallest(values).flatten(1)[:, None, places].to(chosen))
    assert ImageFlip().places() is None


def test_maps_of_clean_logits_are_kept_only_where_a_loss_compares_with_them() -> None:
    assert ImageFlip().bind(logits(0)).fixed().clean is None
    assert ImageFlip(loss="js").bind(logits(0)).fixed().clean is not None
    with pytest.raises(InputError, match="js"):
        ImageFlip().bind(logits(0))._shift(logits(1))
