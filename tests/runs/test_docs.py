"""What docs/ci.md and docs/cluster.md tell to run, runs."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from attackcheck.cli import main

DOCS = Path(__file__).parents[2] / "docs"
README = (DOCS.parent / "README.md").read_text()
PAGES = {name: (DOCS / name).read_text() for name in ("ci.md", "cluster.md")}


@pytest.fixture
def mynet(tmp_path, monkeypatch):
    """The network of the README, with four small photos."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    network = re.search(r"```python\n(# mynet.py.*?)```", README, re.DOTALL)[1]
    Path("mynet.py").write_text(network.replace("    model =", "    torch.manual_seed(0)\n    model ="))
    Path("photos/images").mkdir(parents=True)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/images/{number}.png")
    return tmp_path


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def small(command):
    """A command of a page as arguments, on less work; None if it is not ours."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    if "attackcheck" not in words[:1]:
        return None
    quick = ["--images", "2", "--pixels", "2", "--plan", "quick", "--threads", "1", "--data", "folder:photos"]
    return [*words[1:], *quick] if words[1] == "verify" else words[1:]


def workflow_commands(document):
    for job in document["jobs"].values():
        for step in job["steps"]:
            if step.get("run", "").startswith("attackcheck"):
                yield job, step["run"]


@pytest.mark.slow
def test_workflows_run(mynet, monkeypatch):
    yaml = pytest.importorskip("yaml")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(mynet / "summary.md"))
    for text in blocks("ci.md", "yaml")[:2]:
        subprocess.run(["rm", "-rf", "run", "whole"], check=True)
        for job, command in workflow_commands(yaml.safe_load(text)):
            for shard in job.get("strategy", {}).get("matrix", {}).get("shard", [""]):
                words = shlex.split(command.replace("${{ matrix.shard }}", shard))
                if words[1] == "verify":
                    words += ["--pixels", "2", "--threads", "1"]
                assert main(words[1:]) == 0
    assert Path("whole/summary.json").is_file()
    assert "### attackcheck: no violation found" in Path("summary.md").read_text()


def test_the_hook_runs(mynet):
    yaml = pytest.importorskip("yaml")
    hook = yaml.safe_load(blocks("ci.md", "yaml")[2])["repos"][0]["hooks"][0]
    assert main([*shlex.split(hook["entry"])[1:], "--data", "folder:photos"]) == 0
    assert re.search(hook["files"], "mynet.py")


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_shell_blocks_run(mynet, page):
    assert main(small("attackcheck verify mynet.py:net --out run-before")) == 0
    assert main(small("attackcheck verify mynet.py:net --out run-after --seed 1")) == 0
    ran = 0
    for block in blocks(page, "sh"):
        if any(word in block for word in ("#SBATCH", "torchrun", "python -c", "--engine ray")):
            continue
        for command in block.strip().splitlines():
            words = small(command)
            assert words is not None, command
            assert main(words) == 0, command
            ran += 1
    assert ran >= 3
    if page == "ci.md":
        assert json.loads(Path("changes.json").read_text())["pixels"][0]["images"] == 2


def test_the_schema_is_where_the_page_says():
    (command,) = [block for block in blocks("ci.md", "sh") if "python -c" in block]
    code = shlex.split(command)[2]
    path = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert json.loads(Path(path).read_text())["title"] == "attackcheck report"


@pytest.mark.slow
def test_the_sbatch_script_runs_as_an_array(mynet):
    """With srun as a program that runs what it is given, and the variables that SLURM sets."""
    (script,) = [block for block in blocks("cluster.md", "sh") if "#SBATCH" in block]
    script = script.replace("--device cuda", "--images 2 --pixels 2 --plan quick --threads 1")
    script = script.replace("cityscapes:$CITYSCAPES_DATASET", "folder:photos")
    Path("job.sh").write_text(script)
    Path("bin").mkdir()
    for name, body in (("srun", 'exec "$@"'), ("attackcheck", f'exec {sys.executable} -m attackcheck.cli "$@"')):
        Path("bin", name).write_text(f"#!/bin/sh\n{body}\n")
        Path("bin", name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{mynet}/bin:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(mynet),
        "SLURM_ARRAY_TASK_COUNT": "2",
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "1",
    }
    subprocess.run(["bash", "job.sh"], env=environment, check=True, capture_output=True)
    assert os.listdir("shards") == ["shard-2-of-2"]


@pytest.mark.slow
def test_torchrun_and_merge(mynet):
    (block,) = [block for block in blocks("cluster.md", "sh") if "torchrun" in block]
    launch, merge = block.strip().splitlines()
    words = shlex.split(launch)[1:]
    words += ["--images", "2", "--pixels", "2", "--plan", "quick", "--data", "folder:photos"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *words]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where the command is
    subprocess.run(launcher, env=os.environ | {"PATH": path}, check=True, capture_output=True, timeout=240)
    assert main(shlex.split(merge)[1:]) == 0


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_command_on_ray_runs(mynet):
    (block,) = [block for block in blocks("cluster.md", "sh") if "--engine ray" in block]
    assert main(small(block)) == 0
    assert sorted(os.listdir("run/parts")) == ["image-000000.npz", "image-000001.npz"]


def test_the_kubernetes_job_names_every_shard_once():
    yaml = pytest.importorskip("yaml")
    (text,) = blocks("cluster.md", "yaml")
    job = yaml.safe_load(text)["spec"]
    (command,) = job["template"]["spec"]["containers"][0]["args"]
    assert job["completionMode"] == "Indexed"
    shown = []
    for index in range(job["completions"]):
        echo = command.replace("exec attackcheck", "echo attackcheck")
        environment = {"JOB_COMPLETION_INDEX": str(index), "PATH": os.environ["PATH"]}
        done = subprocess.run(["bash", "-c", echo], env=environment, capture_output=True, text=True, check=True)
        shown.append(re.search(r"--shard (\S+)", done.stdout)[1])
    assert shown == [f"{i}/8" for i in range(1, 9)]
