"""What is freed stays in hand, where the C library is glibc and nobody said otherwise."""

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from attackcheck import allocator

BLOCK = 28 * 2**20
ASKED = """
import ctypes, torch
from attackcheck.allocator import keep_freed
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
info = ctypes.CDLL(None).mallinfo2
info.restype = Info
if {kept}:
    keep_freed()
before = info()
block = torch.empty({block}, dtype=torch.uint8)
during = info()
del block
print(during.hblks - before.hblks, info().fordblks - before.fordblks)
"""
GLIBC = platform.libc_ver()[0] == "glibc" and hasattr(ctypes.CDLL(None), "mallinfo2")


def asked(kept, **variables):
    """Whether a large block was mapped on its own, and the bytes that stayed in hand once it was freed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    command = [sys.executable, "-c", ASKED.format(kept=kept, block=BLOCK)]
    mapped, left = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
    return bool(int(mapped)), int(left)


@pytest.mark.skipif(not GLIBC, reason="the allocator is another one, or does not say")
def test_freed_blocks_are_kept_unless_the_environment_says_otherwise():
    mapped, left = asked(kept=True)
    assert not mapped
    assert left > 0.9 * BLOCK
    given_back = [asked(kept=False), asked(kept=True, MALLOC_ARENA_MAX="8")]
    given_back.append(asked(kept=True, GLIBC_TUNABLES="glibc.malloc.arena_max=8"))
    for mapped, left in given_back:
        assert mapped
        assert left < 0.1 * BLOCK


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
