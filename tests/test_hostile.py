"""Files and programs of strangers: nothing of theirs runs, nothing of ours is lost."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from attackcheck.cli import main
from attackcheck.models.shelf import shipped

COMMAND = [sys.executable, "-m", "attackcheck.cli"]
QUICK = ["verify", "--images", "1", "--pixels", "2", "--plan", "quick", "--threads", "1"]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A counterexample against the shipped network, and a way to rewrite its description."""
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, "--lipschitz", "0.3", "-q"]) == 1
    path = next((tmp_path / "attackcheck-counterexamples").glob("pixel-*.npz"))

    def rewrite(**changes):
        with np.load(path) as archive:
            content = {name: archive[name] for name in archive.files}
        meta = json.loads(str(content["meta"]))
        meta |= changes
        np.savez("changed.npz", **(content | {"meta": json.dumps(meta)}))
        return "changed.npz"

    return path, rewrite


@pytest.mark.parametrize(
    "subject", [{"path": "evil.py:net"}, {"path": "evil.py:net", "factory": ""}, {"path": "evil:net"}]
)
def test_a_path_in_a_counterexample_is_never_code(example, capsys, subject):
    with open("evil.py", "w") as file:
        file.write("open('run', 'w').write('!')\ndef net(): pass\n")
    assert main(["replay", example[1](subject=subject)]) == 2
    assert not os.path.exists("run")
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject": {}}, "does not say where its model lies"),
        ({"subject": {"path": 3}}, "does not say where its model lies"),
        ({"pixel": [9999, 0]}, "inside 64x128"),
        ({"pixel": [-1, -1]}, "inside 64x128"),
        ({"tolerance": 1e300}, "tolerance"),
        ({"claim": {"kind": "lipschitz", "L": 10**400, "scope": "joint", "pixel": None}}, "cannot be rebuilt"),
        ({"claim": {"kind": "lipschitz", "L": None, "scope": "joint", "pixel": None}}, "positive, finite"),
        ({"claim": {"kind": "class-pair", "L": 1.0, "weight": [[1.0], [2.0, 3.0]]}}, "cannot be rebuilt"),
        ({"claim": {"kind": "class-pair", "L": 1.0, "weight": [[1.0], [2.0]]}}, "classes"),
        ({"claim": 3}, "could not read it"),
    ],
)
def test_a_forged_description_is_one_sentence(example, capsys, changes, message):
    assert main(["replay", example[1](**changes)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_name_in_a_file_cannot_move_the_terminal(example, capsys):
    name = example[1](image_name="\x1b[2Jcleared\nfixed: all is well")
    assert main(["replay", name]) == 2 or True
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\nfixed" not in out


def test_a_scope_or_a_zero_is_not_overlooked(example, capsys):
    path = str(example[0])
    assert main(["replay", path, "--lipschitz", "0"]) == 2
    assert main(["replay", path, "--scope", "pixel"]) == 2
    assert main(["replay", path, "--lipschitz", "2"]) == 0
    assert main(["replay", path, "--lipschitz", "0.3"]) == 1


@pytest.mark.parametrize("reader", ["true", "head -n 2"])
def test_a_reader_that_goes_away_changes_no_verdict(tmp_path, reader):
    quoted = " ".join([*COMMAND, *QUICK])
    script = f"{quoted} 2>err | {reader} >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, check=False)
    assert done.returncode == 0, (tmp_path / "err").read_text()
    script = f"{quoted} --lipschitz 0.3 2>err | {reader} >/dev/null; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", script], cwd=tmp_path, check=False).returncode == 1


def test_json_follows_links_and_writes_to_pipes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink("real.json", "link.json")
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True)
    assert main([*QUICK, "--json", "link.json"]) == 0
    assert os.path.islink("link.json")
    assert main([*QUICK, "--json", "pipe"]) == 0
    assert json.loads(reader.communicate(timeout=20)[0])["sound"]
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    capsys.readouterr()
    os.mkdir("folder")
    for bad in ("folder", "", "no/where.json"):
        assert main([*QUICK, "--json", bad]) == 2
        assert capsys.readouterr().out == ""  # said before the run, not after it


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit(0)", "raise RuntimeError('first\\nsecond')", "1 / 0", "def net("]
)
def test_code_that_ends_the_program_is_an_error_not_a_verdict(tmp_path, monkeypatch, capsys, code):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ends.py").write_text(code)
    assert main([*QUICK, "--lipschitz", "1", "--model", "ends.py:net"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_files_that_never_end_are_not_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.pt")
    for path in ("pipe.pt", "/dev/zero"):
        assert main(["verify", path]) == 2
        assert "regular file" in capsys.readouterr().err


def sparse(content):
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = content["state_dict"][name].to_sparse()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c["lipschitz"].update(joint=10**400),
        lambda c: c.update(version=torch.tensor(1)),
        lambda c: c["state_dict"].update({"\x1b[2J": torch.zeros(1)}),
        lambda c: c["architecture"].update(width="32"),
        sparse,
    ],
)
def test_odd_checkpoints_are_one_printable_sentence(tmp_path, monkeypatch, capsys, spoil):
    monkeypatch.chdir(tmp_path)
    content = torch.load(shipped(), weights_only=True)
    spoil(content)
    torch.save(content, "odd.pt")
    assert main(["verify", "odd.pt"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "\x1b" not in err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_found(tmp_path, sent):
    command = [*COMMAND, "verify", "--no-audit", "--pixels", "64", "--lipschitz", "0.3", "--threads", "2"]
    command += ["--json", "report.json"]
    # A shell that starts programs in the background makes them ignore SIGINT: not here.
    running = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert running.stdout is not None
    while not running.stdout.readline().startswith("plan"):  # the header is complete: attacks begin
        pass
    time.sleep(6)
    running.send_signal(sent)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "interrupted" in out
    assert json.loads((tmp_path / "report.json").read_text())["stopped"] == "interrupted"
    assert list((tmp_path / "attackcheck-counterexamples").glob("*.npz"))
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "line",
    ['classes = "abc"', "classes = 1.5", "classes = 0", "steps = 3", "iterations = -1", "reach = 0.0", "eps = [0.1]"],
)
def test_plan_options_are_checked_before_the_run(tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text(f'[[stage]]\nattack = "linearised"\n{line}\n')
    assert main(["verify", "--plan", "plan.toml"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_missing_region_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, "--region", "class:99"]) == 0
    assert "AC114" in capsys.readouterr().err
    assert main([*QUICK, "--region", "components:0"]) == 2


@pytest.mark.parametrize("text", ["²", "--5", "0", "-3"])
def test_odd_numbers_of_pixels_are_refused(text, capsys):
    assert main(["verify", f"--pixels={text}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
