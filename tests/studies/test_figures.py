"""Figures from arrays: spectrograms, heat maps and principal components."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from antigram.studies.figures.embeddings import (
    draw_embeddings,
    embedding_panels,
    principal_components,
)
from antigram.studies.figures.panels import Panel, draw_panels, draw_picture, panels_file
from antigram.studies.figures.spectrograms import (
    HeatMap,
    Spectrogram,
    decibels,
    draw_preparation,
    heat_panel,
    panel_of,
)
from antigram.studies.report import draw_by_arm, draw_by_number, draw_probes

HOSTILE = ["$x_^$", "_hidden", "<b>", "猫"]


def axes_of(panel):
    axis = Figure().subplots()
    panel.draw(axis)
    return axis


def spectrogram(values, **changes):
    given = {"unit": "dB", "frame_s": 0.008, "bin_hz": 62.5, **changes}
    return Spectrogram(values=np.asarray(values, np.float32), **given)


def test_decibels_are_those_below_the_loudest_and_end_at_80():
    found = decibels(np.array([[1.0, 10.0], [1e-9, 0.0]], np.float32))
    np.testing.assert_allclose(found, [[-20, 0], [-80, -80]], atol=1e-5)
    np.testing.assert_array_equal(decibels(np.zeros((2, 3), np.float32)), np.full((2, 3), -80))


def test_a_spectrogram_has_seconds_and_khz_and_bins_are_centred_on_their_values(rng):
    axis = axes_of(panel_of("$a_^$", spectrogram(rng.random((126, 129)))))
    (image,) = axis.images
    assert image.get_array().shape == (129, 126)  # frequency upwards
    np.testing.assert_allclose(image.get_extent(), (-0.004, 1.004, -0.03125, 8.03125))
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("seconds", "kHz")
    assert axis.get_title() == "$a_^$"


def test_values_above_a_given_one_are_drawn_alike():
    values = np.arange(100, dtype=np.float32).reshape(10, 10)
    axis = axes_of(panel_of("x", spectrogram(values, most=50.0)))
    assert axis.images[0].get_clim() == (0, 50)
    assert axis.images[0].colorbar.extend == "max"
    assert axes_of(panel_of("x", spectrogram(values))).images[0].colorbar.extend == "neither"


def test_a_heat_map_is_a_share_of_its_maximum_and_is_read_without_colour(rng):
    heat = rng.random((20, 30)).astype(np.float32) * 7
    frame, freq = np.unravel_index(heat.argmax(), heat.shape)
    peak = float(frame) * 0.008, float(freq)
    below = spectrogram(rng.random((20, 30)))
    axis = axes_of(heat_panel(HeatMap(title="x", spectrogram=below, heat=heat, peak=peak)))
    grey, shares = axis.images
    np.testing.assert_allclose(shares.get_array(), heat.T / heat.max(), rtol=1e-6)
    assert grey.get_cmap().name == "Greys"
    (cross,) = axis.lines
    np.testing.assert_allclose(cross.get_xydata(), [[peak[0], peak[1] * 0.0625]])
    (contours,) = axis.collections
    np.testing.assert_allclose(contours.levels, (0.25, 0.5, 0.75))
    assert len(set(contours.get_linewidth())) == 3


def test_a_heat_map_of_zeros_has_no_cross_and_no_contours():
    zeros = np.zeros((20, 30), np.float32)
    heat_map = HeatMap(title="x", spectrogram=spectrogram(zeros), heat=zeros, peak=None)
    axis = axes_of(heat_panel(heat_map))
    assert (len(axis.lines), len(axis.collections)) == (0, 0)


@pytest.mark.parametrize("shape", [(40, 7), (5, 30), (3, 1)], ids=str)
def test_principal_components_are_those_of_the_covariance(rng, shape):
    x = rng.standard_normal(shape) * np.linspace(1, 5, shape[1]) + 100
    found = principal_components(x.astype(np.float32))
    values, vectors = np.linalg.eigh(
        np.cov(x.astype(np.float32), rowvar=False).reshape(2 * (shape[1],))
    )
    want = (x - x.mean(0)) @ vectors[:, ::-1][:, :2]
    for component in range(want.shape[1]):
        same = found.points[:, component], want[:, component]
        sign = np.sign(np.dot(*same))
        np.testing.assert_allclose(same[0], sign * same[1], atol=1e-4 * np.abs(want).max())
    shares = [*(values[::-1] / values.sum()), 0.0][:2]
    np.testing.assert_allclose(found.shares, shares, atol=1e-5)


def test_segments_that_are_all_alike_are_one_point():
    found = principal_components(np.ones((4, 3), np.float32))
    assert found.shares == (0, 0)
    np.testing.assert_array_equal(found.points, np.zeros((4, 2)))


def test_classes_differ_by_marker_and_colour_and_rare_ones_are_grey(rng):
    classes = [f"word {i}" for i in range(15) for _ in range(20 - i)] + [""] * 3
    x = rng.standard_normal((len(classes), 6))
    speakers = [HOSTILE[i % 4] for i in range(len(classes))]
    panels = embedding_panels(x, {"word": classes, "$s_^$": speakers}, title="run $1$")
    by_word, by_speaker = [axes_of(panel) for panel in panels if panel]
    assert by_word.get_title() == "run $1$: by word"
    assert by_speaker.get_title() == "run $1$: by $s_^$"
    points = principal_components(x).points
    grey, *lines = by_word.lines
    rare = [name in ("", "word 12", "word 13", "word 14") for name in classes]
    np.testing.assert_array_equal(grey.get_xydata(), points[rare])
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == 12
    texts = [text.get_text() for text in by_word.get_legend().get_texts()]
    assert texts == ["others", *sorted(f"word {i}" for i in range(12))]
    of_seven = np.array(classes) == "word 7"
    np.testing.assert_array_equal(lines[texts.index("word 7") - 1].get_xydata(), points[of_seven])
    shown = [text.get_text() for text in by_speaker.get_legend().get_texts()]
    assert shown == sorted(HOSTILE)
    assert len({line.get_marker() for line in by_speaker.lines}) == 4


def test_equal_arrays_give_equal_bytes_and_pictures_of_one_size(rng):
    x, labels = rng.standard_normal((30, 4)), {"a": [*HOSTILE, "b"] * 6, "b": ["x"] * 30}
    first, second = draw_embeddings(x, labels), draw_embeddings(x, labels)
    assert first.png == second.png
    assert [picture.png for picture in first.rows[0]] == [p.png for p in second.rows[0]]
    steps = [("before", spectrogram(rng.random((9, 8)))), ("after", spectrogram(np.ones((9, 8))))]
    (pictures,) = draw_preparation(steps).rows
    assert [picture.alt for picture in pictures] == [
        "Spectrogram (dB): before",
        "Spectrogram (dB): after",
    ]
    for picture in (*first.rows[0], *pictures):
        with Image.open(io.BytesIO(picture.png)) as image:
            assert image.size == (480, 384)
    panel = panel_of("x", steps[0][1])
    assert panels_file([[panel]], "png") == draw_panels([[panel]]).png
    assert panels_file([[panel]], "svg") == panels_file([[panel]], "svg")


def size_of(picture):
    return Image.open(io.BytesIO(picture.png)).size


def test_a_picture_has_its_own_size_and_equal_ones_equal_bytes():
    def draw(axis):
        axis.plot([1, 2])

    panel = Panel(draw=draw, alt="a line")
    first, again = (draw_picture(panel, width=300, height=200) for _ in range(2))
    assert size_of(first) == (300, 200)
    assert (first.png, first.alt) == (again.png, "a line")
    assert size_of(draw_picture(panel)) == size_of(draw_panels([[panel]]).rows[0][0])


def test_arms_are_drawn_with_and_without_intervals_and_any_names():
    arms = [
        (name, 1.5 * n, None if n else -1.0, None if n else 2.0) for n, name in enumerate(HOSTILE)
    ]
    difference, probe = draw_by_arm(arms), draw_probes(arms, HOSTILE[0])
    assert size_of(difference) == size_of(probe) == (600, 108 + 4 * 38)
    assert difference.alt.startswith(
        "Difference of each arm from the baseline in points: $x_^$ +0.0"
    )
    assert probe.alt.startswith("Accuracy of a probe of $x_^$ by arm in per cent: $x_^$ 0.0; _hid")
    lines = {name: [(5.0, 1.0, None, None), (9.0, -2.0, -3.0, 0.0)] for name in HOSTILE}
    assert draw_by_number(lines, "layer").alt.endswith("猫: 5 +1.0, 9 -2.0")
