"""Attacks that could not move have found nothing: without gradients nobody is told '0 violations'."""

import pytest
import torch
from torch import nn

import attackcheck as ac
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.cli import main
from attackcheck.events import Warned
from attackcheck.models import exact
from attackcheck.report import STUCK

SIZE = 8


class Changed(nn.Module):
    """A model with known distances, seen through something."""

    def __init__(self, change, seed=3):
        super().__init__()
        self.inner, self.change = exact.affine_conv(seed=seed).float(), change

    def forward(self, x):
        return self.change(self.inner, x)


def distances(image, seed=3):
    return exact.affine_conv(seed=seed).flip_distance(image.double())[None]


def verified(change, factor, plan="quick", seed=3, **options):
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    events = []
    claim = ac.RadiusClaim(factor * distances(images[0], seed))
    report = ac.verify(
        Changed(change, seed).eval(), images, claim, plan=plan, pixels=12, on_event=events.append, **options
    )
    return report, [event.code for event in events if isinstance(event, Warned)]


def dead(model, x):
    """Flat around 0, 1/8, 2/8 ..., steep between."""
    whole = (8 * x).round()
    return model((whole + torch.relu((8 * x - whole).abs() - 0.48) * 25 * (8 * x - whole).sign()) / 8)


def backwards(z):
    """Nothing in the forward pass, a gradient in the backward pass."""
    return z - z.detach()


MASKS = {
    "rounded inputs": lambda model, x: model((16 * x).round() / 16),
    "rounded logits": lambda model, x: (8 * model(x)).round() / 8,
    "dead zones": dead,
    "decisions": lambda model, x: nn.functional.one_hot(model(x).argmax(1), 4).movedim(3, 1).float() + 0 * x.sum(),
    "saturated": lambda model, x: torch.sigmoid(25 * model(x)),
    "not finite": lambda model, x: model(x) + 0 * (0 * x).sqrt().sum(),
    "a gradient of something else": lambda model, x: model(x.detach()) + backwards(1e-3 * model(x.flip(3))),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_named_and_looked_behind(name):
    report, codes = verified(MASKS[name], 4.0)
    assert "AC107" in codes
    assert codes.count("AC107") == 1
    assert "boundary" in [attack.name for attack in report.attacks]
    assert not report.sound
    assert report.exit_code() == 1


@pytest.mark.parametrize("name", ["rounded inputs", "rounded logits", "not finite", "a gradient of something else"])
def test_a_mask_alone_is_no_alarm(name):
    report, codes = verified(MASKS[name], 0.4)
    assert "AC107" in codes
    assert report.sound
    assert report.exit_code() == 0
    assert report.attacked_count == 12


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "change",
    [
        lambda model, x: model(x),
        lambda model, x: 1e-12 * model(x),
        lambda model, x: 1e6 * model(x),
        lambda model, x: model(x.clamp(0.0, 1.0)),
        lambda model, x: torch.tanh(model(x)),
    ],
)
def test_honest_gradients_are_not_called_masked(change, seed):
    report, codes = verified(change, 0.5, seed=seed)
    assert "AC107" not in codes
    assert [attack.name for attack in report.attacks] == ["linearised"]


@pytest.mark.parametrize("plan", ["quick", "standard"])
def test_a_constant_is_no_alarm_and_no_success(plan):
    def constant(model, x):
        return 0 * model(x) + torch.arange(4.0)[None, :, None, None]

    report, codes = verified(constant, 1.0, plan)
    assert "AC107" in codes
    assert report.sound
    assert report.attacked_count == 0
    assert report.unchecked[STUCK] == 12
    assert report.exit_code() == 2
    unclaimed, codes = verified(constant, 0.0)
    assert "AC106" in codes
    assert unclaimed.exit_code() == 2
    assert STUCK not in unclaimed.unchecked


def test_what_could_not_be_checked_is_not_called_zero_violations(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat.py").write_text(
        "import torch\ndef net():\n    return lambda x: 0 * x + torch.tensor([2.0, 0.0, 1.0])[:, None, None]\n"
    )
    arguments = ["--images", "1", "--pixels", "3", "--plan", "quick", "--lipschitz", "1", "--threads", "1"]
    assert main(["verify", "--model", "flat.py:net", *arguments]) == 2
    captured = capsys.readouterr()
    assert "COULD NOT CHECK gradients are zero or misleading" in captured.out
    assert "0 violations" not in captured.out.splitlines()[-1]
    assert "AC107" in captured.err


def test_only_what_was_never_flipped_is_searched_without_gradients():
    plan = Plan("two", (Stage("linearised"), Stage("boundary", unflipped=True)))
    report, _ = verified(lambda model, x: model(x), 0.5, plan)
    assert [attack.name for attack in report.attacks] == ["linearised"]

    plan = Plan("two", (Stage("pgd", eps=(1e-6,)), Stage("boundary", unflipped=True)))
    report, _ = verified(lambda model, x: model(x), 0.5, plan)
    counts = {attack.name: (attack.attacked, attack.flipped) for attack in report.attacks}
    assert counts == {"pgd": (12, 0), "boundary": (12, 12)}


def test_flat_at_the_data_and_steep_a_little_off_is_found():
    def shell(model, x):
        delta = x - CENTRE
        near = delta.flatten(1).norm(dim=1)[:, None, None, None]
        scale = torch.where(near < 0.02, 0.0, 1.0)  # nothing moves within .02 of the data
        return model(CENTRE + scale * delta)

    global CENTRE
    CENTRE = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    report, codes = verified(shell, 1.5)
    assert "AC107" in codes
    assert len([v for v in report.violations if v.kind is ac.Kind.PIXEL]) >= 6
    assert verified(shell, 0.9)[0].sound


CENTRE = torch.zeros(1)
