"""`antigram explain`: a picture or a page with what several checkpoints hear in a recording."""

import io
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.report_pages import Page


@pytest.fixture
def asked(chain, audio):
    """Two checkpoints, of the chain and of another task, and a recording."""
    content = torch.load("net.pt", weights_only=True)
    content.update(task="animal", classes=["cat", "dog", "emu"])
    torch.save(content, "animals.pt")
    return "explain", "--ckpt", "net.pt", "--ckpt", "animals.pt", audio / "low" / "1.wav"


def test_a_picture_and_what_it_shows(chain, asked):
    found = chain.json(*asked, "--layer", 3)
    assert Path(found["file"]).parts[-2:] == ("low", "1.wav")
    assert found["picture"] == "grad-cam.png"
    one, other = found["explanations"]
    assert [each["checkpoint"] for each in (one, other)] == ["net.pt", "animals.pt"]
    assert one["layer"] == 3
    assert one["predicted"] == one["class"]
    (predicted,) = chain.json("predict", "--ckpt", "net.pt", found["file"])["recordings"]
    assert one["predicted"] == predicted["label"]
    assert one["probability"] == pytest.approx(max(predicted["probabilities"].values()))
    assert one["maximum"] >= 0
    with Image.open("grad-cam.png") as image:
        assert image.size == (3 * 480, 384)  # the spectrogram, and one panel a network


def test_a_network_that_does_not_know_the_class_tells_its_own(chain, asked):
    code, out, err = chain(*asked, "--class", "dog", "--to", "page.html")
    assert code == 0
    assert "net.pt: does not know dog; its own prediction is explained" in err
    assert out.splitlines()[-1] == "written: page.html"
    assert out.splitlines()[1].startswith("animals.pt: dog (0.")
    page = Page(Path("page.html").read_text())
    table = page.named["Predictions, and where Grad-CAM is largest"]
    assert [row[0] for row in table] == ["network", "net", "animals"]
    assert table[2][3] == "dog"
    assert len(page.sources) == 3
    assert not {"script", "link"} & set(page.tags)


def test_an_svg_is_the_same_twice(chain, asked):
    drawn = []
    for _ in range(2):
        chain.json(*asked, "--to", "g.svg")
        drawn.append(Path("g.svg").read_bytes())
    assert drawn[0] == drawn[1]
    assert ET.parse(io.BytesIO(drawn[0])).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--to", "g.gif"], "--to g.gif: wanted a file that ends in .html, .png, .svg"),
        (["--to", "no/g.png"], "--to no/g.png: there is no folder"),
        (["--layer", "9"], "--layer 9: vgg11 has convolution layers 1 to 8"),
        (["--class", "wolf"], "--class 'wolf': no checkpoint knows this class; they know"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(chain, asked, options, match):
    before = set(Path().iterdir())
    chain.refused(2, match, *asked, *options)
    assert set(Path().iterdir()) == before


def test_names_of_runs_and_classes_are_shown_literally(chain, audio):
    content = torch.load("net.pt", weights_only=True)
    content["classes"] = ["$a_^$", "<b>", "_c"]
    run = Path("run $x^$")
    run.mkdir()
    torch.save(content, run / "best.pt")
    recording = audio / "low" / "1.wav"
    for form in ("png", "html"):
        chain.json("explain", "--ckpt", run / "best.pt", recording, "--to", f"g.{form}")
    page = Page(Path("g.html").read_text())
    assert page.tables[0][1][0] == "run $x^$"
    assert "b" not in page.tags
    with Image.open("g.png") as image:
        assert len(np.unique(np.asarray(image))) > 50
