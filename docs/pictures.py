"""Makes the pictures of real output: `python docs/pictures.py [terminal] [page]`.

    docs/pictures/verify.png         the terminal after `attackcheck verify --image 0`
    docs/pictures/broken.png         the same of a network whose claim is wrong
    docs/pictures/report-head.png    the head of the HTML page of a run
    docs/pictures/report-maps.png    an image in it

Nothing is drawn by hand: commands run in a pseudo-terminal of 112 columns, pages in headless Chromium (extras html and
browser).
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).parent / "pictures"
COLUMNS = 112
BROKEN = """
import attackcheck as ac
from attackcheck.models.shelf import shipped

def net():
    \"\"\"The network that ships, with the square root of two forgotten.\"\"\"
    subject = ac.load(shipped("isounet-xs"))
    return subject.model, ac.LipschitzClaim(subject.claim.lipschitz / 2**0.5)
"""


def in_a_terminal(command: list[str], folder: Path) -> str:
    """What a command writes to a terminal, with its colours; its progress is left out."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(COLUMNS)}
    running = subprocess.Popen(
        command, stdout=side, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd=folder, env=environment
    )
    os.close(side)
    said = b""
    while True:
        try:
            piece = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        said += piece
    running.wait()
    os.close(main)
    return said.decode().replace("\r\n", "\n")


def as_svg(said: str, title: str) -> str:
    """Terminal output as a picture that fetches nothing."""
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(said))
    svg = console.export_svg(title=title)
    svg = re.sub(r"@font-face\s*{.*?}", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "DejaVu Sans Mono")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def shrink(picture: Path) -> None:
    """The same in 256 colours."""
    with Image.open(picture) as whole:
        small = whole.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size:,} bytes")


def terminal(folder: Path) -> None:
    """The terminal after two commands."""
    (folder / "mynet.py").write_text(BROKEN)
    attackcheck = str(Path(sys.executable).with_name("attackcheck"))
    for name, options in (
        ("verify", "--image 0 --plan quick --threads 1"),
        ("broken", "mynet.py:net --data shipped --image 0 --plan quick --threads 1"),
    ):
        said = in_a_terminal([attackcheck, "verify", *shlex.split(options)], folder)
        drawing = folder / f"{name}.svg"
        drawing.write_text(as_svg(said, f"attackcheck verify {options}"))
        with chromium() as browser:
            wide, tall = (
                float(size) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing.read_text())[0]
            )
            shown = browser.new_page(viewport={"width": 1180, "height": int(tall * 1180 / wide)})
            shown.goto(drawing.as_uri())
            shown.screenshot(path=PICTURES / f"{name}.png")
        shrink(PICTURES / f"{name}.png")


def page(folder: Path) -> None:
    """The HTML page of a run, as Chromium shows it."""
    attackcheck = str(Path(sys.executable).with_name("attackcheck"))
    options = ["--plan", "quick", "--images", "2", "--threads", "1", "--html", "page.html", "-q"]
    subprocess.run([attackcheck, "verify", *options], cwd=folder, check=True)
    with chromium() as browser:
        shown = browser.new_page(viewport={"width": 1180, "height": 1490})
        shown.goto((folder / "page.html").as_uri())
        shown.wait_for_selector(".plot .bk-Figure")
        shown.wait_for_timeout(500)
        shown.screenshot(path=PICTURES / "report-head.png")
        shown.set_viewport_size({"width": 1180, "height": 900})
        shown.locator("#image-0").evaluate("element => element.scrollIntoView()")
        shown.wait_for_selector("#image-0 .ready")
        shown.wait_for_timeout(500)
        box = shown.locator("#image-0 [data-map=tightness] .live").bounding_box()
        worst = [float(shown.locator(f"#image-0 .lookup [name={name}]").input_value()) for name in ("row", "column")]
        if box is not None:  # images are 64x128
            shown.mouse.move(
                box["x"] + (worst[1] + 0.5) / 128 * box["width"], box["y"] + (worst[0] + 0.5) / 64 * box["height"]
            )
            shown.wait_for_timeout(300)
        shown.screenshot(path=PICTURES / "report-maps.png")
    for name in ("report-head", "report-maps"):
        shrink(PICTURES / f"{name}.png")


def main() -> None:
    wanted = sys.argv[1:] or ["terminal", "page"]
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            {"terminal": terminal, "page": page}[name](Path(folder))


if __name__ == "__main__":
    main()
