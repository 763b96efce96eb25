"""The console while a run works: time left, live view, plain lines, quiet and verbose."""

import io
import random
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from attackcheck.events import Advanced, ImageFinished, ImageStarted
from attackcheck.report import AttackSummary
from attackcheck.reporters.console import ConsoleReporter
from attackcheck.reporters.live import LiveView, duration, histogram
from attackcheck.reporters.tables import attack_tables
from attackcheck.reporters.time_left import JUDGING, USUAL, TimeLeft

CALLS = ("cutting", "guided", "guided", "lipschitz", "pairs", *["linearised"] * 8, *["ddn"] * 3, "cw", "foolbox.ddn")


def simulated(images, seed, spread=3.0, judging=2.0):
    """Times at which calls end, one image after the other; each attack is slower or faster than usual."""
    rng = random.Random(seed)
    pace = {name: rng.uniform(1, 10) * spread ** rng.uniform(-1, 1) for name in dict.fromkeys(CALLS)}
    now = 0.0
    for image in range(images):
        yield "started", image, None, now
        for name in CALLS:
            now += pace[name] * rng.uniform(0.8, 1.25)
            yield "advanced", image, name, now
        now += judging * rng.uniform(0.5, 2)
        yield "finished", image, None, now


def told(left, what, image, attack, now):
    if what == "started":
        left.started(image, CALLS, now)
    elif what == "advanced":
        left.advanced(image, attack, now)
    else:
        left.finished(image, now)


@pytest.mark.parametrize("seed", range(20))
def test_time_left_is_right_within_thirty_percent_once_an_image_is_done(seed):
    log = list(simulated(10, seed))
    end = log[-1][-1]
    left = TimeLeft(10)
    for entry in log:
        told(left, *entry)
        now = entry[-1]
        if now > 0.1 * end * 1.05 and now < end:
            guess = left.seconds(now)
            assert abs(guess - (end - now)) <= 0.3 * (end - now) + 12  # two calls more or less


@pytest.mark.parametrize("judging", [0.5, 1.0, 1.5, 2.0, 2.5])
def test_a_run_of_one_attack_is_not_forgotten_to_be_judged(judging):
    """The quick plan: a few calls of one attack; what judging takes is a fifth of it, and not yet seen."""
    left, now = TimeLeft(1), 0.0
    left.started(0, ["linearised"] * 4, now)
    end = 4 * 2.85 + judging
    for _ in range(3):
        now += 2.85
        left.advanced(0, "linearised", now)
        assert abs(left.seconds(now) - (end - now)) <= 0.3 * (end - now)


def test_images_side_by_side_and_images_done_before():
    left = TimeLeft(5)
    left.skipped()
    for image in (1, 2):
        left.started(image, ["ddn"] * 10, 0.0)
    for call in range(1, 6):
        for image in (1, 2):
            left.advanced(image, "ddn", 2.0 * call)
    # Of four images of ten calls each, and their judging, two have half of their calls done in 10 s, two abreast.
    whole = 10 * 2.0 + JUDGING * 2.0 / USUAL["ddn"]
    assert left.seconds(10.0) == pytest.approx(10.0 * (4 * whole - 20.0) / 20.0)
    assert left.share == pytest.approx(20.0 / (4 * whole))


def test_nothing_is_guessed_before_anything_is_known():
    left = TimeLeft(2)
    assert left.seconds(0.0) is None
    left.started(0, CALLS, 5.0)
    assert left.seconds(6.0) is None
    assert left.share == 0.0


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (60, "1:00"), (3725, "1:02:05")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_histogram_ends_at_one_and_shows_violations_apart():
    assert histogram([0, 4, 8, 0]).plain == " ▄█ 1 "
    assert histogram([0, 0, 1, 8]).plain == "  ▁ 1 █"


@pytest.mark.parametrize("term", ["xterm", "dumb"])
@pytest.mark.parametrize("width", range(60, 140, 8))
def test_no_word_of_the_attack_table_is_cut(width, term, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TERM", term)
    quantiles = dict.fromkeys((0.05, 0.25, 0.5, 0.75, 0.95), 0.512)
    attacks = tuple(
        AttackSummary(name, "pixel", 512, 512, 0.001439, 0.2983, quantiles, 0.65, 0.99, 16_000, 14_000, 184.4, 0.9)
        for name in ("linearised", "foolbox.deepfool")
    )
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=24, color_system=None)
    for table in attack_tables(SimpleNamespace(attacks=attacks), width):
        console.print(table)
    assert "…" not in out.getvalue()
    assert max(len(line.rstrip()) for line in out.getvalue().splitlines() if "Attacks:" not in line) <= width
    assert ("Slack and cost" in out.getvalue()) == (width < 112)  # one table, or two


@pytest.mark.parametrize(("term", "lines"), [("dumb", True), ("xterm", False)])
def test_a_terminal_that_cannot_redraw_gets_plain_lines(term, lines, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stderr", err := Terminal())
    with ConsoleReporter() as reporter:
        reporter(ImageStarted(0, "street", 64, len(CALLS), CALLS))
        reporter(ImageFinished(0, 64, 2))
    assert ("64 pixels attacked, 2 violations" in err.getvalue()) == lines
    assert ("\x1b" in err.getvalue()) != lines


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_view_fits_its_terminal(width):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=24, color_system=None)
    clock = iter(float(second) for second in range(1000))
    view = LiveView(console, 8, clock=lambda: next(clock))
    view(ImageStarted(0, "street", 64, len(CALLS), CALLS))
    view(Advanced(0, "cutting", 1, len(CALLS), 0.0, (0,) * 21))
    view(Advanced(0, "linearised", 2, len(CALLS), 1.0312, (*[0] * 10, 3, 9, 2, *[0] * 7, 1)))
    view.violations = 2
    console.print(view.render())
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    shown = " ".join(lines)
    assert "0/8 images" in shown
    assert "left" in shown
    assert "linearised 1/8" in shown
    assert "worst r/d 1.0312" in shown
    assert "2 violations" in shown
    assert re.search("0 {11}▃█▂ {8}1 ▁", shown)
    view(ImageFinished(0, 64, 2))
    console.print(view.render())
    assert "1/8 images" in out.getvalue()
