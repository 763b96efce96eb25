"""The table of attacked pixels, read back and compared with the run folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from attackcheck.cli import main
from attackcheck.events import RunStarted
from attackcheck.recheck import Verdict
from attackcheck.reporters.parquet import ParquetReporter
from attackcheck.run_folder import read_run

parquet = pytest.importorskip("pyarrow.parquet")

FACTORY = """
import attackcheck as ac
from attackcheck.models import exact

def broken():
    return exact.orthonormal_rows(seed=1).float(), ac.LipschitzClaim(0.8)
"""
OPTIONS = ["nets.py:broken", "--data", "arrays:images.npz", "--plan", "quick", "--pixels", "7", "-q", "--no-audit"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    (folder / "nets.py").write_text(FACTORY)
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, (5, 9, 12))
    np.savez(folder / "images.npz", images=random.random((5, 3, 9, 12), dtype=np.float32), labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["verify", *OPTIONS, "--threads", "2", "--out", "run", "--parquet", "at-once.parquet"]) == 1
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


def test_every_attacked_pixel_is_a_row(capsys):
    assert main(["report", "run", "--parquet", "pixels.parquet"]) == 0
    assert capsys.readouterr().out == "pixels.parquet\n"
    assert not Path("run/report.html").exists()
    rows = parquet.read_table("pixels.parquet").to_pylist()
    assert len(rows) == 35
    at = 0
    for part in read_run("run").parts():
        maps = part.maps
        slack = {
            (r, c): float(value)
            for group in part.tally.pixels
            for (r, c), value in zip(group.pixels.tolist(), group.lipschitz_slack, strict=True)
        }
        for row, column in maps.attacked.nonzero().tolist():
            found, at = rows[at], at + 1
            assert (found["image"], found["name"]) == (part.number, part.name)
            assert (found["row"], found["column"]) == (row, column)
            for name, there in (
                ("predicted", maps.predicted),
                ("label", maps.labels),
                ("class_after", maps.class_after),
            ):
                assert found[name] == int(there[row, column])
            assert found["radius"] == float(maps.radius[row, column])
            assert found["distance"] == float(maps.flip_distance[row, column])
            assert found["tightness"] == found["radius"] / found["distance"] > 1
            assert found["lipschitz_slack"] == slack[row, column]
            assert found["attack"] == maps.attacks[int(maps.flipped_by[row, column])] == "linearised"
            assert found["verdict"] == list(Verdict)[int(maps.verdict[row, column])].name == "VIOLATED"
    assert at == len(rows)


def test_a_run_writes_the_same_table_and_says_of_what():
    main(["report", "run", "--parquet", "later.parquet"])
    once, later = parquet.read_table("at-once.parquet"), parquet.read_table("later.parquet")
    assert once.equals(later)  # images are examined side by side, and still in order here
    told = json.loads(once.schema.metadata[b"attackcheck"])
    assert (told["plan"], told["seed"], told["subject"]["L"]) == ("quick", 0, 0.8)


def test_what_is_not_known_is_null():
    """Radii of another's certifier without labels, and an attack that is far too short."""
    images = np.random.default_rng(1).random((1, 3, 9, 12), dtype=np.float32)
    np.savez("bare.npz", images=images)
    np.savez("radii.npz", radii=np.full((1, 9, 12), 1e-5))
    Path("short.toml").write_text('[[stage]]\nattack = "pgd"\neps = [1e-6]\n')
    options = ["--data", "arrays:bare.npz", "--radii", "radii.npz", "--plan", "short.toml", "--pixels", "3", "-q"]
    assert main(["verify", "nets.py:broken", *options, "--parquet", "bare.parquet"]) == 0
    rows = parquet.read_table("bare.parquet").to_pylist()
    assert len(rows) == 3
    for row in rows:
        assert row["label"] is row["class_after"] is row["lipschitz_slack"] is row["attack"] is None
        assert (row["distance"], row["tightness"], row["verdict"]) == (np.inf, 0.0, "HELD")


def test_what_is_in_the_way_is_one_sentence(capsys, monkeypatch):
    assert main(["verify", *OPTIONS, "--parquet", "nowhere/x.parquet"]) == 2
    assert "expected --parquet to be a file in an existing folder" in capsys.readouterr().err
    assert main(["report", "run", "--parquet", "-"]) == 2
    assert "expected --parquet to be a file" in capsys.readouterr().err
    monkeypatch.setattr("attackcheck.reporters.parquet.find_spec", lambda _: None)
    assert main(["report", "run", "--parquet", "x.parquet"]) == 2
    assert "pip install 'attackcheck[parquet]'" in capsys.readouterr().err


def test_a_run_that_breaks_off_leaves_nothing(tmp_path):
    with ParquetReporter(str(tmp_path / "x.parquet")) as reporter:
        reporter(RunStarted({"L": 1.0}, 3, "quick", 0, "all", (0, 1, 2)))
        assert list(tmp_path.iterdir()) != []
    assert list(tmp_path.iterdir()) == []
