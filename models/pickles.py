"""What a pickle would import, read off its instructions without running any of them.

A pickle is a program for a small stack machine. Strings reach the instruction that imports through the stack or the
memo, so both are followed, with a placeholder for everything that is not a string.
"""

import io
import pickletools
import re
from collections.abc import Iterator

from attackcheck.errors import InputError

__all__ = ["COMPUTED", "harmless", "imports_of", "never_permitted"]

COMPUTED = "(a name computed while loading)"
"""Stands for a global whose name is no constant in the file: nobody can say what it is without running it."""

_MARK, _OTHER = object(), object()
_PICKLES = 64
"""Pickles that one file may hold behind each other; torch's old format has five."""

_HARMLESS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)"
    r"|torch\.(\w+Storage|Size|device|dtype|(float|int|uint|bfloat|complex|bool)\w*)|torch\.storage\.\w*Storage"
    r"|torch\.nn\.parameter\.Parameter|torch\.Tensor|(__builtin__|builtins)\.(set|bytearray|complex)|_codecs\.encode"
)


def harmless(name: str) -> bool:
    """Whether a global is one of those that tensors are rebuilt with: nothing of a stranger's runs through it."""
    return _HARMLESS.fullmatch(name) is not None


_NEVER = {
    "__builtin__", "__main__", "_io", "_pickle", "_posixsubprocess", "asyncio", "bdb", "builtins", "code", "codeop",
    "ctypes", "functools", "http", "importlib", "io", "marshal", "multiprocessing", "nt", "operator", "os", "pathlib",
    "pdb", "pickle", "pip", "posix", "pty", "runpy", "setuptools", "shutil", "signal", "socket", "subprocess", "sys",
    "tempfile", "threading", "timeit", "types", "urllib", "webbrowser",
    "numpy.load", "torch.hub.load", "torch.jit.load", "torch.load", "torch.save",
}  # fmt: skip
"""Modules and functions that no option lets a file call."""


def never_permitted(name: str) -> bool:
    """Whether a global runs programs or code whatever it is given, so that permitting it by name means nothing."""
    return name in _NEVER or name.split(".")[0] in _NEVER or name.startswith("(")


def imports_of(data: bytes) -> tuple[str, ...]:
    """The dotted names of all globals that loading would import, in order, each once.

    Args:
        data: one pickle, or several behind each other as in torch's format before 1.6.

    Raises:
        InputError: if the instructions break off or make no sense.
    """
    stream, found = io.BytesIO(data), dict[str, None]()
    for number in range(_PICKLES):
        start = stream.tell()
        try:
            found |= dict.fromkeys(_imports(stream))
        except Exception as error:  # whatever broken instructions make pickletools raise
            if number and start:  # behind the pickles of the old format lie the numbers themselves
                break
            raise InputError("expected a pickle, got one that breaks off or makes no sense") from error
        if stream.tell() >= len(data):
            break
    return tuple(found)


def _imports(stream: io.BytesIO) -> Iterator[str]:
    stack: list[object] = []
    memo: dict[int, object] = {}
    for code, argument, _ in pickletools.genops(stream):
        name = code.name
        if name in ("GLOBAL", "INST"):
            yield ".".join(str(argument).split(" ", 1))
        elif name.startswith("EXT"):
            yield f"(extension {argument})"
        elif name == "STACK_GLOBAL":
            module, attribute = stack[-2], stack[-1]
            known = isinstance(module, str) and isinstance(attribute, str)
            yield f"{module}.{attribute}" if known else COMPUTED
        if name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
            continue
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = stack[-1]  # type: ignore[arg-type]
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])  # type: ignore[arg-type]
            continue
        if name == "DUP":
            stack.append(stack[-1])
            continue
        _take(stack, code)
        for made in code.stack_after:
            if made is pickletools.markobject:
                stack.append(_MARK)
            else:
                stack.append(argument if isinstance(argument, str) and name not in ("GLOBAL", "INST") else _OTHER)


def _take(stack: list[object], code: pickletools.OpcodeInfo) -> None:
    """Pop what an instruction takes; down to the last mark where it takes a slice."""
    before = code.stack_before
    count = len(before)
    if pickletools.markobject in before or (code.name == "POP" and stack and stack[-1] is _MARK):
        while stack.pop() is not _MARK:
            pass
        count = before.index(pickletools.markobject) if pickletools.markobject in before else 0
    for _ in range(count):
        stack.pop()
