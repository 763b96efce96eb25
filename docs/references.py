"""Writes cli.md from the command line's parser, and python.md from docstrings: python docs/references.py"""

import argparse
import inspect
import re
from enum import Enum
from pathlib import Path

import attackcheck
from attackcheck import testing
from attackcheck.cli import command_line

HEAD = """# Command line

Written by `python docs/references.py` from the parser itself. `attackcheck COMMAND --help` says the same.

Exit codes of all commands: **0** nothing was broken, **1** something was, **2** could not check, **130** interrupted.
"""

PYTHON = """# Python

Written by `python docs/references.py` from the docstrings. `import attackcheck as ac` does not import torch before it
is needed.
Distances are L2 norms over whole images on the [0, 1] scale.
"""


def _cell(text: str) -> str:
    """A help text in a table: its pipes would end a cell, and names in capitals are placeholders."""
    return " ".join(text.split()).replace("|", r"\|")


def _name(action: argparse.Action) -> str:
    metavar = action.metavar or (action.dest.upper() if action.nargs != 0 else None)
    if action.choices is not None and action.metavar is None:
        metavar = "{" + ",".join(map(str, action.choices)) + "}"
    if isinstance(metavar, tuple):
        metavar = " ".join(metavar)
    if not action.option_strings:
        return f"`{(action.metavar or action.dest)}`".replace("|", r"\|")
    value = "" if action.nargs == 0 else f" {metavar}"
    return ", ".join(f"`{name}{value}`" for name in action.option_strings).replace("|", r"\|")


def _meaning(action: argparse.Action) -> str:
    text = action.help or ""
    return _cell(text % (vars(action) | {"prog": "attackcheck"}) if "%" in text else text)


def cli() -> str:
    """The text of cli.md."""
    parser = command_line()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = [HEAD]
    for name, command in commands.choices.items():
        parts.append(f"## attackcheck {name}\n\n{_wrapped(command.description or '')}\n")
        rows = [
            f"| {_name(action)} | {_meaning(action)} |"
            for action in command._actions
            if action.help != argparse.SUPPRESS and action.dest != "help"
        ]
        parts.append("| option | meaning |\n| --- | --- |\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _wrapped(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def python() -> str:
    """The text of python.md."""
    parts = [PYTHON]
    for module, short in ((attackcheck, "ac"), (testing, "attackcheck.testing")):
        for name in sorted(module.__all__, key=str.lower):
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                parts.append(f"## {short}.{name}\n\n{_described(name, thing)}\n")
    return "\n".join(parts)


def _described(name: str, thing: object) -> str:
    text = inspect.cleandoc(thing.__doc__ or "")
    if inspect.isclass(thing) and issubclass(thing, Enum):
        members = "\n".join(f"{member.name}: {member.value}" for member in thing)
        return f"```text\n{text}\n\n{members}\n```"
    signature = _signature(thing)
    shown = [f"```python\n{name}{signature}\n```\n"] if signature else []
    methods = [
        f"\n`.{method}{_wrapped(_signature(value))}`: {_wrapped(inspect.getdoc(value) or '')}\n"
        for method, value in (vars(thing).items() if inspect.isclass(thing) else ())
        if not method.startswith("_") and inspect.isfunction(value) and inspect.getdoc(value)
    ]
    return "".join([*shown, f"\n```text\n{text}\n```\n", *methods]).strip()


def _signature(thing: object) -> str:
    try:
        text = str(inspect.signature(thing))  # type: ignore[arg-type]
        return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text).replace(", ", ",\n    ")
    except (TypeError, ValueError):
        return ""


if __name__ == "__main__":
    for file, text in (("cli.md", cli()), ("python.md", python())):
        Path(__file__).with_name(file).write_text(text, encoding="utf-8")
