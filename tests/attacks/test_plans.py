"""Plans and the registry: the built-in ones run, and mistakes in files are named."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attackcheck.attacks import ImageFlip, PixelFlip, Plan, RegionFlip, Stage, plan, plan_of_attacks, registry
from attackcheck.errors import InputError
from attackcheck.models import exact

BUILT_IN = ("quick", "standard", "thorough")


def test_every_attack_has_one_signature() -> None:
    for name in registry.names():
        attack = registry.get(name)
        parameters = list(inspect.signature(attack.function).parameters.values())
        first = ["model", "images"] if "map" in attack.objectives else ["model", "images", "objective"]
        assert [p.name for p in parameters[: len(first)]] == first
        assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[len(first) :])
        assert {"box", "generator"} <= {p.name for p in parameters}
        assert (attack.function.__doc__ or "").strip()


def test_unknown_attacks_are_answered_with_the_choices() -> None:
    with pytest.raises(InputError, match=r"linearised, ddn, .*did you mean linearised"):
        registry.get("linearized")


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_plans_are_valid_and_start_with_all_chosen_pixels(name: str) -> None:
    found = plan(name)
    assert found.name == name
    assert found.stages[0].objective == "pixel"
    assert found.stages[0].pixels is None


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_plans_run(name: str) -> None:
    model = exact.affine_conv()
    images = torch.rand((1, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[1, 2:4] = True
    objectives = {
        "pixel": lambda loss: PixelFlip(torch.tensor([1]), torch.tensor([2]), loss=loss),
        "region": lambda loss: RegionFlip(mask, loss=loss),
        "image": lambda loss: ImageFlip(loss=loss),
    }
    for stage in plan(name).stages:
        attack = registry.get(stage.attack)
        budgets: list[dict[str, float]] = [{"eps": eps} for eps in stage.eps] or [{}]
        for budget in budgets:
            first = () if not attack.flips else (objectives[stage.objective](stage.loss),)
            found = attack.function(model, images, *first, **stage.options, **budget)
            assert found.shape == ((1, 2, *images.shape[1:]) if attack.paired else images.shape)
            assert not torch.equal(found, images)


def test_a_file_gives_the_plan_that_it_spells(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        [[stage]]
        attack = "ddn"
        pixels = 8
        steps = 30
        [[stage]]
        attack = "pgd"
        objective = "image"
        eps = [0.1, 1]
        loss = "segpgd"
        [[stage]]
        attack = "lipschitz"
        objective = "map"
        radii = [0.1, 0.2]
        """
    )
    assert plan(path) == Plan(
        "mine",
        (
            Stage("ddn", pixels=8, options={"steps": 30}),
            Stage("pgd", "image", eps=(0.1, 1.0), loss="segpgd"),
            Stage("lipschitz", "map", options={"radii": (0.1, 0.2)}),
        ),
    )
    assert plan(str(path)) == plan(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[stage]]\nattack = 'ddm'", "expected an attack among .*'ddm'.*did you mean ddn"),
        ("[[stage]]\nattack = 'ddn'\nstep = 3", "unknown option 'step', expected one of steps, "),
        ("[[stage]]\nattack = 'ddn'\neps = [0.1]", "leave eps out"),
        ("[[stage]]\nattack = 'pgd'", "give eps"),
        ("[[stage]]\nattack = 'pgd'\neps = [-1]", "above 0"),
        ("[[stage]]\nattack = 'pgd'\neps = ['a']", "numbers as eps"),
        ("[[stage]]\nattack = 'foolbox.ddn'\nobjective = 'region'", "objective among pixel"),
        ("[[stage]]\nattack = 'ddn'\npixels = 1.5", "whole number"),
        ("[[stage]]\nattack = 'linearised'\nleaps = [9, 1.5]", "leaps: expected a list of whole numbers"),
        ("[[stage]]\nattack = 'linearised'\nleaps = [9, true]", "leaps: expected a number above 0"),
        ("[[stage]]\nattack = 'linearised'\nleaps = 9", "leaps: expected a list of numbers"),
        ("[[stage]]\nattack = 'ddn'\nobjective = 'image'\npixels = 3", "needs the objective 'pixel'"),
        ("[[stage]]\nattack = 'ddn'\nloss = 'segpgd'", "loss among margin, dlr, ce, js"),
        ("[[stage]]\nattack = 3", "strings"),
        ("[[stage]]\nsteps = 3", "strings"),
        ("[stage]\nattack = 'ddn'", "tables"),
        ("title = 'x'\n[[stage]]\nattack = 'ddn'", "tables"),
        ("", "tables"),
        ("[[stage", "expected TOML"),
    ],
)
def test_mistakes_in_files_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint) as caught:
        plan(path)
    assert "plan.toml" in str(caught.value)


def test_missing_plans_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"quick, standard, thorough, or a \.toml file, got 'fast'"):
        plan("fast")
    with pytest.raises(InputError, match="No such file"):
        plan(tmp_path / "none.toml")


def test_plans_of_attacks_by_name() -> None:
    found = plan_of_attacks(["ddn", "pgd", "lipschitz"])
    assert [stage.objective for stage in found.stages] == ["pixel", "pixel", "map"]
    assert found.stages[1].eps
    with pytest.raises(InputError, match="at least one"):
        plan_of_attacks([])
    with pytest.raises(InputError, match="'nope'"):
        plan_of_attacks(["nope"])


def test_the_face_is_lazy_and_complete() -> None:
    code = (
        "import sys, attackcheck.attacks as a; assert 'torch' not in sys.modules; "
        "[getattr(a, name) for name in a.__all__]; "
        "assert 'foolbox' not in sys.modules and 'torchattacks' not in sys.modules; a.nothing"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "has no attribute 'nothing'" in done.stderr


def test_a_library_that_is_not_installed_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", {}.get)
    with pytest.raises(InputError, match=r"torchattacks, which is not installed: pip install 'attackcheck\[peers\]'"):
        plan_of_attacks(["linearised", "torchattacks.cw"])
