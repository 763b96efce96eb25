"""Claims from models, options, files and certifiers of other frameworks: the same claim, whichever way it comes."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import attackcheck as ac
from attackcheck.cli import main
from attackcheck.errors import InputError
from attackcheck.formats.claim_files import read_claim
from attackcheck.models import exact

SIZE = 6
IMAGES = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

FACTORY = """
import numpy as np
import torch
from torch import nn
from attackcheck.models import exact

class Headed(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.body.weight.copy_(torch.linalg.qr(torch.randn(3, 3, generator=generator))[0][:, :, None, None])
            self.head.weight.copy_(torch.randn(4, 3, 1, 1, generator=generator))
            self.head.bias.zero_()
    def forward(self, x):
        return self.head(self.body(x) - 0.4)

def headed():
    return Headed()

def bare():
    return exact.orthonormal_rows(seed=1).float()

class Both(nn.Module):
    def __init__(self, constant):
        super().__init__()
        self.inner, self.constant = bare(), constant
    def forward(self, x):
        return self.inner(x), self.constant(x)

def number():
    return Both(lambda x: 1.0)

def tensor():
    return Both(lambda x: torch.tensor(1.0))

def rows():
    return Both(lambda x: torch.ones(len(x)))

def small():
    return Both(lambda x: 0.8)

def local():
    return Both(lambda x: x.flatten(1).norm(dim=1))

def negative():
    return Both(lambda x: -1.0)

truth = exact.orthonormal_rows(seed=1)

def arrays(images):
    assert isinstance(images, np.ndarray)
    return np.stack([truth.flip_distance(torch.from_numpy(x).double()).numpy() for x in images])

def of_model(model, images, lipschitz):
    assert isinstance(images, np.ndarray)
    logits = np.sort(model(images), axis=1)
    assert isinstance(logits, np.ndarray)
    return (logits[:, -1] - logits[:, -2]) / (np.sqrt(2) * lipschitz)

def too_large(images):
    return arrays(images) * 1.2

def read_only(images):
    radii = arrays(images)
    radii.flags.writeable = False
    return radii
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(FACTORY)
    np.savez("images.npz", images=IMAGES.numpy())
    return tmp_path


def verify(*arguments):
    return main(["verify", "--data", "arrays:images.npz", "--plan", "quick", "--pixels", "4", *arguments])


@pytest.mark.parametrize("name", ["number", "tensor", "rows"])
def test_a_constant_beside_the_logits_is_the_claim(place, capsys, name):
    assert verify(f"nets.py:{name}") == 0
    captured = capsys.readouterr()
    assert "returned by the model" in captured.out
    assert "L = 1 (joint)" in captured.out
    assert "note: the model returns (logits, L)" in captured.err


def test_a_constant_beside_the_logits_that_is_too_small_is_found_and_replayed(place, capsys):
    import shlex

    assert verify("nets.py:small") == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("attackcheck replay"))
    assert main(shlex.split(line.strip())[1:]) == 1
    assert verify("nets.py:small", "--lipschitz", "1") == 0  # another claim about the same logits
    assert main(["audit", "nets.py:small", "--input-shape", "3,6,6"]) == 1


@pytest.mark.parametrize(("name", "message"), [("local", "one L for all images"), ("negative", "positive")])
def test_a_constant_that_is_none_is_one_sentence(place, capsys, name, message):
    assert verify(f"nets.py:{name}") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_class_pairs_from_an_option_and_from_files(place):
    common = ("--model", "nets.py:headed")
    (place / "sound.toml").write_text('kind = "class-pair"\nL = 1.0\nlayer = "head"\n')
    weight = ac.load(model="nets.py:headed", lipschitz=1.0).model.head.weight.flatten(1).tolist()
    (place / "rows.json").write_text(json.dumps({"kind": "class-pair", "L": 1.0, "weight": weight}))
    (place / "wrong.toml").write_text('kind = "class-pair"\nL = 0.8\nlayer = "head"\n')
    assert verify(*common, "--lipschitz", "1.000001", "--class-pair", "head") == 0
    assert verify(*common, "--claim", "sound.toml") == 0
    assert verify(*common, "--claim", "rows.json") == 0
    assert verify(*common, "--lipschitz", "0.8", "--class-pair", "head") == 1
    assert verify(*common, "--claim", "wrong.toml") == 1


def test_lipschitz_claims_in_files(place):
    (place / "joint.toml").write_text('kind = "lipschitz"\nL = 1.0\nscope = "joint"\nsource = "a paper"\n')
    (place / "pixel.toml").write_text('kind = "lipschitz"\nL = 1\nscope = "pixel"\n[layers]\n"" = 1.0\n')
    (place / "wrong.toml").write_text('kind = "lipschitz"\nL = 0.8\n')
    assert verify("--model", "nets.py:bare", "--claim", "joint.toml") == 0
    assert verify("--model", "nets.py:bare", "--claim", "wrong.toml") == 1
    claim = read_claim("pixel.toml").about(nn.Identity())
    assert claim == ac.LipschitzClaim(1, "pixel", source="pixel.toml", layers={"": 1.0})


def test_radii_in_a_file_beside_the_claim(place):
    (place / "sub").mkdir()
    radii = np.stack([exact.orthonormal_rows(seed=1).flip_distance(image.double()).numpy() for image in IMAGES])
    np.savez("sub/radii.npz", radii=radii)
    np.savez("sub/wrong.npz", radii=radii * 1.2)
    for name, code in (("radii", 0), ("wrong", 1)):
        (place / "sub" / "claim.toml").write_text(f'kind = "radii"\nfile = "{name}.npz"\n')
        assert verify("--model", "nets.py:bare", "--claim", "sub/claim.toml") == code


def test_measures_beside_another_claim_are_attacked(place, capsys):
    labels = exact.orthonormal_rows(seed=1).float()(IMAGES).argmax(dim=1).numpy()
    np.savez("images.npz", images=IMAGES.numpy(), labels=labels)
    metric = '[[metric]]\nmeasure = "accuracy"\neps = 5.0\nvalue = 0.99\n'
    (place / "both.toml").write_text('kind = "lipschitz"\nL = 1.0\n' + metric)
    (place / "only.toml").write_text(metric)
    assert verify("--model", "nets.py:bare", "--claim", "both.toml") == 1
    assert "1 METRIC" in capsys.readouterr().out
    assert verify("--model", "nets.py:number", "--claim", "only.toml") == 1
    assert verify("--model", "nets.py:bare", "--claim", "only.toml") == 2  # nothing is claimed about radii
    (place / "only.toml").write_text(metric.replace("5.0", "1e-6"))
    assert verify("--model", "nets.py:number", "--claim", "only.toml") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "kind"),
        ("kind = 3", "kind"),
        ('kind = "lipshitz"\nL = 1', "lipschitz"),
        ('kind = "lipschitz"', "no 'L'"),
        ('kind = "lipschitz"\nL = "1"', "number"),
        ('kind = "lipschitz"\nL = true', "number"),
        ('kind = "lipschitz"\nL = nan', "positive"),
        ('kind = "lipschitz"\nL = 1\nscope = "both"', "scope"),
        ('kind = "lipschitz"\nL = 1\nlayers = 3', "layers"),
        ('kind = "lipschitz"\nL = 1\nconstant = 3', "unknown 'constant'"),
        ('kind = "class-pair"\nL = 1', "either layer or weight"),
        ('kind = "class-pair"\nL = 1\nlayer = "tail"', "dotted name"),
        ('kind = "class-pair"\nL = 1\nweight = [[1.0], [2.0, 3.0]]', "rows of numbers"),
        ('kind = "class-pair"\nL = 1\nweight = [1.0, 2.0]', "rows"),
        ('kind = "radii"\nfile = "nets.py:arrays"', "--radii"),
        ('kind = "radii"\nfile = "none.npz"', "none.npz"),
        ('kind = "radii"\nfile = "images.npz"', "radii"),
        ("kind = ", "TOML"),
        ("kind = \x00", "TOML"),
        ('kind = "lipschitz"\nL = ' + "[" * 5000, "TOML"),
    ],
)
def test_a_wrong_claim_file_is_one_sentence(place, capsys, text, message):
    (place / "claim.toml").write_text(text)
    assert verify("--model", "nets.py:headed", "--claim", "claim.toml") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--claim", "c.toml", "--lipschitz", "1"],
        ["--class-pair", "head"],
        ["--class-pair", "body.0", "--lipschitz", "1"],
        ["--lipschitz", "1", "--class-pair", "head", "--scope", "joint"],
        ["--radii", "numpy:nets.py:arrays", "--lipschitz", "1"],
        ["--radii", "numpy:nets.py:of_model"],
    ],
)
def test_options_that_do_not_go_together(place, capsys, options):
    (place / "c.toml").write_text('kind = "lipschitz"\nL = 1.0\n')
    assert verify("--model", "nets.py:headed", *options) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_certifiers_of_arrays(place, capsys):
    common = ("--model", "nets.py:bare", "--radii")
    assert verify(*common, "numpy:nets.py:arrays") == 0
    assert verify(*common, "numpy:nets.py:read_only") == 0
    assert verify(*common, "numpy:nets.py:too_large") == 1
    assert verify(*common, "numpy:nets.py:of_model", "--lipschitz", "1") == 0
    assert "held on gadgets" in capsys.readouterr().out  # a certifier of any model is tried on known ones
    assert verify(*common, "numpy:nets.py:of_model", "--lipschitz", "0.8") == 1
    assert verify(*common, "nets.py:arrays") == 2  # it takes no tensors


def test_a_model_in_training_mode_is_left_alone():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm = exact.orthonormal_rows(seed=1).float(), nn.BatchNorm2d(3)

        def forward(self, x):
            self.norm(x)
            return self.inner(x), 1.0

    from attackcheck.formats.outputs import constant_beside_logits
    from attackcheck.loading import _Loaded, _take_constant

    model = Counting().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = _Loaded(model, None, {})
    _take_constant(loaded, IMAGES[0], None)
    assert isinstance(loaded.claim, ac.LipschitzClaim)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert constant_beside_logits(lambda x: x, IMAGES[0]) is None
    with pytest.raises(InputError, match="some only"):
        constant_beside_logits(lambda x: (x, 1.0) if len(x) == 1 else x, IMAGES[0])
