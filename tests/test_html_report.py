"""The HTML page: what it keeps of a run, what it says, and that a file name cannot become part of it."""

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("bokeh")

from attackcheck.cli import main
from attackcheck.parts import Example, Maps
from attackcheck.reporters.blocks import blocks
from attackcheck.reporters.html import fitting
from attackcheck.reporters.html.content import EPSILONS, Content, Pixels
from attackcheck.reporters.html.observing import LEAST, observe, smaller
from attackcheck.reporters.html.page import render
from attackcheck.reporters.html.scales import Scales

FACTORY = """
import attackcheck as ac
from attackcheck.models import exact

def tight():
    return exact.orthonormal_rows(seed=1).float(), ac.LipschitzClaim(1.0)

def broken():
    return exact.orthonormal_rows(seed=1).float(), ac.LipschitzClaim(0.8)
"""
ODD = "x'><img src=x onerror=alert(1)>&amp;.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two small pictures, one with a hostile name, and two factories."""
    folder = tmp_path_factory.mktemp("html")
    (folder / "nets.py").write_text(FACTORY)
    (folder / "photos" / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 8, 10, 3), dtype=np.uint8)
    for name, array in zip(("plain.png", ODD), pixels, strict=True):
        Image.fromarray(array).save(folder / "photos" / "images" / name)
    return folder


@pytest.fixture(scope="module")
def pages(place):
    """The pages of a sound and of a broken claim."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, code in (("tight", 0), ("broken", 1)):
            options = [
                "--data",
                "folder:photos",
                "--plan",
                "quick",
                "--pixels",
                "6",
                "--threads",
                "1",
                "--out",
                f"run-{name}",
            ]
            assert main(["verify", f"nets.py:{name}", *options, "--html", f"{name}.html"]) == code
            made[name] = (place / f"{name}.html").read_text()
    return made


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    parser = _Tags()
    parser.feed(page)
    return parser


@pytest.mark.parametrize("name", ["tight", "broken"])
def test_nothing_is_fetched_and_nothing_of_a_file_name_becomes_markup(pages, name):
    tags = parsed(pages[name]).tags
    for tag, attributes in tags:
        for where in ("src", "href"):
            assert attributes.get(where, "#").startswith(("#", "data:")), (tag, attributes)
        assert not any(key.startswith("on") for key in attributes)
        assert tag not in ("img", "iframe", "object", "embed", "base")
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "onerror=alert" in "".join(parsed(pages[name]).text)  # the name itself is shown


def test_the_head_says_how_it_ended_and_never_verified(pages):
    assert "<h1>No violation found</h1>" in pages["tight"]
    assert "0 violations in 12 attacked pixels (linearised; seed 0)" in pages["tight"]
    assert "That is no proof" in pages["tight"]
    assert "<h1>Unsound</h1>" in pages["broken"]
    assert re.search(r"\d+ violations \(12 PIXEL.*by up to x 1\.25", pages["broken"])
    for page in pages.values():
        words = " ".join(part for part in parsed(page).text if len(part) < 2000)
        assert "verified" not in words.lower()


def test_every_violation_has_its_replay_command(pages, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    commands = re.findall(r'<code class="command">(attackcheck replay [^<]*)</code>', pages["broken"])
    assert len(commands) >= 12
    words = commands[0].split()
    assert words[-1] == "nets.py:broken"
    assert main(words[1:]) == 1
    assert "reproduced" in capsys.readouterr().out


def test_a_page_from_the_run_folder_says_the_same(pages, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for name in pages:
        assert main(["report", f"run-{name}"]) == 0
        page = (place / f"run-{name}" / "report.html").read_text()
        assert capsys.readouterr().out.strip() == f"run-{name}/report.html"
        rows = [re.findall(r"<tr>(.*?)</tr>", text, re.S) for text in (page, pages[name])]
        strip = [[re.sub(r"counterexamples/\S+?npz|<[^>]*>|\s", "", row) for row in part] for part in rows]
        assert strip[0] == strip[1]
        assert f"attackcheck verify nets.py:{name} --data folder:photos" in page
    assert main(["report", "photos"]) == 2
    assert "run.json" in capsys.readouterr().err


def test_a_page_of_a_run_that_is_not_finished_says_so(place, pages, tmp_path, capsys):
    shutil.copytree(place / "run-tight", tmp_path / "run")
    (tmp_path / "run" / "parts" / "image-000001.npz").unlink()
    assert main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "The run is incomplete:</strong> 1 of 2 images are missing" in page
    assert "6 attacked pixels" in page


def test_without_bokeh_a_sentence_says_what_to_install(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr("attackcheck.reporters.html.find_spec", {}.get)
    assert main(["verify", "nets.py:tight", "--html", "none.html"]) == 2
    assert "pip install 'attackcheck[html]'" in capsys.readouterr().err
    assert not (place / "none.html").exists()


@pytest.mark.parametrize("target", ["-", "nowhere/page.html", "."])
def test_a_page_that_cannot_be_written_is_refused_before_the_run(place, monkeypatch, capsys, target):
    monkeypatch.chdir(place)
    assert main(["verify", "nets.py:tight", "--data", "folder:photos", "--html", target]) == 2
    captured = capsys.readouterr()
    assert "expected" in captured.err
    assert not captured.out


def maps(height=24, width=30, seed=0, **changed):
    """Made-up arrays of one image, with a certificate of 0.1 everywhere and flips at random distances."""
    generator = torch.Generator().manual_seed(seed)
    distance = 0.11 + torch.rand(height, width, generator=generator, dtype=torch.float64)
    distance[torch.rand(height, width, generator=generator) < 0.5] = torch.inf
    given = {
        "image": torch.rand(3, height, width, generator=generator),
        "labels": None,
        "predicted": torch.randint(0, 3, (height, width), generator=generator, dtype=torch.int16),
        "radius": torch.full((height, width), 0.1, dtype=torch.float64),
        "flip_distance": distance,
        "flipped_by": torch.where(distance.isfinite(), 0, -1).to(torch.int16),
        "class_after": torch.full((height, width), -1, dtype=torch.int16),
        "attacked": torch.rand(height, width, generator=generator) < 0.2,
        "verdict": torch.full((height, width), -1, dtype=torch.int8),
        "attacks": ("linearised",),
    }
    return Maps(**(given | changed))


def seen(given, **changed):
    options = {"index": 0, "name": "made up", "ignore": 255, "cells": 10_000, "worst": 4, "findings": ()}
    return observe(given, **(options | changed))


@pytest.mark.parametrize("cells", [1, 2, 7, 50, 719, 720])
def test_a_block_is_shown_by_its_tightest_pixel(cells):
    generator = np.random.default_rng(cells)
    tightness, radius = generator.random((24, 30)), generator.random((24, 30))
    tightness[generator.random((24, 30)) < 0.7] = 0.0
    edge, row, column = blocks(tightness, radius, cells)
    assert row.size <= cells
    for i in range(row.shape[0]):
        for j in range(row.shape[1]):
            block = np.s_[i * edge : (i + 1) * edge, j * edge : (j + 1) * edge]
            assert (row[i, j] // edge, column[i, j] // edge) == (i, j)
            chosen = tightness[row[i, j], column[i, j]]
            assert chosen == tightness[block].max()
            if chosen == 0.0:
                assert radius[row[i, j], column[i, j]] == radius[block].min()


def test_smaller_maps_keep_the_worst_pixel_and_whose_it_is():
    given = maps(48, 60)
    given.flip_distance[31, 17] = 0.05
    picture = smaller(seen(given, cells=1000).picture, 40, 0)
    at = np.unravel_index(picture.tightness.argmax(), picture.tightness.shape)
    assert (picture.row[at], picture.column[at]) == (31, 17)
    assert picture.tightness[at] == 2.0
    assert picture.size == (48, 60)
    assert (at[0], at[1]) == (31 // picture.edge, 17 // picture.edge)


def test_curves_count_labelled_pixels_and_leave_ignored_ones_out():
    given = maps(2, 2)
    labels = torch.tensor([[0, 1], [2, 255]], dtype=torch.int32)
    given = maps(
        2,
        2,
        labels=labels,
        predicted=torch.tensor([[0, 1], [0, 0]], dtype=torch.int16),
        radius=torch.tensor([[0.1, 0.4], [0.4, 0.4]], dtype=torch.float64),
        flip_distance=torch.tensor([[0.2, torch.inf], [0.2, 0.2]], dtype=torch.float64),
        attacked=torch.tensor([[True, True], [True, True]]),
    )
    curves = seen(given).curves
    assert (curves.labelled, curves.valid, curves.right, curves.aimed) == (True, 3, 2, 3)
    certified = dict(zip(EPSILONS.round(6).tolist(), curves.certified.tolist(), strict=True))
    unbroken = dict(zip(EPSILONS.round(6).tolist(), curves.unbroken.tolist(), strict=True))
    aimed = dict(zip(EPSILONS.round(6).tolist(), curves.certified_aimed.tolist(), strict=True))
    assert aimed == certified
    for eps, count in certified.items():
        assert count == (eps <= 0.1) + (eps <= 0.4)
        assert unbroken[eps] == (eps < 0.2) + 1
    both = curves + seen(maps(2, 2)).curves
    assert both.valid == 3  # pixels without labels cannot be counted beside labelled ones


def content(pictures, report):
    return Content(report, [s.summary for s in pictures], [s.picture for s in pictures],
                   Pixels.joined([s.pixels for s in pictures]), pictures[0].curves, None)  # fmt: skip


def test_a_page_fits_its_limit_by_showing_less(report):
    attacked = torch.zeros(90, 120, dtype=torch.bool)
    whole = content([seen(maps(90, 120, attacked=attacked))], report)
    most, least = len(fitting(whole).encode()), len(fitting(whole, 1).encode())
    limit = (most + 2 * least) // 3
    small = fitting(whole, limit)
    assert least <= len(small.encode()) <= limit < most - 10_000
    assert "Maps of large images show one pixel for each block" in small


def test_a_page_of_noise_fits_its_limit(report):
    """Nothing is as large as noise: perturbed images are shrunk, and at last images left out, the dullest first."""

    def noisy(seed):
        given = maps(90, 120, seed)
        example = Example("region", "all", None, -1, -1, 0.1, 0.3, "ddn", 1 - given.image, given.predicted)
        given.flip_distance[0, 0] = 0.05 if seed == 2 else 0.1
        return seen(maps(90, 120, seed, examples=(example,), flip_distance=given.flip_distance), index=seed)

    whole = content([noisy(seed) for seed in range(4)], report)
    bare = len(fitting(replace(whole, pictures=[])).encode())
    most = len(fitting(whole).encode())
    assert most > bare + 400_000
    for room in (200_000, 5_000, 100):  # 100: room for longer ids of Bokeh, for no picture
        page = fitting(whole, bare + room)
        assert len(page.encode()) <= bare + room
        if room == 200_000:
            assert page.count('id="image-') == 4
    least = render(replace(whole, pictures=[smaller(picture, 256, 1, LEAST) for picture in whole.pictures]))
    half = fitting(whole, (bare + 2 * len(least.encode())) // 3)
    assert [half.count(f'id="image-{number}"') for number in range(4)].count(1) == 2
    assert 'id="image-2"' in half


def test_an_infinite_radius_a_tie_and_a_pixel_never_flipped_can_be_shown(report):
    given = maps()
    given.radius[0, 0], given.radius[0, 1] = torch.inf, 0.0
    given.flip_distance[0, 2] = torch.inf
    given.attacked[0, :3] = True
    example = Example("region", "class 1", None, -1, -1, None, 0.3, "ddn", given.image + 0.1, given.predicted)
    given = maps(examples=(example,), radius=given.radius, flip_distance=given.flip_distance, attacked=given.attacked)
    whole = content([seen(given)], report)
    page = fitting(whole)
    assert "region class 1" in page
    assert "NaN" not in "".join(part for part in parsed(page).text if len(part) < 5000)
    scales = Scales.of(whole)
    unknown = len(scales.palette("tightness")) - 1
    assert (scales.indices(whole.pictures[0], "tightness")[0, :3] == unknown).sum() >= 1


def test_pages_without_images_or_attacks(report):
    nothing = Content(report, [], [], Pixels.joined([]), None, None)
    page = fitting(nothing)
    assert 'id="images"' not in page
    assert "<h2>What the words mean</h2>" in page


@pytest.fixture(scope="module")
def report():
    """Of a quick run in memory."""
    import attackcheck as ac
    from attackcheck.models import exact

    model = exact.orthonormal_rows(seed=1).float()
    return ac.verify(model, torch.rand(1, 3, 8, 8), ac.LipschitzClaim(1.0), plan="quick", pixels=3, audit=False)
