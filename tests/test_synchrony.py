"""No attack makes the host wait for a GPU at every step: counted without one, operation by operation.

The branches that a CPU takes are closed; what then still asks for values, or for sizes that depend on values, would
hold up a GPU.
"""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import attackcheck as ac
from attackcheck import synchrony
from attackcheck.attacks import ImageFlip, PixelFlip, RegionFlip, registry
from attackcheck.cones import cone_of
from attackcheck.crop_probe import CropProbe
from attackcheck.crops import Crops
from attackcheck.probe import Probe
from attackcheck.receptive import measure_field, windows

SIZE = 12
WAITING = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "_unique2"}
READING = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"}


class Waits:
    """How often the host would have waited for a device."""

    def __init__(self):
        self.seen = []

    def __enter__(self):
        seen = self.seen

        class Operations(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                name = function.overloadpacket.__name__
                masked = name in {"index", "index_put", "index_put_", "_index_put_impl_"} and any(
                    index is not None and index.dtype == torch.bool for index in args[1]
                )
                if name in WAITING or masked:
                    seen.append(name)
                return function(*args, **(kwargs or {}))

        class Methods(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                name = getattr(function, "__name__", "")
                if name in READING or (name == "to" and "cpu" in [given for given in args if isinstance(given, str)]):
                    seen.append(name)
                return function(*args, **(kwargs or {}))

        self._modes = Operations(), Methods()
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error):
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class Wavy(nn.Module):
    """Boundaries bend and slopes change, so that rows leap."""

    def forward(self, logits):
        return logits + 0.2 * torch.sin(20 * logits)


def probed(size, *more):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1)
    model = nn.Sequential(*layers, *more).requires_grad_(False)
    image = torch.rand(3, size, size)
    logits = model(image[None])
    claim = ac.LipschitzClaim(50.0)
    return Probe(model, image, logits[0], claim.radii(image[None], logits, None)[0], claim)


def closed(values):
    return False


@pytest.fixture
def setting(monkeypatch):
    monkeypatch.setattr(synchrony, "readable", closed)
    return probed(SIZE)


def waits(probe, name, objective, options, model=None):
    attack = registry.get(name)
    rows, columns = torch.tensor([2, 5, 9]), torch.tensor([3, 6, 10])
    if model is None:
        model = probe.pairs if attack.paired else probe
        probe.aim(rows, columns)
    given = [probe.image.expand(3, *probe.image.shape).contiguous() if objective == "pixel" else probe.image[None]]
    if isinstance(model, CropProbe):
        given = [model.clean, PixelFlip(model.inner_rows, model.inner_columns)]
    elif objective == "pixel":
        given.append(PixelFlip(rows, columns))
    elif objective == "region":
        mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        mask[2:5, 2:5] = True
        given.append(RegionFlip(mask, fraction=0.9))
    elif objective == "image":
        given.append(ImageFlip())
    with probe.attributed(name), Waits() as counted:
        attack.function(model, *given, **options)
    return counted.seen


@pytest.mark.parametrize(
    ("name", "objective", "steps", "others"),
    [
        ("linearised", "pixel", "iterations", {"search": 1, "refine": 1, "classes": 2}),
        ("linearised", "pixel", "iterations", {"rays": 2}),
        ("linearised", "pixel", "search", {}),
        ("linearised", "pixel", "refine", {}),
        ("linearised", "region", "descent", {}),
        ("ddn", "pixel", "steps", {}),
        ("ddn", "region", "steps", {}),
        ("fmn", "pixel", "steps", {}),
        ("fmn", "region", "steps", {}),
        ("cw", "pixel", "steps", {"searches": 2}),
        ("cw", "region", "steps", {"searches": 2}),
        ("cutting", "region", "steps", {"planes": 4}),
        ("pgd", "pixel", "steps", {"eps": 0.3}),
        ("pgd", "image", "steps", {"eps": 0.3}),
        ("guided", "image", "steps", {"eps": 0.3}),
        ("lipschitz", "map", "steps", {"radii": (0.1,)}),
        ("pairs", "map", "steps", {"radii": (1.0,)}),
        ("peaks", "map", "steps", {"places": 2, "samples": 2, "radii": (0.1,)}),
    ],
)
def test_waits_do_not_grow_with_the_steps(setting, name, objective, steps, others):
    few, many = (waits(setting, name, objective, {**others, steps: count}) for count in (6, 12))
    assert len(many) == len(few), (few, many)


@pytest.mark.usefixtures("setting")
@pytest.mark.parametrize(
    ("few", "many"),
    [
        ({"scouts": 1}, {"scouts": 4}),
        ({"leaps": (6, 2)}, {"leaps": (12, 9)}),
        ({"crossings": 1}, {"crossings": 3}),
    ],
)
def test_waits_do_not_grow_with_the_steps_of_descents(few, many):
    probe, costs, seen = probed(SIZE, Wavy()), [], []
    for options in (few, many):
        before = sum(cost.forward for cost in probe.evidence.costs)
        seen.append(waits(probe, "linearised", "pixel", {"iterations": 4, **options}))
        costs.append(sum(cost.forward for cost in probe.evidence.costs) - before)
    assert costs[1] >= costs[0] + 6 * 2
    assert len(seen[0]) == len(seen[1]), seen


@pytest.mark.usefixtures("setting")
@pytest.mark.parametrize("around", [False, True])
def test_waits_in_crops_do_not_grow_with_the_steps(around):
    probe = probed(3 * SIZE)
    cut = windows(measure_field(probe.counted, probe.image), 3 * SIZE, 3 * SIZE)
    cone = cone_of(probe._model, probe.image[:, : cut.height, : cut.width], cut.field.stride) if around else None
    assert (cone is not None) == around
    rows, columns = torch.tensor([2, 5, 9]), torch.tensor([3, 6, 10])
    probe.aim(rows, columns, cut)
    seen = []
    for turns in (6, 12):
        crops = CropProbe(Crops(probe, cut, torch.full((5,), 1e-4), cone), probe, rows, columns)
        seen.append(waits(probe, "linearised", "pixel", {"rays": 2, "iterations": turns}, crops))
    assert len(seen[0]) == len(seen[1]), seen


def test_waits_are_seen():
    x = torch.arange(4.0)
    with Waits() as counted:
        bool(x.any())
        x[x > 1]
        x[x > 1] = 0.0
        x.cpu()
        x.nonzero()
        float(x[0])
        x.tolist()
        x[1:3] + x[torch.tensor([0, 1])]
    assert {"index", "index_put_", "cpu", "nonzero", "_local_scalar_dense", "tolist"} <= set(counted.seen)
    assert counted.seen.count("index") == 1


def test_what_a_cpu_may_look_at_is_seen_step_by_step(monkeypatch, setting):
    monkeypatch.undo()
    few, many = (waits(setting, "linearised", "pixel", {"search": 1, "iterations": count}) for count in (6, 12))
    assert len(many) > len(few) > 10


@pytest.mark.parametrize("name", ["linearised", "ddn", "fmn"])
def test_a_device_that_cannot_be_asked_finds_the_same(name, monkeypatch):
    """The branches that a GPU takes against those that a CPU takes."""
    rows, columns = torch.tensor([2, 5, 9]), torch.tensor([3, 6, 10])
    found = []
    for readable in (closed, synchrony.readable):
        monkeypatch.setattr(synchrony, "readable", readable)
        probe = probed(SIZE)
        probe.aim(rows, columns)
        with probe.attributed(name):
            given = probe.image.expand(3, *probe.image.shape).contiguous()
            registry.get(name).function(probe, given, PixelFlip(rows, columns))
        found.append(probe.evidence)
    gpu, cpu = found
    assert cpu.slots.distance.isfinite().all()
    torch.testing.assert_close(gpu.slots.distance, cpu.slots.distance, rtol=1e-4, atol=0)
    torch.testing.assert_close(gpu.slots.point, cpu.slots.point, rtol=0, atol=1e-3)
    assert gpu.slots.target.equal(cpu.slots.target)
    for kind, kept in cpu.witnesses.items():
        torch.testing.assert_close(gpu.witnesses[kind].ratio.max(), kept.ratio.max(), rtol=1e-3, atol=0)
