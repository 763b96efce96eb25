"""Two real processes on the CPU against one process with the whole batch."""

import argparse
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attackcheck.commands import train as command
from attackcheck.errors import InputError
from attackcheck.models.batches import Pool, class_weights, read_batch
from attackcheck.models.checkpoint import load_checkpoint
from attackcheck.models.datasets import load_data
from attackcheck.models.processes import ALONE, Processes

COMMON = (
    "train", "--arch", "isounet", "--width", "8", "--data", "scenes:12:1:32x64", "--validation", "scenes:2:9:32x64",
    "--batch", "4", "--every", "2", "--lr", "0.01",
)  # fmt: skip


LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


def started(out: Path, *words: str) -> "subprocess.Popen[str]":
    """Two processes train together, by torchrun's own module; their standard error is read by the caller."""
    return subprocess.Popen(
        [*LAUNCHER, "-m", "attackcheck", *COMMON, "--out", str(out), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(out: Path, *words: str) -> tuple[int, str, str]:
    process = started(out, *words)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def curve(path: Path) -> list[list[float]]:
    """Loss and figures of every measurement; what is left out is the time."""
    lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return [[float(value) for place, value in enumerate(line) if place != 2] for line in lines]


def weights(path: Path) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_checkpoint(path).model.state_dict().values()])


def alone(out: Path, *words: str) -> None:
    """The same training in this process."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser.add_subparsers())
    assert command.run(parser.parse_args([*COMMON, "--out", str(out), *words])) == 0


TOGETHER = """
import sys, torch
from pathlib import Path
from attackcheck.models.datasets import load_data
from attackcheck.models.isounet import IsoUNetConfig
from attackcheck.models.networks import build
from attackcheck.models.processes import Processes
from attackcheck.models.training import Recipe, train

torch.set_num_threads(1)
processes = Processes.join(torch.device("cpu"))
network = build(IsoUNetConfig(7, width=8, depth=1, bottom=1, head=4), seed=0).double()
recipe = Recipe(steps=8, batch=4, lr=1e-2, focus=0.3, crop=(24, 32), loss="joint", margin=0.5, noise=0.01)
losses = [event.loss for event in train(network, load_data("scenes:12:1:32x64"), recipe, processes=processes)]
if processes.first:
    torch.save({"losses": losses, "network": network.state_dict()}, sys.argv[1])
processes.leave()
threads = Path("/proc/self/task")
if threads.exists():
    print("threads:", *(path.read_text().strip() for path in threads.glob("*/comm")))
"""


def test_two_processes_train_as_one_on_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, where rounding hides no wrong share: class weights, crops, noise, batch means, the joint loss."""
    script, one, two = tmp_path / "together.py", tmp_path / "one", tmp_path / "two"
    script.write_text(TOGETHER)
    monkeypatch.setattr(sys, "argv", [str(script), str(one)])
    runpy.run_path(str(script), run_name="__main__")
    done = subprocess.run(
        [*LAUNCHER, str(script), str(two)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "gloo" not in done.stdout  # its threads abort a process whose interpreter ends before them
    expected, found = torch.load(one), torch.load(two)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    assert expected["losses"][-1] < expected["losses"][0]
    for name, value in expected["network"].items():  # of which a step at this rate moves every number by about 1e-2
        torch.testing.assert_close(found["network"][name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_command_by_two_processes(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    words = ("--steps", "8", "--focus", "0.3", "--crop", "24x32", "--loss", "joint", "--margin", "0.5")
    alone(one, "--csv", f"{one}.csv", *words)
    code, output, errors = finished(two, "--csv", f"{two}.csv", *words)
    assert code == 0, errors
    assert output.count("pixel accuracy") == 1
    assert errors.count("step 4/8") == 1
    expected, found = curve(Path(f"{one}.csv")), curve(Path(f"{two}.csv"))
    assert len(expected) == 4
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[:3] == pytest.approx(theirs[:3], rel=1e-4)  # step, epoch, loss
        # AdamW moves what has no gradient but rounding (the lengths of columns) as fast as the rest.
        assert mine[3:] == pytest.approx(theirs[3:], abs=1e-2)


def waited_for(stream: Iterator[str], words: str) -> str:
    """The lines of a stream up to one with these words."""
    seen = ""
    for line in stream:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"no {words!r} in:\n{seen}")


def workers(parent: int) -> list[int]:
    """Process ids of torchrun's children that train."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in children if "attackcheck" in Path(f"/proc/{child}/cmdline").read_text()]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are found in /proc")
def test_ctrl_c_ends_all_after_the_same_step_and_resume_goes_on(tmp_path: Path) -> None:
    out, whole = tmp_path / "n.pt", tmp_path / "whole.pt"
    process = started(out, "--steps", "60", "--every", "20")
    assert process.stderr is not None
    waited_for(process.stderr, "step 20/60")
    os.kill(workers(process.pid)[-1], signal.SIGINT)  # the other one hears of it from this one
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("interrupted; the same command with --resume goes on") == 1
    assert errors.count("Traceback") <= 1  # torchrun's own, about a process that did not end with 0
    assert not out.exists()
    state = torch.load(tmp_path / "n.pt.state", weights_only=True)
    assert 20 <= state["step"] < 60
    assert finished(out, "--steps", "60", "--every", "20", "--resume")[0] == 0
    assert finished(whole, "--steps", "60", "--every", "20")[0] == 0
    torch.testing.assert_close(weights(out), weights(whole), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are found in /proc")
def test_a_killed_process_ends_the_others_with_one_sentence(tmp_path: Path) -> None:
    out = tmp_path / "n.pt"
    process = started(out, "--steps", "3000")
    assert process.stderr is not None
    waited_for(process.stderr, "step 4/3000")
    os.kill(workers(process.pid)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert "forcefully exiting via 9" not in errors  # torchrun's word for a process that does not end within 30 seconds
    assert process.returncode != 0
    assert (
        len(re.findall(r"attackcheck: another process of this training ended; step \d+ was the last one", errors)) == 1
    )
    assert torch.load(tmp_path / "n.pt.state", weights_only=True)["step"] % 2 == 0  # that of the last measurement


@pytest.mark.slow
def test_wrong_input_is_one_sentence_of_the_first_process(tmp_path: Path) -> None:
    code, _, errors = finished(tmp_path / "n.pt", "--steps", "2", "--batch", "5")
    assert code != 0
    assert errors.count("attackcheck: expected a batch that 2 processes can share evenly, got 5") == 1


def test_shares_make_up_the_batch() -> None:
    pool = Pool(load_data("scenes:6:1:32x64"))
    options = {"batch": 4, "seed": 3, "step": 5, "crop": (16, 16), "noise": 0.1}
    images, labels = read_batch(pool, share=range(4), **options)  # type: ignore[arg-type]
    parts = [read_batch(pool, share=Processes(rank, 2).share(4), **options) for rank in (0, 1)]  # type: ignore[arg-type]
    assert torch.equal(torch.cat([part[0] for part in parts]), images)
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)
    assert class_weights(pool, 7, 0.0) is None
    with pytest.raises(InputError, match="3 processes can share evenly, got 4"):
        Processes(0, 3).share(4)


def test_alone_nobody_is_met() -> None:
    assert Processes.join(torch.device("cpu"), {}) is ALONE
    assert (
        Processes.join(torch.device("cpu"), {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"})
        is ALONE
    )
    with pytest.raises(InputError, match="could not meet"):
        Processes.join(torch.device("cpu"), {"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"})
    assert not ALONE.lost(RuntimeError("Connection closed by peer"))
    assert Processes(0, 2).lost(RuntimeError("Connection closed by peer"))
    assert not Processes(0, 2).lost(RuntimeError("shapes do not fit"))
