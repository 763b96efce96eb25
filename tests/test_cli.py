"""The command line as a user meets it."""

import json
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from attackcheck.cli import main
from attackcheck.models.checkpoint import load_checkpoint
from attackcheck.models.shelf import shipped

FACTORY = """
import attackcheck as ac
from attackcheck.models import exact

def tight():
    return exact.orthonormal_rows(seed=1).float(), ac.LipschitzClaim(1.0)

def broken():
    return exact.orthonormal_rows(seed=1).float(), ac.LipschitzClaim(0.8)

def bare():
    return exact.orthonormal_rows(seed=1).float()

def fails():
    raise RuntimeError("no licence")

def interrupted():
    model = bare()
    calls = []
    def forward(x):
        calls.append(1)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return model(x)
    return forward, ac.LipschitzClaim(0.8)

number = 3
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a factory and three small images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(FACTORY)
    generator = np.random.default_rng(0)
    np.savez("images.npz", images=generator.random((3, 3, 8, 8), dtype=np.float32))
    return tmp_path


def verify(*arguments):
    return main(["verify", "--data", "arrays:images.npz", "--plan", "quick", "--pixels", "4", *arguments])


def test_a_sound_claim_passes_and_never_says_verified(place, capsys):
    assert verify("nets.py:tight") == 0
    out = capsys.readouterr().out
    assert "0 violations in 12 attacked pixels (linearised; seed 0)" in out
    assert "Detection limit: any uniform inflation of the radii above x 1.0" in out
    assert "verified" not in out
    assert not (place / "attackcheck-counterexamples").exists()


def test_a_broken_claim_fails_and_its_replay_commands_work(place, capsys):
    assert verify("nets.py:broken") == 1
    out = capsys.readouterr().out
    assert "UNSOUND" in out
    assert "1.25" in out
    commands = [shlex.split(line) for line in out.splitlines() if line.strip().startswith("attackcheck replay")]
    found = int(re.search(r"UNSOUND (\d+) violations", out)[1])
    assert len(commands) == min(20, found)  # one for every violation shown
    for command in commands:
        assert main(command[1:]) == 1
        assert "reproduced" in capsys.readouterr().out
    assert main([*commands[0][1:], "--lipschitz", "1.001"]) == 0
    assert "fixed" in capsys.readouterr().out
    assert main(["replay", commands[0][2]]) == 2  # code is run only if the user names it
    assert "--model" in capsys.readouterr().err


def test_json_on_stdout_is_one_object_and_nothing_else(place, capsys):
    assert verify("nets.py:broken", "--json", "-") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert document["violations"][0]["ratio"] == pytest.approx(1.25, rel=1e-3)
    assert document["counts"]["pixels"] == {"VIOLATED": 12}
    assert document["subject"]["L"] == document["subject"]["claim"]["L"] == 0.8
    assert {"path", "sha256", "L", "dtype", "device"} <= document["subject"].keys()
    assert verify("nets.py:tight", "--json", "report.json") == 0
    assert json.loads((place / "report.json").read_text())["sound"] is True


def test_piped_output_is_not_cut_and_data_is_not_markup(place):
    (place / "[bold]odd[").mkdir()
    long = "[bold]odd[/" + "very-" * 12 + "long.npz"
    (place / long).write_bytes((place / "images.npz").read_bytes())
    command = [sys.executable, "-m", "attackcheck.cli", "verify", "nets.py:tight", "--data", f"arrays:{long}"]
    done = subprocess.run([*command, "--plan", "quick", "--pixels", "2"], capture_output=True, text=True, check=True)
    assert long in done.stdout
    assert "\x1b" not in done.stdout
    assert "image 3/3" in done.stderr


def test_python_dash_c_import_is_light():
    code = "import sys, attackcheck, attackcheck.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pixels_of_an_array_that_python_2_has_written(place, capsys):
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1L, 3L), }"
    header = header.ljust(117) + b"\n"
    array = np.array([[0, 2, 3]], dtype="<i8").tobytes()
    (place / "old.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + array)
    assert verify("nets.py:tight", "--pixels", "old.npy") == 0
    printed = capsys.readouterr()
    assert "1 given pixel" in printed.out
    assert "numpy" not in printed.err.lower()
    assert "header" not in printed.err


def test_ctrl_c_prints_and_keeps_what_was_found(place, capsys):
    assert verify("nets.py:interrupted") == 130
    out = capsys.readouterr().out
    assert "interrupted" in out
    assert "UNSOUND" in out
    assert list((place / "attackcheck-counterexamples").glob("*.npz"))


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_does_not_crash(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "attackcheck", "verify", "--threads", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may ignore it for what it starts
    )
    time.sleep(12)  # both threads are inside an attack
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in out
    assert "terminate" not in err


def test_an_incomplete_run_says_so_even_when_quiet(place, capsys):
    assert verify("nets.py:interrupted", "-q") == 130
    assert "The run is incomplete: interrupted." in capsys.readouterr().out


def test_attacks_and_regions_by_name(place, capsys):
    assert verify("nets.py:tight", "--attack", "ddn,lipschitz", "--region", "rect:0,0,2,2") == 0
    out = capsys.readouterr().out
    assert "rect 0,0,2,2" in out
    assert "(ddn, lipschitz; seed 0)" in out


def test_radii_from_a_file(place, capsys):
    images = torch.from_numpy(np.load("images.npz")["images"])
    from attackcheck.models import exact

    model = exact.orthonormal_rows(seed=1)
    radii = np.stack([model.flip_distance(image.double()).numpy() for image in images])
    np.savez("sound.npz", radii=radii)
    np.savez("wrong.npz", radii=radii * 1.2)
    assert verify("nets.py:bare", "--radii", "sound.npz") == 0
    assert verify("nets.py:bare", "--radii", "wrong.npz") == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("attackcheck replay"))
    assert main(shlex.split(line.strip())[1:]) == 1


def test_state_dict_with_a_factory(place):
    from attackcheck.models import exact

    torch.save(exact.orthonormal_rows(seed=5).float().state_dict(), "weights.pt")
    assert verify("weights.pt", "--model", "nets.py:bare", "--lipschitz", "1.0") == 0
    assert verify("weights.pt", "--model", "nets.py:bare", "--lipschitz", "0.8") == 1


class Evil:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def hostile(path):
    path.write_bytes(pickle.dumps(Evil()))


def hostile_zip(path):
    torch.save({"state_dict": Evil()}, path)


def truncated(path):
    path.write_bytes(shipped().read_bytes()[:5000])


def nan_weights(path):
    content = torch.load(shipped(), weights_only=True)
    next(iter(content["state_dict"].values())).fill_(float("nan"))
    torch.save(content, path)


def no_constant(path):
    content = torch.load(shipped(), weights_only=True)
    del content["lipschitz"]
    torch.save(content, path)


@pytest.mark.parametrize("spoil", [hostile, hostile_zip, truncated, nan_weights, no_constant])
def test_a_bad_checkpoint_is_one_sentence_and_nothing_is_run(place, capsys, spoil):
    spoil(place / "bad.pt")
    assert main(["verify", "bad.pt"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("attackcheck: ")
    assert captured.err.count("\n") == 1
    assert "never be printed" not in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pt"], "missing.pt"),
        (["nets.py:nothing"], "nothing"),
        (["nets.py:number"], "callable"),
        (["nets.py:fails"], "no licence"),
        (["other.py:net"], "found none"),
        (["nets.py:bare"], "--lipschitz"),
        (["nets.py:bare", "--lipschitz", "0"], "above 0"),
        (["nets.py:bare", "--lipschitz", "-2"], "above 0"),
        (["nets.py:bare", "--lipschitz", "nan"], "above 0"),
        (["nets.py:bare", "--radii", "nothing.npz"], "radii"),
        (["nets.py:bare", "--radii", "images.npz"], "radii"),
        (["nets.py:tight", "--scope", "pixel"], "--lipschitz"),
        (["nets.py:tight", "--pixels", "0"], "at least 1"),
        (["nets.py:tight", "--pixels", "few"], "--pixels"),
        (["nets.py:tight", "--images", "0"], "--images"),
        (["nets.py:tight", "--attack", "ddn,pgdd"], "pgd"),
        (["nets.py:tight", "--attack", ","], "attack"),
        (["nets.py:tight", "--plan", "nothing.toml"], "nothing.toml"),
        (["nets.py:tight", "--region", "circle:1"], "region"),
        (["nets.py:tight", "--region", "rect:0,0,99,1"], "8x8"),
        (["nets.py:tight", "--target", "7"], "target"),
        (["nets.py:tight", "--budget", "soon"], "--budget"),
        (["nets.py:tight", "--seed", "-1"], "seed"),
        (["nets.py:tight", "--device", "cuda:99"], "device"),
        (["nets.py:tight", "--data", "arrays:none.npz"], "none.npz"),
        (["nets.py:tight", "--data", "folder:."], "images"),
        (["nets.py:tight", "--data", "what"], "what"),
        (["nets.py:tight", "--out", "nets.py"], "--out"),
        (["nets.py:tight", "--json", "no/such/folder.json"], "--json"),
    ],
)
def test_bad_arguments_are_one_sentence(place, capsys, arguments, message):
    assert verify(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("attackcheck: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((1, 3, 8, 8), np.nan, np.float32), "NaN"),
        (np.full((1, 3, 8, 8), 1.5, np.float32), "[0, 1]"),
        (np.zeros((0, 3, 8, 8), np.float32), "image"),
        (np.zeros((1, 4, 8, 8), np.float32), "does not accept images"),
        (np.zeros((3, 8), np.float32), "shape"),
    ],
)
def test_bad_images_are_one_sentence(place, capsys, images, message):
    np.savez("images.npz", images=images)
    assert verify("nets.py:tight") == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_the_shipped_network_holds_and_half_its_witnessed_constant_does_not(place, capsys):
    common = ["verify", "--images", "1", "--pixels", "6", "--attack", "linearised,lipschitz", "--json", "-"]
    assert main(common) == 0
    document = json.loads(capsys.readouterr().out)
    witnessed = load_checkpoint(shipped()).lipschitz_joint / document["detection_limit"]["map"]
    assert main([*common, "--lipschitz", str(witnessed / 2)]) == 1
    found = json.loads(capsys.readouterr().out)["violations"]
    assert {violation["kind"] for violation in found} == {"PIXEL", "TWO_BALL", "SET", "LIPSCHITZ"}
    for violation in found[:3]:
        assert main(["replay", violation["counterexample"], "--lipschitz", str(witnessed / 2)]) == 1
        assert main(["replay", violation["counterexample"], "--lipschitz", "2"]) == 0


def test_verbose_shows_every_call_and_every_violation_and_quiet_nothing_of_it(place, capsys):
    assert verify("nets.py:broken", "-v", "--threads", "1") == 1
    shown = capsys.readouterr()
    assert "image 3/3: linearised, call 1/2, worst r/d 1.2" in shown.err
    assert shown.err.count("VIOLATED") > 6
    found = int(re.search(r"UNSOUND (\d+) violations", shown.out)[1])
    assert shown.out.count("attackcheck replay") == found + 1  # the audit has a pair of images, too
    assert verify("nets.py:broken", "-q", "--threads", "1") == 1
    shown = capsys.readouterr()
    assert "image 3/3" not in shown.err
    with pytest.raises(SystemExit):
        verify("nets.py:broken", "-q", "-v")


def test_verify_attacks_the_refined_certificate(tmp_path, capsys):
    factory = tmp_path / "net.py"
    factory.write_text(
        "import torch\nfrom attackcheck import LipschitzClaim\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)), LipschitzClaim(9.0)\n"
    )
    common = ["verify", f"{factory}:make", "--images", "1", "--pixels", "2", "--attack", "linearised", "--no-audit"]
    assert main([*common, "--out", str(tmp_path / "out"), "--refined"]) == 0
    assert "refined in the last layers" in capsys.readouterr().out
