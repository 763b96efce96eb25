"""What is freed stays in hand, where the C library is glibc and nobody said otherwise."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from attackcheck import allocator

PAGES = """
import resource, torch
from attackcheck.allocator import keep_freed
if {kept}:
    keep_freed()
def work():
    blocks = [torch.zeros(2**20) for _ in range(8)]
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kept, **variables):
    """Pages that the system had to map for blocks which are freed and asked for again."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    command = [sys.executable, "-c", PAGES.format(kept=kept)]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another one")
def test_freed_blocks_are_kept_unless_the_environment_says_otherwise():
    assert faults(kept=True) < 0.75 * faults(kept=False)
    as_told = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}  # every block is given back
    assert faults(kept=True, **as_told) > 0.75 * faults(kept=False, **as_told)


def test_a_library_without_that_option_is_no_error(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    asked = []
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: asked.append(name) or SimpleNamespace())
    allocator.keep_freed()
    allocator.give_back()
    assert set(asked) == {None}


SERVED = """
import torch
from attackcheck.allocator import keep_freed
from attackcheck.memory import Meter
keep_freed()
def work():
    blocks = [torch.ones(2**20) for _ in range(20)]
work()
with Meter() as meter:
    work()
print(meter.bytes)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another one")
def test_what_was_kept_is_measured_as_taken_when_it_is_used_again():
    done = subprocess.run([sys.executable, "-c", SERVED], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 0.8 * 20 * 2**22
