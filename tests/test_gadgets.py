"""Certifiers on networks with known distances: every wrong formula shows, the right one never does."""

import json
import math

import pytest
import torch

import attackcheck as ac
from attackcheck import Kind
from attackcheck.attacks.plans import plan
from attackcheck.cli import main
from attackcheck.counterexample import Outcome
from attackcheck.events import Finding, Warned
from attackcheck.gadgets import FACTOR, VARIANTS, gadget, gadgets
from attackcheck.subject import Settings
from attackcheck.tally import Tally
from attackcheck.trial import trial

SUBJECT = gadget("bent")
IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def radii(model, images, lipschitz):
    """Sound: Tsuzuku et al., with a constant that holds."""
    top = model(images).topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]) / (math.sqrt(2) * lipschitz)


def without(model, images, lipschitz, number):
    """The runner-up is looked for among the other classes only."""
    logits = model(images)
    kept = [k for k in range(logits.shape[1]) if k != number % logits.shape[1]]
    if len(kept) < 2:
        return torch.zeros_like(logits[:, 0])
    top = logits[:, kept].topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]) / (math.sqrt(2) * lipschitz)


def without_absent(model, images, lipschitz):
    logits = model(images)
    absent = [k for k in range(logits.shape[1]) if not (logits.argmax(dim=1) == k).any()]
    logits[:, absent] = -10.0
    return radii(lambda _: logits, images, lipschitz)


def nearest_margin(model, images, lipschitz):
    logits, rows = model(images), model[-1].weight.flatten(1)
    first, second = logits.topk(2, dim=1).indices.unbind(1)
    value = logits.topk(2, dim=1).values
    return (value[:, 0] - value[:, 1]) / (rows[first] - rows[second]).norm(dim=-1).clamp_min(1e-9)


def swapped(found):
    return found.mT if found.shape[1] == found.shape[2] else found


def tempered(model, images, lipschitz):
    return radii(lambda x: (10 * model(x)).softmax(dim=1), images, lipschitz)


WRONG = {
    "the square root is forgotten": lambda m, x, c: radii(m, x, c) * math.sqrt(2),
    "L squared": lambda m, x, c: radii(m, x, c * c),
    "the root of L": lambda m, x, c: radii(m, x, math.sqrt(c)),
    "no L": lambda m, x, c: radii(m, x, 1.0 + 0.0 * c),
    "0 to 255": lambda m, x, c: 255 * radii(m, x, c),
    "normalised units": lambda m, x, c: radii(m, x, c) / 0.224,
    "no background": lambda m, x, c: without(m, x, c, 0),
    "no void": lambda m, x, c: without(m, x, c, -1),
    "absent classes": without_absent,
    "nearest margin instead of nearest class": nearest_margin,
    "mixed rows": lambda m, x, c: radii(m, x, c).flip(0),
    "swapped axes where the shape allows": lambda m, x, c: swapped(radii(m, x, c)),
    "swapped axes in a reshape": lambda m, x, c: radii(m, x, c).mT.reshape(len(x), *x.shape[2:]),
    "shifted": lambda m, x, c: radii(m, x, c).roll(1, 2),
    "per image": lambda m, x, c: torch.ones_like(radii(m, x, c)) * radii(m, x, c).mean(dim=(1, 2), keepdim=True),
    "rounded up in half precision": lambda m, x, c: (radii(m, x, c) * (1 + 2**-11)).half(),
    "never below a thousandth": lambda m, x, c: radii(m, x, c).clamp_min(1e-3),
    "tempered": tempered,
    "a tenth of a percent": lambda m, x, c: 1.001 * radii(m, x, c),
}  # fmt: skip
RIGHT = {
    "plain": radii,
    "float64": lambda m, x, c: radii(lambda y: m(y).double(), x, c),
    "a divisor of 2 L": lambda m, x, c: radii(m, x, c * math.sqrt(2)),
    "softmax": lambda m, x, c: radii(lambda y: m(y).softmax(dim=1), x, c),
    "numpy": lambda m, x, c: radii(m, x, c).detach().numpy(),
    "abstains": lambda m, x, c: torch.zeros_like(radii(m, x, c)),
}


def verified(certifier):
    events = []
    claim = ac.RadiusClaim(certifier, lipschitz=SUBJECT.lipschitz)
    report = ac.verify(SUBJECT.network(), IMAGES, claim, plan="quick", pixels=2, on_event=events.append)
    return report, [event.code for event in events if isinstance(event, Warned)]


@pytest.mark.parametrize("tried", list(gadgets()), ids=lambda g: g.name)
def test_the_known_distance_is_that_of_the_network(tried):
    for found in (tried, *(vary(tried) for vary in VARIANTS)):
        network, distances = found.network().double(), found.distances()
        clean = network(found.images.double()).argmax(dim=1)
        assert found.images.min() >= 0
        assert found.images.max() <= 1
        worst = divmod(int(torch.where(distances > 0, distances, math.inf)[0].argmin()), distances.shape[2])
        far = divmod(int(distances[0].argmax()), distances.shape[2])
        for row, column in {worst, far}:
            delta = found.flip(0, row, column).double() - found.images[0].double()
            assert delta.norm() == pytest.approx(float(distances[0, row, column]), rel=1e-4, abs=2e-7)
            for factor, flipped in ((1 + 1e-4, True), (1 - 1e-4, False)):
                # an absolute step beside the relative one: the stored point is rounded to float32
                point = found.images[0].double() + delta * (1 + (factor - 1) * max(1, 3e-3 / float(delta.norm())))
                assert (network(point[None]).argmax(dim=1)[0, row, column] != clean[0, row, column]) == flipped
        # no random direction is shorter, nor stretches the logits more
        noise = torch.randn(200, *found.images.shape[1:], generator=torch.Generator().manual_seed(1)).double()
        unit = noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
        step = 0.999 * torch.where(distances > 0, distances, 1.0).min()
        moved = network(found.images[:1].double() + step * unit)
        assert ((moved.argmax(dim=1) == clean[0]) | (distances[0] == 0)).all()
        change = (moved - network(found.images[:1].double())).flatten(1).norm(dim=1)
        assert (change <= found.lipschitz * step * (1 + 1e-6)).all()


def test_variants_are_what_they_say():
    plain = gadget("neighbours")
    same, smaller, other, mirror = (vary(plain) for vary in VARIANTS)
    distances = plain.distances()
    assert torch.allclose(same.distances(), distances)
    assert same.lipschitz == pytest.approx(FACTOR * plain.lipschitz)
    assert torch.allclose(smaller.distances(), distances / FACTOR)
    assert torch.allclose(other.distances(), distances.flip(0))
    assert torch.allclose(mirror.distances(), distances.flip(2))
    assert mirror.name == "neighbours@mirrored"
    assert torch.equal(gadget("gadget:neighbours@mirrored").images, mirror.images)
    with pytest.raises(ac.InputError, match="expected a gadget among"):
        gadget("neighbours@nowhere")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_formula_shows_on_a_gadget(name):
    claim = ac.RadiusClaim(WRONG[name], lipschitz=SUBJECT.lipschitz)
    events = list(trial(claim, Settings(plan("quick")), Tally(255)))
    found = [event.violation for event in events if isinstance(event, Finding)]
    assert found
    assert all(v.kind is Kind.GADGET and v.verdict is ac.Verdict.VIOLATED for v in found)
    assert all(v.ratio > 1 + 1e-5 for v in found)
    assert len({v.image_name for v in found}) == len(found)


@pytest.mark.parametrize("name", RIGHT)
def test_a_sound_formula_never_alarms(name):
    report, codes = verified(RIGHT[name])
    assert report.sound, report.violations
    if name != "softmax":  # sound, yet smaller where logits are large: said, and no more
        assert "AC122" not in codes
    assert "AC121" not in codes
    if name in ("plain", "float64", "numpy"):
        assert report.limit.gadget == pytest.approx(1.0, abs=1e-4)


def test_a_relation_that_breaks_is_a_warning_not_a_violation():
    report, codes = verified(lambda m, x, c: radii(m, x, c) / (1 + c))
    assert report.sound
    assert "AC122" in codes
    _, codes = verified(lambda m, x, c: radii(m, x, c) * (0.5 + 0.5 * (x.mean() > x[-1:].mean())))
    assert "AC122" in codes  # the rest of the batch
    asked = iter(range(10**6))
    _, codes = verified(lambda m, x, c: radii(m, x, c) * (1 - 0.1 * (next(asked) % 2)))
    assert "AC122" in codes  # asked twice
    _, codes = verified(lambda m, x, c: torch.where(radii(m, x, c) == 0, math.inf, radii(m, x, c)))
    assert "AC123" in codes  # a tie has distance 0; the judge cannot decide it


def test_a_function_of_images_is_asked_again_and_in_a_batch():
    network, events = SUBJECT.network(), []
    asked = iter(range(10**6))
    for certifier in (
        lambda x: radii(network, x, SUBJECT.lipschitz) * (1 - 0.1 * (next(asked) % 2)),
        lambda x: radii(network, x, SUBJECT.lipschitz) / len(x),
    ):
        events.clear()
        ac.verify(network, IMAGES, ac.RadiusClaim(certifier), plan="quick", pixels=2, on_event=events.append)
        assert "AC122" in {getattr(event, "code", None) for event in events}


def test_a_certifier_that_fails_on_gadgets_costs_nothing():
    def particular(model, images, lipschitz):
        if images.shape[2:] != IMAGES.shape[2:]:
            raise RuntimeError("images of 4x4 only")
        return radii(model, images, lipschitz)

    report, codes = verified(particular)
    assert report.sound
    assert report.attacked_count == 4
    assert "AC121" in codes
    with pytest.raises(ac.InputError, match="the certifier failed: AttributeError"):
        verified(lambda m, x, c: m.backbone(x) / c)


def test_what_a_certifier_gets_wrong_is_kept_when_it_then_fails():
    def certifier(model, images, lipschitz):
        if images.shape == IMAGES[:1].shape:
            raise RuntimeError("out of luck")
        return 2 * radii(model, images, lipschitz)

    report, _ = verified(certifier)
    assert report.failed
    assert {v.kind for v in report.violations} == {Kind.GADGET}
    assert report.exit_code() == 1


def test_the_model_given_and_its_frozen_copy_must_agree():
    def certifier(model, images, lipschitz):  # goes by a name that a frozen copy no longer has
        return radii(model, images, lipschitz) * (0.5 if hasattr(model[0], "parametrizations") else 1.0)

    network = SUBJECT.network()
    torch.nn.utils.parametrizations.weight_norm(network[0])
    events = []
    claim = ac.RadiusClaim(certifier, lipschitz=SUBJECT.lipschitz)
    ac.verify(network, IMAGES, claim, plan="quick", pixels=2, on_event=events.append)
    assert any("itself instead of the frozen copy" in getattr(event, "message", "") for event in events)


def test_a_constant_for_whom_it_is_meant():
    with pytest.raises(ac.InputError, match="got none"):
        ac.RadiusClaim(radii)
    for other in (torch.zeros(1, 2, 2), lambda x: x[:, 0]):
        with pytest.raises(ac.InputError, match="only for a certifier"):
            ac.RadiusClaim(other, lipschitz=1.0)
    with pytest.raises(ac.InputError, match="positive"):
        ac.RadiusClaim(radii, lipschitz=0.0)


CERTIFIER = """
import math

def {name}(model, images, lipschitz):
    top = model(images).topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]) / ({divisor} * lipschitz)

def of_images(images):
    return images[:, 0] * 0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.py").write_text(CERTIFIER.format(name="certify", divisor="1.0"))
    (tmp_path / "right.py").write_text(CERTIFIER.format(name="certify", divisor="math.sqrt(2)"))
    return tmp_path


QUICK = ["--images", "1", "--pixels", "2", "--plan", "quick", "--threads", "1"]


def test_a_gadget_replays_on_the_command_line(folder, capsys):
    wrong = ["--radii", "wrong.py:certify", "--lipschitz", "1.000003"]
    assert main(["verify", *QUICK, *wrong, "--json", "report.json"]) == 1
    shown = capsys.readouterr().out
    assert "GADGET: on a network with known distances" in shown
    assert " --radii wrong.py:certify" in shown
    report = json.loads((folder / "report.json").read_text())
    worst = next(v for v in report["violations"] if v["kind"] == "GADGET")
    assert worst["ratio"] == pytest.approx(math.sqrt(2), rel=1e-3)
    assert worst["image_name"].startswith("gadget:")
    path = worst["counterexample"]
    assert main(["replay", path]) == 1
    assert "GADGET in image" in capsys.readouterr().out
    assert main(["replay", path, *wrong]) == 1
    assert main(["replay", path, "--radii", "right.py:certify", "--lipschitz", "1.000003"]) == 0
    assert "fixed" in capsys.readouterr().out
    example = ac.load_counterexample(folder / path)
    network = gadget(example.subject["model"]).network()
    assert ac.replay(example, network).outcome is Outcome.REPRODUCED


def test_the_right_certifier_says_what_it_was_tried_on(folder, capsys):
    assert main(["verify", *QUICK, "--radii", "right.py:certify", "--lipschitz", "1.000003"]) == 0
    assert "held on gadgets" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--radii", "right.py:certify"], "expected --lipschitz L beside --radii right.py:certify"),
        (["--radii", "right.py:of_images", "--lipschitz", "1"], "got both"),
        (["--radii", "radii.npz", "--lipschitz", "1"], "got both"),
        (["--radii", "right.py:certify", "--lipschitz", "1", "--scope", "pixel"], "--scope"),
        (["--radii", "right.py:certify", "--lipschitz", "-1"], "above 0"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(folder, capsys, options, message):
    assert main(["verify", *QUICK, *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_measures_are_certified_by_a_certifier_of_three_parameters():
    claim = ac.RadiusClaim(radii, lipschitz=SUBJECT.lipschitz)
    table = ac.certify(SUBJECT.network(), IMAGES, None, claim, epsilons=[0.01])
    assert table.rows
