"""On a Ray cluster: nothing is lost, nothing is counted twice, and the report is that of a single process."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import attackcheck as ac
from attackcheck import InputError
from attackcheck.models import exact
from attackcheck.on_ray.cluster import read_engine
from attackcheck.run_folder import read_run

NETS = """
import os, signal, sys, time
from pathlib import Path
import torch
import attackcheck as ac
from attackcheck.models import exact

def net():
    model = exact.affine_conv(classes=3, kernel=3, seed=4).float()
    return model, ac.LipschitzClaim(0.3 * model.double().lipschitz_joint(8, 8))

def slow():
    inner, claim = net()
    def forward(x):
        if Path("slow").exists():
            time.sleep(0.01)
        return inner(x)
    return forward, claim

def unseeded():
    return torch.nn.Conv2d(3, 3, 1), ac.LipschitzClaim(1.0)

def deadly():
    inner, claim = net()
    worker = Path(sys.argv[0]).name == "default_worker.py"
    def forward(x):
        if worker and torch.is_grad_enabled():  # not when it is only looked at
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(x)
    return forward, claim
"""
COMMON = ["--data", "arrays:images.npz", "--plan", "plan.toml", "--pixels", "4", "--region", "rect:1,1,2,3"]
MARK = "ATTACKCHECK_TEST_OF_RAY"

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")
on_a_cluster = [pytest.mark.slow, needs_ray, pytest.mark.filterwarnings("ignore")]  # Ray's own


def processes(mark, beginning=""):
    """Process numbers of everything that was started with this mark, by how the command begins."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                if command and command.startswith(beginning):
                    found.append(int(entry.name))
    return found


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def gone(mark):
    until(lambda: not processes(mark), 60.0)


def environment(mark):
    return os.environ | {
        MARK: mark, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
    }  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """Address and mark of a cluster with one processor, and a function that adds a machine with another one."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "ray_cluster.py")],
        env=environment(mark),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def add():
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "added\n"

    address = process.stdout.readline().strip()
    assert address
    yield address, mark, add
    process.stdin.close()
    process.wait(timeout=30)
    process.stdout.close()
    gone(mark)


@pytest.fixture
def here(place, monkeypatch):
    (place / "nets.py").write_text(NETS)
    for name, value in environment("none").items():
        monkeypatch.setenv(name, value)
    return place


def start(mark, *arguments, net="slow"):
    return subprocess.Popen(
        [sys.executable, "-m", "attackcheck.cli", "verify", f"nets.py:{net}", *COMMON, *arguments],
        env=environment(mark),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may ignore it for what it starts
    )


def parts(run="run"):
    folder = Path(run, "parts")
    return sorted(entry.name for entry in folder.glob("image-*.npz")) if folder.is_dir() else []


def whole(parts_of):
    return [name for name in parts_of if "partial" not in name]


@pytest.fixture
def same(verify, plain):
    """Whether a report, and its run folder, are those of a single process."""

    def check(report, run, cut=False):
        def read(path):
            document = plain(path)
            document["subject"].pop("threads")
            return document

        Path("slow").unlink(missing_ok=True)
        assert verify("--out", "alone", "--json", "alone.json", net="slow") == 1
        assert read(report) == read("alone.json")
        assert parts(run) == parts("alone")
        found = read_run(run)
        assert found.unfinished == []
        Path("again.json").write_text(json.dumps(found.report.to_dict()))
        document = read("again.json")
        assert document == read("alone.json")
        for one, other in zip(found.parts(), read_run("alone").parts(), strict=True):
            for name in ("radius", "flip_distance", "flipped_by", "class_after", "attacked", "verdict"):
                assert getattr(one.maps, name).equal(getattr(other.maps, name))
        examples = {entry.name for entry in Path("alone", "counterexamples").iterdir()}
        kept = {entry.name for entry in Path(run, "counterexamples").iterdir()}
        assert kept >= examples if cut else kept == examples  # what a cut image has shown is not thrown away

    return check


class TestOnACluster:
    pytestmark = on_a_cluster

    def test_a_worker_is_killed_and_a_machine_is_added(self, here, cluster, same):
        address, mark, add = cluster
        (here / "slow").touch()
        process = start("driver", "--engine", f"ray:{address}", "--out", "run", "--json", "report.json")
        until(lambda: len(parts()) == 1 and processes(mark, "ray::Worker.examine"))
        os.kill(processes(mark, "ray::Worker.examine")[0], signal.SIGKILL)
        add()
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 1
        assert said.count("AC130") == 1
        assert said.count("pixels attacked") == 5  # no image is announced twice
        assert json.loads(Path("report.json").read_text())["subject"]["threads"] == 2
        same("report.json", "run")
        until(lambda: not processes(mark, "ray::Worker"), 60.0)

    def test_the_driver_is_killed_and_goes_on(self, here, cluster, same):
        address, mark, _ = cluster
        (here / "slow").touch()
        process = start("driver", "--engine", f"ray:{address}", "--out", "run")
        until(lambda: len(whole(parts())) >= 1)
        process.kill()
        process.communicate()
        until(lambda: not processes(mark, "ray::Worker"))  # they end with it
        done = {name: os.stat(f"run/parts/{name}").st_mtime_ns for name in whole(parts())}
        assert 1 <= len(done) < 5
        (here / "slow").unlink()
        process = start("driver", "--engine", f"ray:{address}", "--out", "run", "--json", "report.json")
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 1
        assert said.count("done before") == len(done)
        assert {name: os.stat(f"run/parts/{name}").st_mtime_ns for name in done} == done
        same("report.json", "run")

    def test_maxfail_leaves_the_rest_for_later(self, here, cluster, verify, same):
        engine = ["--engine", f"ray:{cluster[0]}", "--threads", "1"]
        (here / "slow").touch()
        assert verify("--out", "run", "--maxfail", "2", "--json", "stopped.json", *engine, net="slow") == 1
        stopped = json.loads(Path("stopped.json").read_text())
        assert stopped["stopped"] == "stopped after 2 violations (maxfail 2)"
        assert len(stopped["violations"]) >= 2
        assert len(read_run("run").numbers) < 5
        assert len(parts()) < 5
        (here / "slow").unlink()
        assert verify("--out", "run", "--json", "report.json", *engine, net="slow") == 1
        same("report.json", "run", cut=True)

    @pytest.mark.usefixtures("here")
    def test_what_cannot_work_is_one_sentence(self, cluster, verify, capsys):
        engine = ["--engine", f"ray:{cluster[0]}", "--images", "1", "--no-audit"]
        assert verify(*engine, net="unseeded") == 2
        assert "expected the same files on every machine of the cluster, got another model" in capsys.readouterr().err
        assert verify(*engine, net="deadly") == 2
        assert "3 workers died while they examined image 0" in capsys.readouterr().err

    @pytest.mark.usefixtures("here")
    def test_a_model_in_memory(self, cluster):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand((3, 3, 8, 8), generator=generator)

        class Mine(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = exact.affine_conv(classes=3, kernel=3, seed=4).float()

            def forward(self, x):
                return self.inner(x)

        model = Mine().eval()
        claim = ac.LipschitzClaim(0.3 * exact.affine_conv(classes=3, kernel=3, seed=4).lipschitz_joint(8, 8))
        given = {"plan": "plan.toml", "pixels": 4}
        one = ac.verify(model, images, claim, **given)
        many = ac.verify(model, images, claim, engine=f"ray:{cluster[0]}", **given)
        assert many.violations == one.violations
        assert len(one.violations) > 3
        assert np.array_equal(many.flip_distance, one.flip_distance)
        with pytest.raises(InputError, match="can be sent to other processes"):
            ac.verify(exact.affine_conv(classes=3, kernel=3).float(), images, Unsendable(1.0), engine="ray", **given)


class Unsendable(ac.LipschitzClaim):
    def __reduce__(self):
        raise TypeError("never")


@pytest.mark.slow
@needs_ray
def test_a_cluster_of_its_own_ends_with_ctrl_c(here, same):
    mark = uuid.uuid4().hex
    (here / "slow").touch()
    process = start(mark, "--engine", "ray", "--threads", "2", "--out", "run", "--json", "stopped.json", "-v")
    assert any(line.startswith("image 3/5: linearised, call 1/5") for line in process.stderr)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 130, said
    gone(mark)
    stopped = json.loads(Path("stopped.json").read_text())
    assert stopped["stopped"] == "interrupted"
    cut = [name for name in parts() if "partial" in name]
    assert cut  # what was under way was judged
    assert len(parts()) == stopped["images"]
    again = start(mark, "--threads", "1", "--out", "run", "--json", "report.json")
    (here / "slow").unlink()
    again.communicate(timeout=240)
    assert again.returncode == 1
    same("report.json", "run", cut=True)


def test_engines_are_read(monkeypatch):
    assert read_engine("threads") is None
    for text in ("spark", "ray:", "rays", "threads:2"):
        with pytest.raises(InputError, match=r"expected an engine threads, ray or ray:ADDRESS"):
            read_engine(text)
    with pytest.raises(InputError, match="Ray Client"):
        read_engine("ray:ray://head:10001")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"attackcheck\[ray\]"):
        read_engine("ray:auto")
    with pytest.raises(InputError, match="engine"):
        ac.verify(lambda x: x, torch.zeros(1, 3, 4, 4), ac.LipschitzClaim(1.0), engine="ray")
