"""Health checks: every code is explained, and sick models of every kind are caught."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import attackcheck as ac
from attackcheck import arithmetic, preflight
from attackcheck.events import Warned
from attackcheck.models import exact

PAGE = Path(__file__).parent.parent / "docs" / "preflight.md"
IMAGES = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_every_code_has_its_section_and_every_section_its_code():
    page = PAGE.read_text()
    headings = dict(re.findall(r"^## (AC\d+): (.+)$", page, flags=re.MULTILINE))
    assert headings == preflight.CODES
    assert list(headings) == sorted(headings)
    for section in page.split("\n## ")[1:]:
        assert section.count("**Raised if**") == 1, section[:5]
        assert section.count("**What to do**") == 1, section[:5]


def test_every_code_in_the_sources_is_listed():
    used = set()
    for file in Path(ac.__file__).parent.rglob("*.py"):
        used |= set(re.findall(r"AC1\d\d", file.read_text()))
    assert used - {"AC101", "AC1"} <= set(preflight.CODES)
    assert set(preflight.CODES) <= used | {"AC101"}


def codes(model, images=IMAGES, claim=None):
    events = []
    claim = ac.LipschitzClaim(10.0) if claim is None else claim
    ac.verify(model, images, claim, plan="quick", pixels=2, on_event=events.append)
    return {event.code for event in events if isinstance(event, Warned)}


class Mixing(nn.Module):
    """One position of a batch depends on the others."""

    def __init__(self, position):
        super().__init__()
        self.inner, self.position = exact.affine_pixel(seed=0).float(), position

    def forward(self, x):
        z = self.inner(x)
        if len(x) > 1:
            z[self.position] = z[self.position] + 0.5 * z.mean(dim=0).roll(1, 0)
        return z


@pytest.mark.parametrize("position", [0, 1, -1])
def test_a_single_position_that_depends_on_the_batch_is_caught(position):
    with pytest.raises(ac.InputError, match="AC105"):
        codes(Mixing(position).eval())
    assert "AC105" not in codes(exact.affine_pixel(seed=0).float())


def test_a_part_in_training_mode_is_caught():
    for part in (nn.Dropout(0.5), nn.BatchNorm2d(3)):
        model = nn.Sequential(part, nn.Conv2d(3, 3, 1)).eval()
        assert "AC103" not in codes(model)
        part.train()
        with pytest.raises(ac.InputError, match="AC103"):
            codes(model)
        assert part.training  # the user's model is as it was


def test_randomness_is_caught_in_evaluation_mode():
    class Noisy(nn.Module):
        def forward(self, x):
            return inner(x) + 0.01 * torch.rand_like(x[:, :1])

    inner = exact.affine_pixel(seed=0).float()
    with pytest.raises(ac.InputError, match="AC104"):
        codes(Noisy().eval())


def test_claims_without_reason_are_named():
    report = ac.verify(exact.affine_pixel(seed=0).float(), IMAGES, ac.RadiusClaim(torch.zeros(1, 4, 4)), plan="quick")
    assert report.exit_code() == 2
    assert "AC106" in codes(exact.affine_pixel(seed=0).float(), claim=ac.RadiusClaim(torch.zeros(1, 4, 4)))


def test_images_scaled_twice_are_named():
    assert "AC125" in codes(exact.affine_pixel(seed=0).float(), IMAGES / 255)
    assert "AC125" not in codes(exact.affine_pixel(seed=0).float())
    with pytest.raises(ac.InputError, match="AC109"):
        codes(exact.affine_pixel(seed=0).float(), IMAGES * 255)


def test_ties_with_a_radius_are_named():
    model = exact.AffinePixel(torch.eye(3))
    assert "AC123" in codes(model, torch.full((1, 3, 2, 2), 0.5), ac.RadiusClaim(torch.ones(1, 2, 2)))
    assert "AC123" not in codes(model, IMAGES, ac.RadiusClaim(torch.full((1, 4, 4), 1e-6)))


def test_shortcuts_of_the_hardware_are_off_inside_and_back_on_outside(monkeypatch):
    before = arithmetic.inexact()
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("medium")
    try:
        outside = arithmetic.inexact()
        assert {"flushing of denormal numbers", "products below float32"} <= set(outside)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with arithmetic.exact_arithmetic():
                assert arithmetic.inexact() == []
                assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
            assert torch.is_autocast_enabled("cpu")
        assert arithmetic.inexact() == outside
        assert torch.get_float32_matmul_precision() == "medium"
        assert "AC124" not in codes(exact.affine_pixel(seed=0).float())
        # what does not obey is read back
        monkeypatch.setattr(torch, "set_flush_denormal", lambda _: True)
        assert "AC124" in codes(exact.affine_pixel(seed=0).float())
    finally:
        monkeypatch.undo()
        torch.set_flush_denormal(False)
        torch.set_float32_matmul_precision("highest")
    assert arithmetic.inexact() == before
