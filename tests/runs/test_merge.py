"""Shards, merged, are the run in one process, bit for bit."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from attackcheck import InputError
from attackcheck.cli import main
from attackcheck.parts import METRICS, TRIAL
from attackcheck.run_folder import read_run
from attackcheck.sharding import local_rank, read_shard, share


@pytest.fixture
def shards(verify):
    """Three shards of one run in the folder `shards`."""
    for place in (1, 2, 3):
        assert verify("--out", "shards", "--shard", f"{place}/3", "-q") == 1
    return Path("shards")


def test_merged_shards_are_the_whole_run_bit_for_bit(verify, shards, plain):
    assert verify("--out", "whole", "--json", "whole.json") == 1
    assert main(["merge", "shards", "--out", "merged", "--json", "merged.json", "--junit", "merged.xml"]) == 1
    assert plain("merged.json") == plain("whole.json") == plain("merged/summary.json")
    one, other = read_run("whole"), read_run("merged")
    assert sorted(os.listdir("merged/counterexamples")) == sorted(os.listdir("whole/counterexamples"))
    for first, second in zip(one.parts(), other.parts(), strict=True):
        for name in ("image", "labels", "predicted", "radius", "flip_distance", "flipped_by", "class_after", "verdict"):
            a, b = getattr(first.maps, name), getattr(second.maps, name)
            assert a.dtype == b.dtype
            assert np.array_equal(a.numpy(), b.numpy()), name
    assert len(other.description["sessions"]) == 3
    assert Path("merged.xml").is_file()
    # a merged run is a run like any other: nothing is left to do
    assert verify("--out", "merged", "--json", "again.json") == 1
    assert plain("again.json") == plain("whole.json")


@pytest.mark.slow
def test_replay_commands_of_a_merged_run_work(verify, shards, capsys):
    assert main(["merge", "shards", "--out", "merged"]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("attackcheck replay"))
    assert main(line.split()[1:]) == 1


def test_gadgets_and_metrics_are_done_once(verify, plain, place):
    (place / "claims.toml").write_text('[[metric]]\nmeasure = "accuracy"\neps = 0.1\nvalue = 0.99\n')
    options = ["--radii", "nets.py:certifier", "--lipschitz", "1", "--metric", "claims.toml", "--images", "2", "-q"]
    assert verify(*options, "--out", "whole", "--json", "whole.json", net="bare") == 1
    for shard in ("1/2", "2/2"):
        assert verify(*options, "--out", "shards", "--shard", shard, net="bare") == 1
    first, second = (read_run(f"shards/shard-{i}-of-2") for i in (1, 2))
    assert (first.numbers, second.numbers) == ([TRIAL, 0], [1, METRICS])
    assert main(["merge", "shards", "--out", "merged", "--json", "merged.json", "-q"]) == 1
    assert plain("merged.json") == plain("whole.json")
    kinds = json.loads(Path("merged.json").read_text())["counts"]["findings"]
    assert kinds["GADGET"]
    assert kinds["METRIC"]["VIOLATED"] > 0
    os.remove("shards/shard-2-of-2/parts/metrics.npz")
    with pytest.raises(InputError, match="missing: the claims about the data set"):
        merge_of("shards", "other")


def merge_of(*arguments):
    from attackcheck.merging import merge, runs_in

    return merge(runs_in(arguments[:-1]), Path(arguments[-1]))


def test_what_is_missing_is_named(verify, shards, capsys):
    assert main(["merge", "shards/shard-1-of-3", "shards/shard-3-of-3", "--out", "merged"]) == 2
    error = capsys.readouterr().err
    assert "missing: image 1, image 4 (shard 2/3 is not among the folders)" in error
    assert not Path("merged").exists()
    os.remove("shards/shard-2-of-3/parts/image-000004.npz")
    assert main(["merge", "shards", "--out", "merged"]) == 2
    assert "missing: image 4 (shards/shard-2-of-3 is not finished)" in capsys.readouterr().err
    assert verify("--out", "shards", "--shard", "2/3", "-q") == 1  # only what is missing is done again
    assert main(["merge", "shards", "--out", "merged", "-q"]) == 1


def test_what_does_not_belong_together_is_refused(verify, shards, capsys):
    with pytest.raises(InputError, match="image 0 is in both"):
        merge_of("shards", "shards/shard-1-of-3", "merged")
    assert verify("--out", "others", "--shard", "2/3", "--seed", "1", "-q") == 1
    with pytest.raises(InputError, match="do not belong together: seed 0 and not 1"):
        merge_of("shards/shard-1-of-3", "others", "merged")
    shutil.rmtree("others")
    assert verify("--out", "others", "--shard", "2/3", "-q", net="other") == 1
    with pytest.raises(InputError, match="another model"):
        merge_of("shards/shard-1-of-3", "others", "merged")
    assert main(["merge", "nowhere", "--out", "merged"]) == 2
    assert main(["merge", "shards", "--out", "shards/shard-1-of-3"]) == 2  # it holds another run
    assert verify("--out", "shards/shard-1-of-3") == 2
    assert "shard 1/3 and not none" in capsys.readouterr().err


def test_shards_cover_every_image_once():
    for images in range(1, 9):
        for count in range(1, images + 1):
            shares = [share(images, (place, count)) for place in range(1, count + 1)]
            assert sorted(sum(shares, ())) == list(range(images))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(InputError, match="at most 2 shards"):
        share(2, (1, 3))


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8"}, (4, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (4, 8)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "4"}, (2, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "6",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (4, 4),
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "2",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "4",
            },
            (10, 12),
        ),
    ],
)
def test_schedulers_are_understood_when_asked(environment, shard):
    assert read_shard("auto", environment) == shard
    assert read_shard(None, environment) is None  # a script without tasks must not leave images out
    assert read_shard("2/5", environment) == (2, 5)


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("auto", {}),
        ("auto", {"RANK": "8", "WORLD_SIZE": "8"}),
        ("auto", {"RANK": "x", "WORLD_SIZE": "8"}),
        ("auto", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "1"}),
        ("0/2", {}),
        ("3/2", {}),
        ("1", {}),
        ("1/0", {}),
        ("-1/2", {}),
        ("a/b", {}),
    ],
)
def test_bad_shards_are_refused(text, environment):
    with pytest.raises(InputError):
        read_shard(text, environment)


def test_tasks_of_one_machine_have_a_number():
    assert local_rank({"LOCAL_RANK": "3"}) == 3
    assert local_rank({"SLURM_LOCALID": "1"}) == 1
    assert local_rank({}) == 0


def test_the_environment_names_the_shard(verify, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert verify("--out", "run", "--shard", "auto", "-q") == 1
    assert read_run("run/shard-2-of-5").numbers == [1]
