"""Reports as a browser shows them: on a phone and on a desk, nothing sticks out sideways."""

import html
import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from antigram.studies.demo import demo_page
from antigram.studies.report import page_html, write_run_report
from tests.support.report_pages import entry, result

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LONG = "a_name_without_any_space_that_goes_on_and_on_and_on_and_on_and_on_and_on_and_on_and_on"
# A frame has the width it is given, where a window has a least one; all of it is unfolded.
OUTER = """<body><iframe id="page" style="border: 0; width: {width}px; height: 900px"
 srcdoc="{page}"></iframe><pre id="told"></pre><script>
onload = () => {{
  const page = document.getElementById("page").contentDocument;
  page.querySelectorAll("details").forEach(fold => fold.open = true);
  const scrolls = part => part.parentElement.closest(".wide") !== null;
  const out = [...page.body.querySelectorAll("*")].filter(
    part => !scrolls(part) && part.getBoundingClientRect().right > {width} + 1);
  document.getElementById("told").textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    out: out.map(part => part.tagName + ": " + part.textContent.slice(0, 40)),
    images: [...page.images].map(image => image.naturalWidth),
  }});
}};
</script>"""


@pytest.fixture(scope="module")
def browser():
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")


@pytest.fixture
def shown(browser, tmp_path):
    """What a browser tells of a page in a frame of some width."""

    def shown(page, width):
        outer = tmp_path / "outer.html"
        outer.write_text(OUTER.format(width=width, page=html.escape(page)))
        home = {**os.environ, "HOME": str(tmp_path)}
        command = [browser, "--headless", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
        command += [
            "--no-sandbox",
            "--hide-scrollbars",
            "--virtual-time-budget=5000",
            "--dump-dom",
            outer.as_uri(),
        ]
        done = subprocess.run(
            command, env=home, capture_output=True, text=True, check=True, timeout=120
        )
        told = done.stdout.partition('<pre id="told">')[2].partition("</pre>")[0]
        return json.loads(html.unescape(told))

    return shown


@pytest.fixture
def run_page(make_run, rng):
    """Of a run with long names, many classes and several teachers."""
    classes = [LONG, *(f"word {i}" for i in range(34))]
    counts = rng.integers(0, 90, (35, 35)).tolist()
    scores = result(classes, counts, chance=1 / 35, notes=[f"a note about {LONG}"])
    scores["at_initial"] = scores["at_best"] = {"5": {LONG: 0.5, "emotion": 0.25}}
    entries = [entry(n, sources=[LONG, "emotion"]) for n in range(1, 9)]
    run = make_run(entries, scores, name=LONG)
    write_run_report(run)
    return (run / "report.html").read_text()


@pytest.fixture
def page_of_demo(make_run):
    run = make_run([entry(1), entry(2)])
    arm = {**result(["a"], [[1]]), "run": str(run), "chance": 0.1, "majority": 0.1, "epochs": 2}
    arm["clips_per_second"] = 800.0
    content = {
        "store": {"clips": {"train": 700, "validation": 200, "test": 100}},
        "arms": dict.fromkeys(("baseline", "wi", "online", "cached"), arm),
        "cache": {"layers": {"5": {"bytes_per_clip": 73}}},
        "cache_bytes": 73_000,
        "stages": [{"command": f"antigram train --name {LONG}", "seconds": 1.5}],
    }
    return page_html(demo_page(content, {"speaker": ["a", "b"], "emotion": ["c"]}, width=4))


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("name", ["run_page", "page_of_demo"])
def test_a_page_fits_its_screen(request, shown, name, width):
    told = shown(request.getfixturevalue(name), width)
    assert told["out"] == []
    assert told["width"] == width
    assert told["images"]
    assert all(told["images"])


@pytest.mark.slow
def test_what_sticks_out_is_noticed(shown):
    told = shown(f"<body style='margin: 0'><p>{LONG}", 390)
    assert told["width"] > 390
    assert told["out"] == []  # a paragraph is as wide as the page; its text is not
    assert shown("<img style='width: 500px'>", 390)["out"] == ["IMG: "]


def test_a_page_asks_phones_for_their_own_width(run_page):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in run_page
    assert "@media print" in run_page
    assert np.char.count(run_page, "<script") == 0
