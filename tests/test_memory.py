"""Runs whose memory is short, against the same runs with plenty of it."""

import gc
import time

import numpy as np
import pytest
import torch
from torch import nn

import attackcheck as ac
from attackcheck import memory
from attackcheck.attacks import _cutting
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.cli import main
from attackcheck.errors import InputError
from attackcheck.in_parts import InParts
from attackcheck.memory import Meter, Room, available, ran_out

GIB = 2**30
PLAN = Plan(
    "some",
    (
        Stage("linearised", options={"rays": 2, "iterations": 6}),
        Stage("ddn", pixels=5, options={"steps": 10}),
        Stage("lipschitz", pixels=3, options={"steps": 5, "radii": (0.1,)}),
        Stage("linearised", objective="region", options={"descent": 8}),
    ),
)


SETS = Plan(
    "sets",
    (
        Stage("linearised", options={"iterations": 2}),
        Stage("cutting", objective="region", options={"steps": 6, "planes": 6, "classes": 4}),
        Stage("linearised", objective="region", options={"rays": 4, "descent": 6}),
        Stage("pgd", objective="image", options={"steps": 5}, eps=(0.3,)),
        Stage("lipschitz", objective="map", options={"steps": 8, "radii": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}),
        Stage("pairs", objective="map", options={"steps": 8, "starts": 3}),
        Stage("peaks", objective="map", options={"steps": 4, "places": 3}),
    ),
)


REFUSED = []  # of all models: runs attack copies


class Small(nn.Module):
    """Refuses more rows than fit, as an allocator would: sizes from `whole` pixels on, at first or for gradients."""

    def __init__(self, rows, kind="cuda", backward=False, whole=0):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.rows, self.kind, self.backward, self.whole, self.refused = rows, kind, backward, whole, []
        self.eval()

    def _allocate(self, rows):
        if rows <= self.rows:
            return
        self.refused.append(rows)
        REFUSED.append(rows)
        if self.kind == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if self.kind == "python":
            raise MemoryError
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    def forward(self, images):
        if images.shape[2] * images.shape[3] >= self.whole and images.dtype == torch.float32:
            if not self.backward:
                self._allocate(len(images))
            elif images.requires_grad:
                logits = self.layers(images)
                logits.register_hook(lambda gradient: self._allocate(len(gradient)))
                return logits
        return self.layers(images)


def picture(size):
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(3))


def examine(model, size, plan=PLAN, scope="joint", **options):
    claim = ac.LipschitzClaim(30.0, scope)
    return ac.verify(model, picture(size), claim, plan=plan, pixels=7, audit=False, **options)


def same(one, other):
    assert np.array_equal(one.flip_distance, other.flip_distance)
    assert np.array_equal(one.attacked, other.attacked)
    assert one.counts == other.counts
    assert one.limit == other.limit
    for mine, theirs in zip(one.attacks, other.attacks, strict=True):
        assert mine.tightness == theirs.tightness
    assert [region.distance for region in one.regions] == [region.distance for region in other.regions]


@pytest.mark.parametrize(
    ("rows", "kind", "backward"), [(4, "cuda", False), (6, "cpu", False), (4, "python", True), (9, "cuda", True)]
)
def test_results_do_not_depend_on_how_often_rows_were_halved(rows, kind, backward):
    same(examine(Small(rows, kind, backward), 12), examine(Small(10**6), 12))


@pytest.mark.parametrize("rows", [4, 9])
def test_nor_do_those_from_crops(rows):
    # crops are compared with the image 24 at a time, without a gradient
    same(examine(Small(rows, backward=True), 72), examine(Small(10**6), 72))


@pytest.mark.parametrize(("rows", "kind", "backward"), [(2, "cuda", False), (3, "cpu", True), (5, "python", True)])
def test_nor_do_those_of_sets_and_maps(rows, kind, backward):
    # without pixels, whose calls of two rows would round in another way alone
    REFUSED.clear()
    scarce, plenty = (
        examine(model, 40, SETS, "pixel", regions=["rect:5,5,6,6@0.9"])
        for model in (Small(rows, kind, backward), Small(10**6))
    )
    same(scarce, plenty)
    assert scarce.stopped is None
    # lipschitz, pairs, and where there is less room cutting and linearised
    assert {7, 18} | ({4} if rows < 4 else set()) <= set(REFUSED)


def test_regions_and_budgets_go_one_after_the_other_where_they_do_not_fit_together(monkeypatch):
    plan = Plan(
        "several",
        (
            Stage("linearised", options={"iterations": 2}),
            Stage("cutting", objective="region", options={"steps": 6, "planes": 6}),
            Stage("pgd", objective="image", options={"steps": 5}, eps=(0.3, 1.0, 3.0), loss="segpgd"),
        ),
    )
    regions = ["rect:5,5,6,6", "rect:20,20,5,5", "rect:30,2,4,4", "rect:2,30,4,4", "rect:12,12,4,4"]
    plenty = examine(Small(10**6), 40, plan, "pixel", regions=regions)
    # the model has room for all, but what the attack keeps of its own has not: that no smaller call of the model mends
    own, refused = _cutting._empty, []

    def scarce(images, planes):
        if len(images) > 2:
            refused.append(len(images))
            raise torch.OutOfMemoryError
        return own(images, planes)

    monkeypatch.setattr(_cutting, "_empty", scarce)
    for model in (Small(10**6), Small(1, backward=True)):
        found = examine(model, 40, plan, "pixel", regions=regions)
        assert found.stopped is None
        assert [region.name for region in found.regions] == [region.name for region in plenty.regions]
        for mine, theirs in zip(found.regions, plenty.regions, strict=True):
            assert mine.distance == pytest.approx(theirs.distance, rel=5e-3)
        assert [(b.eps, b.stability) for b in found.budgets] == [(b.eps, b.stability) for b in plenty.budgets]
    assert refused == [5, 5]  # then two and two and one, which is remembered


def test_the_model_was_asked_for_fewer_rows_once_it_ran_out():
    model = Small(4)
    given = []
    model.register_forward_hook(lambda _module, inputs, _outputs: given.append(len(inputs[0])))

    class Watched(nn.Module):
        def forward(self, images):
            given.append(len(images))
            return model(images)

    watched = Watched()
    ac.verify(watched, picture(12), ac.LipschitzClaim(30.0), plan=PLAN, pixels=7, audit=False)
    assert any(rows > 4 for rows in given)
    last_refused = max(i for i, rows in enumerate(given) if rows > 4)
    assert last_refused < len(given) - 20


def test_one_row_is_tried_before_giving_up():
    found = examine(Small(2), 12)
    plenty = examine(Small(10**6), 12)
    assert np.array_equal(found.attacked, plenty.attacked)
    assert np.allclose(found.flip_distance[found.attacked], plenty.flip_distance[found.attacked], rtol=1e-3)


def test_a_divided_call_gives_the_same_gradients_and_counts_what_it_repeats():
    model, passes = Small(10**6).double().requires_grad_(False), []

    def counted(images):
        passes.append(len(images))
        return model(images)

    images = torch.rand(7, 3, 8, 8, dtype=torch.float64)
    found = []
    for call in (model, InParts(counted, counted, 3)):
        point = images.clone().requires_grad_()
        logits = call(point)
        (gradient,) = torch.autograd.grad((logits.square() * torch.arange(7.0)[:, None, None, None]).sum(), point)
        found.append((logits.detach(), gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert passes == [3] * 6  # the last part begins early; each forward pass is made again once
    parted = InParts(counted, counted, 3)
    with torch.no_grad():
        torch.testing.assert_close(parted(images), found[0][0], rtol=1e-12, atol=1e-12)
    assert passes == [3] * 9
    assert parted.widest == 3


def test_one_row_that_does_not_fit_is_one_sentence_and_what_was_found_is_kept():
    class Later(Small):
        calls = 0

        def forward(self, images):
            Later.calls += 1
            if Later.calls > 60:
                self.rows = 0
            return super().forward(images)

    report = examine(Later(10**6), 12)
    assert report.stopped is not None
    assert "expected one image to fit into the memory of cpu" in report.stopped
    assert np.isfinite(report.flip_distance).any()
    assert report.exit_code() == 2
    with pytest.raises(InputError, match="fit into the memory of cpu"):
        examine(Small(0), 12)


def test_the_command_line_says_it_too(tmp_path, capsys):
    source = tmp_path / "none.py"
    source.write_text("def model():\n    def call(images):\n        raise MemoryError\n    return call\n")
    code = main(["verify", "--model", f"{source}:model", "--lipschitz", "1", "--images", "1", "-q"])
    said = capsys.readouterr().err.strip()
    assert code == 2
    assert "fit into the memory of cpu" in said
    assert len(said.splitlines()) == 1


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert ran_out(torch.OutOfMemoryError("any"))
    assert ran_out(MemoryError())
    assert ran_out(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ran_out(ValueError("out of memory"))
    calls = []

    def fails(rows):
        calls.append(rows)
        raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="of another kind"):
        Room().fitted("a", 8, fails)
    assert calls == [8]


def test_rows_are_halved_down_to_one_and_remembered():
    tried = []

    def call(rows):
        tried.append(rows)
        if rows > 1:
            raise MemoryError
        return rows

    room = Room()
    assert room.fitted("a", 11, call) == 1
    assert tried == [11, 5, 2, 1]
    assert room.alone("a")
    assert not room.alone("b")
    assert room.fitted("a", 11, call) == 1
    assert tried[4:] == [1]


def test_the_first_call_has_two_rows_and_says_how_many_fit(monkeypatch):
    taken = 0
    monkeypatch.setattr(memory, "available", lambda _device: GIB)
    monkeypatch.setattr(memory, "anonymous", lambda: 5 * GIB + taken)
    tried = []

    def call(rows):
        nonlocal taken
        tried.append(rows)
        taken = rows * 2**25
        time.sleep(20 * memory.INTERVAL)  # the meter looks now and then
        taken = 0
        return rows

    room = Room()
    room.fitted("a", 64, call, measure=True)
    room.fitted("a", 64, call, measure=True)
    assert tried == [2, 16]  # half a GiB in parts of 32 MiB


def test_memory_that_was_free_already_says_nothing(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda _device: GIB)
    monkeypatch.setattr(memory, "anonymous", lambda: 5 * GIB)
    tried = []
    room = Room()
    for _ in range(3):
        room.fitted("a", 64, lambda rows: tried.append(rows), measure=True)
    assert tried == [2, 2, 2]


def test_memory_is_measured():
    free = available()
    assert free is not None
    assert 2**26 < free < 2**45
    gc.collect()  # what other tests left would be freed meanwhile
    with Meter() as meter:
        block = torch.ones(2**27)  # 512 MiB
        for _ in range(5):
            block.add_(1)
        del block
    assert meter.bytes is not None
    assert 2**29 * 0.95 < meter.bytes < 2**29 * 1.3
