"""The README's Python blocks run as they stand."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    network, use, test = blocks
    (tmp_path / "mynet.py").write_text(network)
    exec(compile(use, "use", "exec"), {})
    assert capsys.readouterr().out.startswith("True ")
    namespace = {}
    exec(compile(test, "test", "exec"), namespace)
    namespace["test_certificate"]()


def test_shown_output_is_that_of_the_command():
    shown = re.search(r"The first prints\n\n```text\n(.*?)```", README, re.DOTALL)[1]
    assert re.search(r"^0 violations in 512 attacked pixels \(.*seed 0\)$", shown, re.MULTILINE)
