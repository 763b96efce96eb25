"""--deterministic: torch's mode is on while a run works, off afterwards, and what it refuses is said."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import attackcheck as ac
from attackcheck.attacks.plans import plan
from attackcheck.cli import main
from attackcheck.determinism import deterministic
from attackcheck.engine import run
from attackcheck.errors import InputError
from attackcheck.models import exact
from attackcheck.subject import Settings, Subject
from attackcheck.verification import ArrayImages


class Watched(nn.Module):
    """Knows in which mode it and its copies were called."""

    modes: ClassVar = []

    def __init__(self):
        super().__init__()
        self.inner = exact.orthonormal_rows(seed=0).float()
        self.modes.clear()
        self.eval()

    def forward(self, images):
        self.modes.append(torch.are_deterministic_algorithms_enabled())
        return self.inner(images)


def report_of(wanted, model=None):
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    settings = Settings(plan=plan("standard"), pixels=4, audit=False, deterministic=wanted)
    model = Watched() if model is None else model
    *_, last = run(Subject(model, ac.LipschitzClaim(1.0), {}), ArrayImages(images), settings)
    return last.report, model


@pytest.mark.parametrize("wanted", [False, True])
def test_the_mode_is_on_for_the_whole_run_and_no_longer(wanted):
    _, model = report_of(wanted)
    assert set(model.modes) == {wanted}
    assert not torch.are_deterministic_algorithms_enabled()


def test_results_on_a_cpu_are_the_same_without_it():
    (with_it, _), (without, _) = report_of(True), report_of(False)
    assert np.array_equal(with_it.flip_distance, without.flip_distance)
    assert with_it.counts == without.counts


def test_what_was_set_before_is_set_again():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        with pytest.raises(ValueError, match="own"), deterministic(True):
            raise ValueError("own")
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_operation_without_such_an_implementation_is_named():
    said = "upsample_bicubic2d_backward_out_cuda does not have a deterministic implementation, but you set ..."
    with pytest.raises(InputError, match="upsample_bicubic2d_backward_out_cuda"), deterministic(True):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="other"), deterministic(True):
        raise RuntimeError("other")


def test_the_command_line_has_it(tmp_path, capsys):
    source = tmp_path / "small.py"
    source.write_text(
        "import torch\n"
        "class Net(torch.nn.Conv2d):\n"
        "    def forward(self, images):\n"
        "        print('deterministic:', torch.are_deterministic_algorithms_enabled())\n"
        "        return super().forward(images)\n"
        "def model():\n"
        "    torch.manual_seed(0)\n"
        "    return Net(3, 4, 3, padding=1).eval()\n"
    )
    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32))
    command = ["verify", "--model", f"{source}:model", "--data", f"arrays:{tmp_path / 'data.npz'}", "--lipschitz", "9"]
    assert main([*command, "--pixels", "2", "--plan", "quick", "--no-audit", "--deterministic"]) == 0
    said = capsys.readouterr()
    assert "0 violations" in said.out + said.err
    modes = [line for line in said.out.splitlines() if line.startswith("deterministic:")]
    assert modes[-20:] == ["deterministic: True"] * 20  # loading comes before the run
