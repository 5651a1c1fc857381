"""Reports as a browser shows them: on a phone and on a desk, nothing sticks out sideways."""

import html
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from antigram.model.training.explain import Explanation, Peak
from antigram.model.training.predict import Prediction
from antigram.studies.compare.tables import write_tables
from antigram.studies.explaining import explanation_page
from antigram.studies.figures.embeddings import draw_embeddings
from antigram.studies.figures.spectrograms import Spectrogram, draw_preparation
from antigram.studies.report import Figure, Part, Sound, Sounds, page_html, write_run_report
from antigram.studies.report.recordings import wav_bytes
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
    sounds: [...page.querySelectorAll("audio")].map(sound => sound.offsetWidth),
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
    shown = Spectrogram(values=rng.random((126, 129)), unit="dB", frame_s=0.008, bin_hz=62.5)
    steps = [(LONG, shown) for _ in range(2)]
    labels = {LONG: [f"{LONG} {i % 14}" for i in range(60)], "speaker": ["a", "b"] * 30}
    sounds = [
        Sound(text=f"{LONG}: {LONG}/{LONG}.wav", wav=wav_bytes(np.zeros(800, np.float32), 16_000))
    ]
    more: list[Part] = [
        Sounds(caption="Errors to listen to", text=LONG, sounds=[*sounds, *sounds]),
        Figure(caption=f"Before and after {LONG}.", rows=draw_preparation(steps).rows),
        Figure(caption=LONG, rows=draw_embeddings(rng.random((60, 4)), labels).rows),
    ]
    scores["at_initial"] = scores["at_best"] = {"5": {LONG: 0.5, "emotion": 0.25}}
    entries = [entry(n, sources=[LONG, "emotion"]) for n in range(1, 9)]
    run = make_run(entries, scores, name=LONG)
    write_run_report(run, more=more)
    return (run / "report.html").read_text()


@pytest.fixture
def page_of_explain(rng):
    """Of three networks and a class with long names."""
    shares = np.array([0.25, 0.75])
    explanation = Explanation(
        prediction=Prediction(LONG, [LONG, "other"], shares),
        label=LONG,
        layer=13,
        magnitudes=rng.random((126, 129)),
        heat=rng.random((126, 129)),
        maximum=1.0,
        peak=Peak(0.5, 4000.0, 64.0),
        frame_s=0.008,
        bin_hz=62.5,
    )
    found = {"teacher": explanation, LONG: explanation, "AT": explanation}
    return page_html(explanation_page(Path(f"{LONG}.wav"), found))


@pytest.fixture
def study_page(tmp_path):
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    difference = {**interval, "p": 0.2, "p_holm": 0.4, "verdict": "undecided", "note": ""}
    arms = [
        {
            **{"arm": name, "setting": LONG, "about": LONG, "layer": "5+9", "runs": 12},
            **{"accuracy": interval, "needs_labels": True, "seconds": 3.0, "probe": interval},
            **{"before_seconds": 2.5, "peak_rss_mb": 890.4, "peak_device_mb": None},
            **{"run_bytes": 123_456_789, "cache_bytes": None},
            **{"train_accuracy": 0.9, "difference": {**difference, "groups": 24} if k else None},
        }
        for k, name in enumerate(("baseline", LONG, f"{LONG} 5", f"{LONG} 9"))
    ]
    content = {
        **{"study": str(tmp_path), "title": LONG, "question": LONG, "notes": [LONG]},
        **{
            "report": "r",
            "stand_ins": {"gsc": LONG},
            "warnings": [LONG],
            "settings": {"probe": LONG},
        },
        **{"arms": arms, "published": {LONG: {LONG: 50.0}}, "chance": 0.1},
        "claims": [
            {
                **{"name": "H1", "setting": LONG, "text": LONG, "arm": LONG, "p": 0.5},
                **{"differences": {"baseline": {**interval, "p": 0.5}}, "note": LONG},
                **{"p_holm": 0.5, "holds": False},
            }
        ],
        "data": {"task": "word", "against": "a", "groups": LONG, "folds": 2, "seeds": 3},
    }
    write_tables(tmp_path, content, [(f"antigram train --name {LONG}", 1.5)], {LONG: [entry(1)]})
    return (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("name", ["run_page", "study_page", "page_of_explain"])
def test_a_page_fits_its_screen(request, shown, name, width):
    told = shown(request.getfixturevalue(name), width)
    assert told["out"] == []
    assert told["width"] == width
    assert told["images"]
    assert all(told["images"])
    assert len(told["sounds"]) == (2 if name == "run_page" else 0)
    assert all(0 < sound_width < width for sound_width in told["sounds"])


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
