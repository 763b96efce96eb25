"""Looking at one image or pixel of a run in the terminal."""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from attackcheck.cli import main
from attackcheck.reporters.mosaic import SHADES, legend, tightness_map
from attackcheck.run_folder import read_run

FACTORY = """
import attackcheck as ac
from attackcheck.models import exact

def broken():
    return exact.orthonormal_rows(seed=1).float(), ac.LipschitzClaim(0.8)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "nets.py").write_text(FACTORY)
    np.savez(folder / "images.npz", images=np.random.default_rng(0).random((2, 3, 9, 12), dtype=np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["--data", "arrays:images.npz", "--plan", "quick", "--pixels", "5", "--threads", "1"]
        assert main(["verify", "nets.py:broken", *options, "--out", "run", "-q"]) == 1
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


def test_all_images_then_one_then_a_pixel(capsys):
    assert main(["inspect", "run"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3
    part = next(iter(read_run("run").parts()))
    maps = part.maps
    row, column = maps.attacked.nonzero()[2].tolist()
    radius, distance = float(maps.radius[row, column]), float(maps.flip_distance[row, column])
    assert main(["inspect", "run", "--image", "0"]) == 0
    out = capsys.readouterr().out
    assert out.count("VIOLATED") == 5
    assert f"{radius / distance:.4f}" in out
    assert main(["inspect", "run", "--image", "0", "--pixel", f"{row},{column}"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"radius +{radius:.9g}\n", out)
    assert re.search(rf"distance +{distance:.9g}\n", out)
    assert "by linearised" in out
    assert "VIOLATED PIXEL" in out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["nowhere"], "there is no nowhere"),
        (["run", "--image", "7"], "expected an image of this run (0, 1), got 7"),
        (["run", "--pixel", "1,1"], "expected --image beside --pixel"),
        (["run", "--image", "0", "--pixel", "1"], "expected --pixel to be ROW,COLUMN"),
        (["run", "--image", "0", "--pixel", "9,0"], "expected a pixel inside 9x12"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(capsys, options, sentence):
    assert main(["inspect", *options]) == 2
    assert sentence in capsys.readouterr().err


QUICK = ["--data", "arrays:images.npz", "--plan", "quick", "--threads", "1", "--no-audit"]


def test_verify_examines_one_image_alone_as_it_does_among_all(capsys):
    """Under its own number: seeds and radii given for each image depend on it."""
    assert main(["verify", "nets.py:broken", *QUICK, "--pixels", "5", "--image", "1", "--json", "one.json"]) == 1
    out = capsys.readouterr().out
    assert "2 images; image 1 alone: 5 certified pixels" in out
    assert out.rindex("image 1 (") > out.rindex("Replay them")
    assert out.rindex("r/d: 0 .") > out.index("VIOLATED")
    document = json.loads(Path("one.json").read_text())
    assert document["numbers"] == [1]
    among = [found for found in read_run("run").report.violations if found.image == 1]
    assert [(v["kind"], v["radius"], v["distance"]) for v in document["violations"]] == [
        (v.kind.name, v.radius, v.distance) for v in among
    ]


def test_verify_tells_the_story_of_one_pixel(capsys):
    assert main(["verify", "nets.py:broken", *QUICK, "--image", "1", "--pixel", " 4,7"]) == 1
    out = capsys.readouterr().out
    assert "image 1 alone: 1 given pixel\n" in out
    assert "1 attacked pixel" in out
    story = out.partition("pixel 4, 7, and what is around it")[2]
    assert re.search(r"r/d +1\.\d{6}\n", story)
    assert re.search(r"by linearised +\d", story)
    assert "VIOLATED PIXEL" in story
    assert main(["verify", "nets.py:broken", *QUICK, "--image", "1", "--pixel", "4,7", "-q"]) == 1
    assert "what is around it" not in capsys.readouterr().out


def test_one_image_is_one_of_a_run_that_may_go_on(capsys):
    options = ["verify", "nets.py:broken", *QUICK, "--pixels", "5", "--out", "grown"]
    assert main([*options, "--image", "1"]) == 1
    assert read_run("grown").numbers == [1]
    assert main(options) == 1
    assert "image 2/2: done before" in capsys.readouterr().err
    assert read_run("grown").numbers == [0, 1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--image", "2"], "expected --image from 0 to 1, got 2"),
        (["--image", "-1"], "expected --image from 0 to 1, got -1"),
        (["--pixel", "1,1"], "expected --image beside --pixel"),
        (["--pixel", "64"], "expected --pixel to be ROW,COLUMN such as 12,34, got '64'"),
        (["--image", "0", "--pixel", "9,0"], "expected a pixel inside 9x12, got row 9, column 0"),
        (["--image", "0", "--shard", "1/2"], "expected --image or --shard, got both"),
        (["--image", "0", "--pixel", "1,1", "--attack", "lipschitz"], "expected an attack on pixels in the plan"),
        (["--image", "0", "--metric", "metric.toml"], "expected --image or claims about the whole data set"),
    ],
)
def test_what_verify_cannot_look_at_is_one_sentence(capsys, options, sentence):
    Path("metric.toml").write_text('[[metric]]\nmeasure = "accuracy"\neps = 0.1\nvalue = 0.9\n')
    assert main(["verify", "nets.py:broken", *QUICK, *options]) == 2
    assert sentence in capsys.readouterr().err


def test_image_and_images_are_two_options():
    with pytest.raises(SystemExit):
        main(["verify", "--imag", "1"])


def drawn(tightness, width, rows, colours, mark=None):
    out = io.StringIO()
    console = Console(file=out, force_terminal=colours, width=width, color_system="truecolor" if colours else None)
    console.print(tightness_map(console, tightness, np.ones_like(tightness), rows, mark), end="")
    return out.getvalue()


def test_without_colours_a_violation_is_a_letter_that_never_disappears():
    tightness = np.zeros((64, 200))
    tightness[40, 133] = 1.0001
    text = drawn(tightness, 50, 20, colours=False)
    assert text.count(SHADES[-1]) == 1
    assert max(map(len, text.splitlines())) <= 50
    assert len(text.rstrip("\n").splitlines()) <= 20
    tightness[40, 133] = 1.0
    assert SHADES[-1] not in drawn(tightness, 50, 20, colours=False)


def test_half_blocks_show_two_rows_in_each_line_and_the_pixel_meant():
    tightness = np.full((7, 10), 0.5)
    text = drawn(tightness, 60, 20, colours=True, mark=(5, 3))
    assert len(text.splitlines()) == 4
    assert text.count("▀") == 4 * 10 - 1
    assert text.splitlines()[2].count("◆") == 1
    assert legend(Console(file=io.StringIO(), color_system=None)).plain.startswith("r/d: 0 .")


def test_in_colours_the_smallest_violation_is_red():
    tightness = np.full((2, 10), 0.9999)
    tightness[0, 4] = 1.0001
    text = drawn(tightness, 60, 20, colours=True)
    colours = [tuple(map(int, found)) for found in re.findall(r"38;2;(\d+);(\d+);(\d+)", text)]
    red = [r > g + 60 and r > b + 60 for r, g, b in colours]
    assert sum(red) == 1


def test_the_page_about_looking_at_a_run_tells_what_works(place, monkeypatch, capsys, tmp_path):
    pytest.importorskip("bokeh")
    docs = Path(__file__).parents[1] / "docs"
    text = (docs / "looking.md").read_text()
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (docs / picture).is_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text(FACTORY.replace("broken", "net"))
    quick = ["--data", f"arrays:{place / 'images.npz'}", "--plan", "quick", "--pixels", "3", "--threads", "1"]
    ran = 0
    for line in "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["attackcheck"]:
            assert main([*words[1:], *(quick if words[1] == "verify" else [])]) == int(words[1] == "verify"), line
            ran += 1
    assert ran == 8
    assert (tmp_path / "report.html").is_file()
