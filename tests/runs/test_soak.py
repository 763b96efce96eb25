"""What benchmarks/soak.py measures with thousands of images, with a few: nothing but the report's own lines grows."""

import importlib.util
from pathlib import Path

import pytest

from attackcheck.events import PartFinished, RunFinished

IMAGES, EARLY = 160, 40


@pytest.fixture
def soak():
    path = Path(__file__).parents[2] / "benchmarks" / "soak.py"
    spec = importlib.util.spec_from_file_location("soak", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_run_of_many_images_grows_by_its_report_alone(soak, tmp_path):
    held, done = [], 0
    for event in soak.events(IMAGES, "threads", 1, tmp_path):
        if isinstance(event, RunFinished):
            report = event.report
        elif isinstance(event, PartFinished):
            done += 1
            if done in (EARLY, IMAGES):
                held.append(soak.held())
    (early, files, threads), (late, files_late, threads_late) = held
    # fewer are no leak: what earlier tests of this process left behind may end meanwhile
    assert files_late <= files
    assert threads_late <= threads
    assert (late - early) * 1e6 / (IMAGES - EARLY) < 20_000  # bytes an image
    assert report.images == IMAGES
    assert report.radii == []
    assert report.attacked_count == 2 * IMAGES
    assert report.examined == IMAGES * soak.SIZE**2
    assert sum(summary.pixels for summary in report.classes) == report.examined
