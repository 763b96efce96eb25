"""The HTML page in a real browser, offline. Skipped where Chromium or Playwright is missing."""

import shutil

import numpy as np
import pytest

pytest.importorskip("bokeh")
sync_api = pytest.importorskip("playwright.sync_api")

from attackcheck.cli import main  # noqa: E402
from attackcheck.run_folder import read_run  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
WORDS = """
function words(node) {
    if (node.nodeName === "STYLE") return "";
    const inside = [...(node.shadowRoot?.childNodes ?? []), ...node.childNodes].map(words).join(" ");
    return (node.nodeType === Node.TEXT_NODE ? node.data : "") + inside;
}
"""

FACTORY = """
import attackcheck as ac
from attackcheck.models import exact

def broken():
    return exact.orthonormal_rows(seed=1).float(), ac.LipschitzClaim(0.8)
"""
HEIGHT, WIDTH = 12, 16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with violations, and its page."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "nets.py").write_text(FACTORY)
    images = np.random.default_rng(0).random((2, 3, HEIGHT, WIDTH), dtype=np.float32)
    np.savez(folder / "images.npz", images=images)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["--data", "arrays:images.npz", "--plan", "quick", "--pixels", "9", "--threads", "1"]
        assert main(["verify", "nets.py:broken", *options, "--out", "run", "--html", "page.html"]) == 1
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, run):
    """The page, opened without a network; whatever it complains of or asks for makes the test fail."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, offline=True)
    opened = context.new_page()
    complaints = []
    opened.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else complaints.append(request.url),
    )
    opened.goto((run / "page.html").as_uri())
    opened.wait_for_selector(".plot .bk-Figure")
    yield opened
    assert complaints == []
    context.close()


def alive(page, image=0):
    """The maps of an image, once they are drawn."""
    article = page.locator(f"#image-{image}")
    article.evaluate("element => element.scrollIntoView()")
    page.wait_for_selector(f"#image-{image} .ready")
    page.wait_for_timeout(200)
    return article


def test_all_plots_are_drawn(page):
    for name in ("scatter", "by-attack", "by-class", "accuracy"):
        assert page.locator(f"[data-plot={name}] canvas").count() >= 1, name
    for image in (0, 1):
        assert alive(page, image).locator(".live canvas").count() >= 5


@pytest.mark.parametrize("name", ["picture", "radius", "tightness"])
def test_hovering_a_pixel_shows_its_numbers(page, run, name):
    maps = next(iter(read_run(run / "run").parts())).maps
    row, column = maps.attacked.nonzero()[3].tolist()
    box = alive(page).locator(f"[data-map={name}] .live").bounding_box()
    x, y = (column + 0.5) / WIDTH * box["width"], (row + 0.5) / HEIGHT * box["height"]
    page.mouse.move(box["x"] + x + 3, box["y"] + y)
    page.mouse.move(box["x"] + x, box["y"] + y)
    tip = page.locator(".bk-Tooltip").first
    tip.wait_for()
    said = " ".join(tip.evaluate(WORDS).split())
    radius, distance = float(maps.radius[row, column]), float(maps.flip_distance[row, column])
    assert f"{row}, {column}" in said
    assert f"{radius / distance:.4f}" in said
    shown = [float(word) for word in said.split() if word.startswith("0.")]
    assert any(abs(value - radius) < 1e-3 * radius for value in shown)
    assert any(abs(value - distance) < 1e-3 * distance for value in shown)
    assert f"class {int(maps.class_after[row, column])}" in said
    assert "linearised" in said


def test_what_is_not_known_of_a_pixel_is_said_in_words(page, run):
    maps = next(iter(read_run(run / "run").parts())).maps
    row, column = maps.flip_distance.isinf().nonzero()[0].tolist()
    box = alive(page).locator("[data-map=radius] .live").bounding_box()
    x, y = (column + 0.5) / WIDTH * box["width"], (row + 0.5) / HEIGHT * box["height"]
    page.mouse.move(box["x"] + x + 3, box["y"] + y)
    page.mouse.move(box["x"] + x, box["y"] + y)
    tip = page.locator(".bk-Tooltip").first
    tip.wait_for()
    said = " ".join(tip.evaluate(WORDS).split())
    assert f"{row}, {column}" in said
    assert "never flipped" in said
    assert "NaN" not in said


def test_a_pixel_can_be_looked_up_with_the_keyboard(page, run):
    maps = next(iter(read_run(run / "run").parts())).maps
    row, column = maps.attacked.nonzero()[5].tolist()
    form = alive(page).locator(".lookup")
    form.locator("[name=row]").fill(str(row))
    form.locator("[name=column]").fill(str(column))
    form.locator("[name=column]").press("Enter")
    said = form.locator("output").inner_text()
    assert said.startswith(f"Pixel {row}, {column}: class {int(maps.predicted[row, column])}")
    assert f"r / d {float(maps.radius[row, column] / maps.flip_distance[row, column]):.4f}" in said


def test_findings_sort_and_filter(page):
    table = page.locator("#table-findings")
    rows = table.locator("tbody tr")
    total = rows.count()

    def ratios():
        return [float(text) for text in table.locator("tbody tr:not([hidden]) td:nth-child(8)").all_inner_texts()]

    heading = table.locator("th", has_text="ratio")
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert ratios() == sorted(ratios())
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert ratios() == sorted(ratios(), reverse=True)
    table.locator("select[data-column='1']").select_option("PIXEL")
    kinds = table.locator("tbody tr:not([hidden]) td:nth-child(2)").all_inner_texts()
    assert set(kinds) == {"PIXEL"}
    assert 0 < len(kinds) < total
    table.locator("input[type=search]").fill("no such thing")
    assert table.locator("tbody tr:not([hidden])").count() == 0
    assert table.locator("output").inner_text() == f"0 of {total}"


def test_a_phone_needs_no_sideways_scrolling_and_dark_is_dark(page):
    page.set_viewport_size({"width": 360, "height": 740})
    alive(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light == "rgb(255, 255, 255)"
    assert max(int(part) for part in dark[4:-1].split(",")) < 64


def test_paper_shows_still_pictures_in_light(page):
    page.emulate_media(color_scheme="dark")
    alive(page)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    still = page.locator("#image-0 [data-map=radius] svg").first
    assert still.evaluate("e => getComputedStyle(e).opacity") == "1"
    assert page.locator("#image-0 [data-map=radius] .live").evaluate("e => getComputedStyle(e).display") == "none"
    assert page.locator("details:not([open])").count() == 0


def test_every_picture_has_words_and_every_section_a_heading(page):
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0
    assert page.locator("section > h2").count() == page.locator("section").count()
    assert page.locator("h1").count() == 1
    alive(page)
    said = page.get_by_role("img", name="tightness r / d of image 0").get_attribute(
        "aria-label"
    )  # also once it is live
    assert "largest" in said
    assert "violations" in said
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the result"
