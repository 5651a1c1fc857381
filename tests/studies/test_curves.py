import base64
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from antigram.pipeline.errors import InputError, StoredDataError
from antigram.studies.report import draw_curves, write_run_report
from tests.support.report_pages import CONFUSION, EPOCHS, RECALL, SETTINGS, entry, page_of, result

PANEL = (480, 384)  # pixels
HOSTILE = ['<script>alert("x")</script>', "$x^$", '"><img src=x>', "_hidden", "\ud800 & 猫\n"]


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved."""
    figures, save = [], Figure.savefig

    def spy(figure, *args, **kwargs):
        figures.append(figure)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return figures


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_a_finished_run_shows_scores_epochs_settings_and_confusion(make_run):
    confusion = [[3, 1, 0], [2, 2, 0], [0, 0, 0]]
    run = make_run([entry(1), entry(2), entry(3)], result(["a", "b", "none"], confusion))
    assert write_run_report(run) == [run / "curves.png", run / "report.html"]
    page = page_of(run)
    assert list(page.named) == [CONFUSION, RECALL, "Result", EPOCHS, SETTINGS]
    shaded, recalls, scores, epochs, settings = page.tables
    assert scores[1:] == [
        ["accuracy, train", "95.0%"],
        ["accuracy, validation", "90.0%"],
        ["accuracy, test", "87.5%"],
        ["unweighted average recall, test", "62.5%"],
        ["seconds per step (median)", "0.0516"],
        ["data wait, share of the time", "0.2%"],
        ["peak memory of the process (MB)", "838"],
        ["peak memory of the device (MB)", "-"],
    ]
    assert [row[0] for row in epochs] == ["epoch", "1", "2 (best)", "3"]
    assert epochs[0][1:3] == ["loss, train", "loss, validation"]
    assert epochs[2][1:5] == ["1.25", "1.25", "1", "1"]
    assert epochs[1][-2:] == ["1.5", "0.0125"]
    assert ["config/lr", "0.0005"] in settings
    assert ["config/arch/name", '"vgg11"'] in settings
    assert shaded == [
        ["true", "a", "b", "none"],
        ["a", "3", "1", "0"],
        ["b", "2", "2", "0"],
        ["none", "0", "0", "0"],
    ]
    assert recalls == [
        ["class", "segments", "recall"],
        ["a", "4", "75.0%"],
        ["b", "4", "50.0%"],
        ["none", "0", "-"],
        ["chance", "", "33.3%"],
    ]
    shares = [style.removeprefix("--share: ") for style in page.styles if style]
    assert [float(share) for share in shares] == [0.75, 0.25, 0, 0.5, 0.5, 0, 0, 0, 0]
    answer = "87.5% of the test split's segments are classified correctly"
    assert f"{answer} (unweighted average recall 62.5%)." in page.texts
    assert any("best is epoch 2" in text for text in page.texts)
    assert page.tags.count("details") == 2  # epochs and settings
    assert {path.name for path in run.iterdir()} == {
        *("config.json", "metrics.jsonl", "result.json", "curves.png", "report.html")
    }


def test_the_page_needs_nothing_but_itself(make_run):
    run = make_run([entry(1)])
    write_run_report(run)
    page = page_of(run)
    assert not {"script", "link", "iframe"} & set(page.tags)
    panels = []
    for source in page.sources:
        head, _, data = source.partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            panels.append(np.asarray(image))
    with Image.open(run / "curves.png") as image:
        np.testing.assert_array_equal(np.concatenate(panels, axis=1), np.asarray(image))


@pytest.mark.parametrize(("at", "panels"), [(0.25, 3), (0.0, 2)], ids=["AT", "no AT"])
def test_the_image_has_a_panel_for_each_kind_of_curve(make_run, at, panels):
    run = make_run([entry(1, at=at), entry(2, at=at)])
    write_run_report(run)
    with Image.open(io.BytesIO((run / "curves.png").read_bytes())) as image:
        image.load()
        assert image.size == (PANEL[0] * panels, PANEL[1])
        assert len(np.unique(np.asarray(image))) > 10


def test_curves_are_those_of_the_metrics_with_the_best_epoch_marked(make_run, drawn):
    run = make_run([entry(1), entry(2), entry(3, loss=9.0)])
    write_run_report(run)
    task, at, accuracy = drawn[0].axes
    assert [axis.get_title() for axis in (task, at, accuracy)] == [
        "task loss",
        "AT loss",
        "accuracy",
    ]
    assert legend(task) == ["train", "validation", "best epoch: 2"]
    assert task.lines[0].get_xydata().tolist() == [[1, 2], [2, 1], [3, 2 / 3]]
    assert list(task.lines[2].get_xdata()) == [2, 2]
    assert at.lines[1].get_ydata().tolist() == [0.25] * 3


def test_each_source_has_its_line_and_its_columns(make_run, drawn):
    run = make_run([entry(n, sources=["speech", "$noise_^$", "_music"]) for n in (1, 2)])
    write_run_report(run)
    names = ["speech", "$noise_^$", "_music"]
    labels = [f"{name} {split}" for name in names for split in ("train", "validation")]
    at = drawn[0].axes[1]
    assert legend(at) == [*labels, "best epoch: 2"]
    np.testing.assert_allclose(at.lines[2].get_ydata(), [0.2, 0.1])
    assert at.lines[0].get_color() == at.lines[1].get_color() != at.lines[2].get_color()
    assert at.lines[0].get_marker() == at.lines[1].get_marker() != at.lines[2].get_marker()
    assert at.lines[0].get_linestyle() != at.lines[1].get_linestyle()
    columns = page_of(run).named[EPOCHS][0]
    assert [name for name in columns if name.startswith("at ")] == [
        f"at {name}, {split}" for name in names for split in ("train", "validation")
    ]


def test_hostile_names_are_text(make_run):
    confusion = np.eye(len(HOSTILE), dtype=int).tolist()
    run = make_run(
        [entry(n, sources=HOSTILE) for n in (1, 2)], result(HOSTILE, confusion), name="<b>run&"
    )
    write_run_report(run)
    page = page_of(run)
    assert not {"script", "b"} & set(page.tags)
    assert page.tags.count("img") == 3  # task loss, AT loss, accuracy
    table = page.named[CONFUSION]
    assert [row[0] for row in table[1:-1]] == HOSTILE[:-1]
    assert "? & 猫" in table[-1][0]
    assert "<b>run&" in page.texts


def test_an_unfinished_run_says_so(make_run):
    run = make_run([entry(1), entry(2)])
    write_run_report(run)
    page = page_of(run)
    assert any("Not finished: 2 of up to 50 epochs" in text for text in page.texts)
    assert len(page.tables) == 2  # neither scores nor confusion
    assert page.tables[0][2][0] == "2 (best)"


def test_many_classes(make_run, rng):
    names = [f"word {i}" for i in range(35)]
    counts = rng.integers(0, 90, (35, 35))
    run = make_run([entry(1), entry(2)], result(names, counts.tolist()))
    write_run_report(run)
    table = page_of(run).named[CONFUSION]
    assert table[0] == ["true", *names]
    assert [[int(cell) for cell in row[1:]] for row in table[1:]] == counts.tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e308, None], ids=str)
def test_numbers_that_cannot_be_drawn_do_not_stop_it(make_run, value):
    all_of_it = dict.fromkeys(("loss", "ce", "accuracy"), value)
    scores = result(["a"], [[value]], best_epoch=None, unweighted_average_recall=value)
    run = make_run([entry(1, at=value, **all_of_it), {"epoch": 2}], scores)
    write_run_report(run)
    page = page_of(run)
    table = page.named[EPOCHS]
    assert [row[0].split()[0] for row in table] == ["epoch", "1", "2"]
    assert table[2][1:] == ["-"] * 10
    assert (run / "curves.png").stat().st_size > 1000


def test_the_same_run_makes_the_same_bytes(make_run):
    run = make_run([entry(1), entry(2)])
    first = [path.read_bytes() for path in write_run_report(run)]
    assert [path.read_bytes() for path in write_run_report(run)] == first


@pytest.mark.parametrize("missing", [True, False], ids=["no file", "empty"])
def test_without_an_epoch_it_is_an_input_error(make_run, missing):
    run = make_run([])
    if missing:
        (run / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"metrics\.jsonl: missing or empty; wanted") as raised:
        write_run_report(run)
    assert "\n" not in str(raised.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "result.json"])
@pytest.mark.parametrize(("text", "wanted"), [("{", "unreadable"), ("[]", "wanted JSON objects")])
def test_damaged_files_are_named(make_run, name, text, wanted):
    run = make_run([entry(1)])
    (run / name).write_text(text)
    with pytest.raises(StoredDataError, match=f"{name}: {wanted}"):
        write_run_report(run)
    assert not (run / "curves.png").exists()


def test_a_confusion_that_is_not_square_is_named(make_run):
    run = make_run([entry(1)], result(["a", "b"], [[1, 2], [3]]))
    with pytest.raises(StoredDataError, match=r"result\.json: confusion is not"):
        write_run_report(run)


def test_several_runs_have_a_row_of_panels_each_on_the_same_scales(drawn):
    runs = {
        "baseline": [entry(1, at=0.0), entry(2, at=0.0)],
        "$a_^$": [entry(n, ce=7.0) for n in (1, 2, 3)],
    }
    curves = draw_curves(runs, {"baseline": 1})
    assert [len(row) for row in curves.rows] == [2, 3]
    task, accuracy, other, _, _ = drawn[0].axes
    assert task.get_title() == "baseline: task loss"
    assert other.get_title() == "$a_^$: task loss"
    assert task.get_ylim() == other.get_ylim()
    assert accuracy.get_ylim() == (0, 1.02)
    assert legend(task)[-1] == "best epoch: 1"
    with Image.open(io.BytesIO(curves.png)) as image:
        assert image.size == (PANEL[0] * 3, PANEL[1] * 2)
