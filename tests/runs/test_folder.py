"""A run folder holds what the run found, to the last bit, and the same command goes on in it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from attackcheck import InputError, Verdict
from attackcheck.cli import main
from attackcheck.errors import CannotWrite
from attackcheck.events import PartFinished, RunFinished
from attackcheck.run_folder import read_run

COMMAND = [sys.executable, "-m", "attackcheck.cli"]


def test_what_is_read_back_is_what_the_run_said(verify, plain):
    assert verify("--out", "run", "--json", "report.json") == 1
    run = read_run("run")
    assert plain("report.json") == plain("run/summary.json")
    Path("again.json").write_text(json.dumps(run.report.to_dict()))
    assert plain("again.json") == plain("report.json")
    assert run.unfinished == []
    report = run.report
    for number, part in enumerate(run.parts()):
        maps = part.maps
        assert (part.number, part.complete) == (number, True)
        assert np.array_equal(maps.radius.numpy(), report.radii[number])
        assert np.array_equal(maps.flip_distance.numpy(), report.flip_distances[number])
        assert (maps.flipped_by >= 0).equal(maps.flip_distance.isfinite())
        assert (maps.verdict >= 0).equal(maps.attacked)
        flipped = maps.attacked & maps.flip_distance.isfinite()
        assert (maps.class_after[flipped] >= 0).all()
        assert (maps.class_after[flipped] != maps.predicted[flipped]).all()
        assert (maps.class_after[~maps.attacked] == -1).all()
    broken = {(v.image, *v.pixel) for v in report.violations if v.kind.name == "PIXEL"}
    violated = list(Verdict).index(Verdict.VIOLATED)
    shown = {(p.number, r, c) for p in run.parts() for r, c in (p.maps.verdict == violated).nonzero().tolist()}
    assert shown == broken
    assert len(broken) > 3
    lines = [json.loads(line) for line in Path("run/violations.jsonl").read_text().splitlines()]
    assert len(lines) == len(report.violations)
    assert all(os.path.isfile(os.path.join("run", line["counterexample"])) for line in lines)


def test_images_and_examples_are_exact(verify, place):
    images = np.load("images.npz")["images"]
    assert verify("--out", "run") == 1
    model = __import__("runpy").run_path("nets.py")["net"]()[0].float()
    kinds = set()
    for part in read_run("run").parts():
        assert np.array_equal(part.maps.image.numpy(), images[part.number])
        with np.load(f"run/parts/image-{part.number:06d}.npz") as archive:
            assert archive["image"].dtype == (np.uint8 if part.number == 1 else np.float32)
        for example in part.maps.examples:
            kinds.add(example.kind)
            distance = (example.perturbed.double() - part.maps.image.double()).norm()
            assert float(distance) == pytest.approx(example.distance, rel=1e-6)
            with torch.no_grad():
                after = model(example.perturbed.expand(2, 3, 8, 8))[0].argmax(dim=0)
            assert after.equal(example.after.long())
            if example.pixel is not None:
                assert int(after[example.pixel]) == example.target != example.predicted
                assert example.radius == float(part.maps.radius[example.pixel])
    assert kinds == {"pixel", "region"}


def test_the_same_command_repeats_nothing(verify, plain, capsys):
    assert verify("--out", "run", "--json", "report.json") == 1
    before = {name: os.stat(f"run/parts/{name}").st_mtime_ns for name in os.listdir("run/parts")}
    capsys.readouterr()
    assert verify("--out", "run", "--json", "again.json") == 1
    assert capsys.readouterr().err.count("done before") == 5
    assert plain("again.json") == plain("report.json")
    assert before == {name: os.stat(f"run/parts/{name}").st_mtime_ns for name in os.listdir("run/parts")}
    assert len(json.loads(Path("run/run.json").read_text())["sessions"]) == 2


def test_an_interrupted_run_keeps_what_it_has_and_goes_on(verify, plain, place):
    assert verify("--out", "run", "--json", "stopped.json", net="interrupted") == 130
    stopped = read_run("run")
    assert stopped.missing == [2, 3, 4]
    assert [part.complete for part in stopped.parts()] == [True, True, False]
    assert plain("stopped.json")["counts"] == stopped.report.to_dict()["counts"]
    assert stopped.report.stopped == "3 of 5 images are missing"
    (place / "go").touch()
    assert verify("--out", "run", "--json", "resumed.json", net="interrupted") == 1
    assert verify("--out", "fresh", "--json", "fresh.json", net="interrupted") == 1
    assert plain("resumed.json") == plain("fresh.json")
    assert not list((place / "run" / "parts").glob("*.partial.npz"))


@pytest.mark.slow
def test_maxfail_and_budget_leave_the_rest_for_later(verify, plain):
    assert verify("--out", "run", "--maxfail", "1") == 1
    stopped = read_run("run")
    (part,) = stopped.parts()
    assert not part.complete
    assert stopped.numbers == []
    assert [v.verdict.name for v in stopped.report.violations] == ["VIOLATED"]
    assert verify("--out", "run", "--budget", "0.000001s") == 1
    assert read_run("run").numbers == []
    assert verify("--out", "run", "--json", "run.json") == 1
    assert verify("--json", "report.json") == 1
    assert plain("run.json") == plain("report.json")


def kill_after(parts, *arguments):
    """Start the command in a process of its own and kill it once that many parts are there; whether it was alive."""
    common = ["--data", "arrays:images.npz", "--plan", "plan.toml", "--pixels", "4", "--region", "rect:1,1,2,3"]
    process = subprocess.Popen(
        [*COMMAND, "verify", "nets.py:slow", *common, "--threads", "1", "--out", "run", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if os.path.isdir("run/parts") and len([n for n in os.listdir("run/parts") if n[0] != "."]) >= parts:
            break
        time.sleep(0.01)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def test_kill_loses_at_most_the_image_in_hand(verify, plain, place):
    (place / "slow").touch()
    assert kill_after(2)
    (place / "slow").unlink()
    run = read_run("run")
    assert 2 <= len(run.numbers) < 5
    assert all(part.complete for part in run.parts())
    before = {name: os.stat(f"run/parts/{name}").st_mtime_ns for name in os.listdir("run/parts") if name[0] != "."}
    assert verify("--out", "run", "--json", "resumed.json", net="slow") == 1
    after = {name: os.stat(f"run/parts/{name}").st_mtime_ns for name in os.listdir("run/parts") if name[0] != "."}
    assert before.items() <= after.items()
    assert verify("--json", "whole.json", net="slow") == 1
    assert plain("resumed.json") == plain("whole.json")


@pytest.mark.slow
def test_kill_at_any_moment(verify, plain, place):
    """Killed again and again at random moments, the run still ends with the report of a run in one piece."""
    generator = np.random.default_rng(3)
    (place / "slow").touch()
    common = ["--data", "arrays:images.npz", "--plan", "plan.toml", "--pixels", "4", "--region", "rect:1,1,2,3"]
    for _ in range(8):
        process = subprocess.Popen(
            [*COMMAND, "verify", "nets.py:slow", *common, "--threads", "1", "--out", "run", "-q"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=float(generator.uniform(1.0, 4.0)))
        process.kill()
        process.wait()
    (place / "slow").unlink()
    assert verify("--out", "run", "--json", "resumed.json", net="slow") == 1
    assert verify("--json", "whole.json", net="slow") == 1
    assert plain("resumed.json") == plain("whole.json")


@pytest.mark.skipif(os.name != "posix", reason="no limits on files")
@pytest.mark.slow
def test_a_full_disk_ends_the_run_cleanly_and_it_goes_on_later(verify, plain, place):
    common = "--data arrays:images.npz --plan plan.toml --pixels 4 --region rect:1,1,2,3 --threads 1 --out run"
    command = f"ulimit -f 8; exec {sys.executable} -m attackcheck.cli verify nets.py:net {common} --no-audit"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1  # what was found is still a violation
    assert "The run is incomplete: could not write run/parts/" in done.stdout
    assert "UNSOUND" in done.stdout
    assert "Traceback" not in done.stderr
    assert not list((place / "run" / "parts").glob("*"))
    assert verify("--out", "run", "--json", "resumed.json", "--no-audit") == 1
    assert verify("--json", "whole.json", "--no-audit") == 1
    assert plain("resumed.json") == plain("whole.json")


def test_a_full_disk_with_images_side_by_side(verify, monkeypatch, capsys):
    from attackcheck.part_files import save_part

    def refuse(part, path, folder):
        if part.number >= 1:
            raise CannotWrite(f"could not write {path}: No space left on device")
        save_part(part, path, folder)

    assert verify("--out", "run", "--pixels", "2") == 1  # run.json and all, so that only parts are left to fail
    for name in os.listdir("run/parts"):
        os.remove(f"run/parts/{name}")
    monkeypatch.setattr("attackcheck.run_folder.save_part", refuse)
    capsys.readouterr()
    assert verify("--out", "run", "--pixels", "2", "--threads", "2") == 1
    assert "The run is incomplete: could not write" in capsys.readouterr().out
    assert len(read_run("run").numbers) <= 2


def test_another_configuration_is_refused(verify, capsys):
    assert verify("--out", "run", "--no-audit", "--maxfail", "1") == 1
    capsys.readouterr()
    for change, message in (
        (["--pixels", "5"], "pixels 4 and not 5"),
        (["--seed", "1"], "seed 0 and not 1"),
        (["--plan", "quick"], "another plan"),
        (["--box"], "other box"),
        (["--lipschitz", "3"], "another claim"),
        (["--images", "4"], "other images"),
        (["--no-crops"], "crops True and not False"),
    ):
        assert verify("--out", "run", "--no-audit", *change) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("attackcheck: run holds a run of ")
        assert error.count("\n") == 1


def test_another_model_image_or_label_is_refused(verify, place, capsys):
    start = ["--out", "run", "--no-audit", "--maxfail", "1"]
    assert verify(*start) == 1
    assert verify(*start, net="other") == 2
    assert "another model" in capsys.readouterr().err
    with np.load("images.npz") as archive:
        content = {name: archive[name] for name in archive.files}
    for name in content:
        changed = content[name].copy()
        changed[4, ..., 7, 7] = 0
        np.savez("images.npz", **(content | {name: changed}))
        assert verify(*start) == 2
        assert "other images or labels" in capsys.readouterr().err
    np.savez("images.npz", **content)
    assert verify(*start, "--batch", "3", "--strict") == 1  # of no consequence for results
    capsys.readouterr()
    assert verify(*start, net="other") == 2
    assert "the same file made other weights" in capsys.readouterr().err
    (place / "nets.py").write_text((place / "nets.py").read_text().replace("seed=4", "seed=4 "))
    assert verify(*start) == 2  # the code of the factory


def test_a_folder_of_something_else_is_left_alone(verify, place, capsys):
    (place / "photos").mkdir()
    (place / "photos" / "cat.png").touch()
    assert verify("--out", "photos") == 2
    assert "holds other files" in capsys.readouterr().err
    assert os.listdir("photos") in (["cat.png"], [".lock", "cat.png"], ["cat.png", ".lock"])
    (place / "run").mkdir()
    (place / "run" / "run.json").write_text("{")
    assert verify("--out", "run") == 2
    assert "expected JSON" in capsys.readouterr().err
    (place / "run" / "run.json").write_text('{"format": "else"}')
    assert verify("--out", "run") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert verify("--out", "good", "--maxfail", "1") == 1
    whole = json.loads((place / "good" / "run.json").read_text())
    capsys.readouterr()
    for name in ("header", "identity", "images", "sessions", "options"):
        for wrong in ({}, None, 3, "x", [1]):
            if isinstance(whole[name], type(wrong)):
                continue
            (place / "run" / "run.json").write_text(json.dumps(whole | {name: wrong}))
            assert main(["merge", "run", "--out", "merged"]) == 2
            captured = capsys.readouterr().err
            assert captured.startswith("attackcheck: expected a run described by attackcheck"), captured
            assert captured.count("\n") == 1


def test_two_runs_do_not_write_to_one_folder(verify, capsys):
    import fcntl

    os.mkdir("run")
    with open("run/.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert verify("--out", "run") == 2
    assert "another run is writing to it" in capsys.readouterr().err
    assert verify("--out", "run", "--maxfail", "1") == 1


def test_a_damaged_part_is_done_again(verify, plain, capsys):
    assert verify("--out", "run", "--json", "report.json") == 1
    path = Path("run/parts/image-000002.npz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="image-000002"):
        list(read_run("run").parts())
    assert main(["merge", "run", "--out", "merged"]) == 2
    capsys.readouterr()
    assert verify("--out", "run", "--json", "again.json") == 1
    captured = capsys.readouterr().err
    assert "AC126" in captured
    assert captured.count("done before") == 4
    assert plain("again.json") == plain("report.json")


def test_parts_hold_no_objects(verify):
    assert verify("--out", "run", "--images", "1") == 1
    assert os.listdir("run/parts")
    for name in os.listdir("run/parts"):
        with np.load(f"run/parts/{name}", allow_pickle=False) as archive:
            assert all(archive[entry].dtype.hasobject is False for entry in archive.files)


@pytest.mark.slow
def test_events_from_disk_are_those_of_the_run(verify):
    assert verify("--out", "run") == 1
    run = read_run("run")
    events = list(run.events())
    assert [event.part.number for event in events if isinstance(event, PartFinished)] == [0, 1, 2, 3, 4]
    assert isinstance(events[-1], RunFinished)
    assert events[-1].report.to_dict() == run.report.to_dict()
