"""Layers of other libraries, which recompute their weights at every forward pass, are examined as plain layers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import attackcheck as ac
from attackcheck.arithmetic import Reference, frozen
from attackcheck.errors import InputError
from attackcheck.events import Warned
from attackcheck.preflight import check_frozen

IMAGES = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def orthogonium(name):
    aoc = pytest.importorskip("orthogonium.layers.conv.AOC")
    soc = pytest.importorskip("orthogonium.layers.conv.adaptiveSOC")
    aol = pytest.importorskip("orthogonium.layers.conv.AOL.aol")
    sll = pytest.importorskip("orthogonium.layers.conv.SLL.sll_layer")
    layers = pytest.importorskip("orthogonium.layers")
    return {
        "AOC": lambda: aoc.AdaptiveOrthoConv2d(3, 6, 3, padding=1, padding_mode="circular"),
        "AOC stride": lambda: aoc.AdaptiveOrthoConv2d(3, 8, 4, stride=2, padding=1, padding_mode="circular"),
        "AOC up": lambda: aoc.AdaptiveOrthoConvTranspose2d(3, 4, 2, stride=2),
        "SOC": lambda: soc.AdaptiveSOCConv2d(3, 3, 3, padding=1),
        "SOC stride": lambda: soc.AdaptiveSOCConv2d(3, 8, 4, stride=2, padding=1),
        "AOL": lambda: aol.AOLConv2D(3, 4, 3, padding=1),
        "SLL": lambda: sll.SDPBasedLipschitzResBlock(3, 2),
        "centred": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), layers.BatchCentering2D(4)),
    }[name]()


def torchlip(name):
    lip = pytest.importorskip("deel.torchlip")
    return {
        "spectral": lambda: lip.SpectralConv2d(3, 6, 3, padding=1),
        "spectral up": lambda: lip.SpectralConvTranspose2d(3, 4, 2, stride=2),
        "frobenius": lambda: lip.FrobeniusConv2d(3, 4, 3, padding=1),
    }[name]()


LAYERS = [
    *((orthogonium, name) for name in ("AOC", "AOC stride", "AOC up", "SOC", "SOC stride", "AOL", "SLL", "centred")),
    *((torchlip, name) for name in ("spectral", "spectral up", "frobenius")),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("library", "name"), LAYERS, ids=[name for _, name in LAYERS])
def test_layers_of_published_libraries_are_frozen_and_agree(library, name):
    torch.manual_seed(0)
    model = nn.Sequential(library(name))
    with torch.no_grad():
        for _ in range(3):
            model.train()(IMAGES)
        model.eval()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        plain = frozen(model)
        assert not any(parametrize.is_parametrized(part) for part in plain.modules())
        logits = plain(IMAGES)
        assert torch.equal(logits, plain(IMAGES))
        assert torch.allclose(logits, copy.deepcopy(model)(IMAGES), atol=2e-5)
        assert Reference(plain, IMAGES).precision == "float64"
    assert list(check_frozen(model, plain, IMAGES)) == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # the user's is untouched


class Wandering(nn.Module):
    """A parametrisation that is never twice the same, as an iteration that has not come to rest."""

    def __init__(self, step):
        super().__init__()
        self.step = step
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, weight):
        self.calls += 1
        return weight * (1 + self.step * float(self.calls))


def wandering(step):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 1, bias=False)
    parametrize.register_parametrization(model, "weight", Wandering(step))
    return model.eval()


def test_weights_that_have_not_come_to_rest_are_said():
    claim = ac.LipschitzClaim(10.0)
    with pytest.raises(InputError, match="AC131"):
        ac.verify(wandering(1e-2), IMAGES, claim, plan="quick", pixels=2)
    events = []
    ac.verify(wandering(1e-4), IMAGES, claim, plan="quick", pixels=2, on_event=events.append)
    assert "AC131" in {event.code for event in events if isinstance(event, Warned)}
    events.clear()
    ac.verify(wandering(0.0), IMAGES, claim, plan="quick", pixels=2, on_event=events.append)
    assert "AC131" not in {event.code for event in events if isinstance(event, Warned)}
