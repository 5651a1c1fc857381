import base64
import io
import json
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from antigram.model.training.tensorboard import TensorBoardLogger
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.studies.curves import draw_run, write_curves

PANEL = (480, 384)  # pixels
HOSTILE = ['<script>alert("x")</script>', "$x^$", '"><img src=x>', "_hidden", "\ud800 & 猫\n"]


class Page(HTMLParser):
    """Tags, attributes of images, text of paragraphs, and the cells of each table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.tables, self.texts, self.styles = [], [], [], [], []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        if tag == "img":
            self.sources.append(given["src"])
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.styles.append(given.get("style"))
            self.in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.tables[-1][-1][-1] += data
        self.texts.append(data)


def entry(epoch, *, sources=(), at=0.25, **changes):
    means = {"loss": 2.5 / epoch, "ce": 2.0 / epoch, "at": at, "accuracy": 0.5, **changes}
    if sources:
        means["at_by_source"] = {name: 0.1 * i / epoch for i, name in enumerate(sources, 1)}
    split = {"train": means, "validation": dict(means)}
    return {"epoch": epoch, **split, "seconds": 1.5, "data_wait_seconds": 0.0125}


def result(classes, confusion, **changes):
    return {
        "best_epoch": 2,
        "accuracy": {"train": 0.95, "validation": 0.9, "test": 0.875},
        "unweighted_average_recall": 0.625,
        "confusion": [list(row) for row in confusion],
        "classes": list(classes),
        "seconds_per_step": 0.0516,
        "data_wait_fraction": 0.0016,
        "peak_rss_mb": 838.4,
        "peak_device_mb": None,
        **changes,
    }


@pytest.fixture
def make_run(tmp_path):
    def make(entries, result=None, name="cached-tiny"):
        run = tmp_path / name
        run.mkdir()
        config = {"mode": "cached", "epochs": 50, "lr": 5e-4, "arch": {"name": "vgg11"}}
        (run / "config.json").write_text(json.dumps({"config": config, "grams": {}}))
        (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
        if result is not None:
            (run / "result.json").write_text(json.dumps(result))
        return run

    return make


def page_of(run):
    draw_run(run)  # which leaves a page that is there alone
    return Page((run / "report.html").read_text())


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
    assert write_curves(run) == [run / "curves.png", run / "report.html"]
    page = page_of(run)
    scores, epochs, settings, shaded = page.tables
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
    shares = [style.split("180,")[1].split(")")[0] for style in page.styles if "rgba" in str(style)]
    assert [float(share) for share in shares] == [0.75, 0.25, 0, 0.5, 0.5, 0, 0, 0, 0]
    assert any("best is epoch 2" in text for text in page.texts)
    assert {path.name for path in run.iterdir()} == {
        *("config.json", "metrics.jsonl", "result.json", "curves.png", "report.html")
    }


def test_the_page_needs_nothing_but_itself(make_run):
    run = make_run([entry(1)])
    write_curves(run)
    page = page_of(run)
    assert not {"script", "link", "iframe"} & set(page.tags)
    (source,) = page.sources
    head, _, data = source.partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == (run / "curves.png").read_bytes()


@pytest.mark.parametrize(("at", "panels"), [(0.25, 3), (0.0, 2)], ids=["AT", "no AT"])
def test_the_image_has_a_panel_for_each_kind_of_curve(make_run, at, panels):
    run = make_run([entry(1, at=at), entry(2, at=at)])
    write_curves(run)
    with Image.open(io.BytesIO((run / "curves.png").read_bytes())) as image:
        image.load()
        assert image.size == (PANEL[0] * panels, PANEL[1])
        assert len(np.unique(np.asarray(image))) > 10


def test_curves_are_those_of_the_metrics_with_the_best_epoch_marked(make_run, drawn):
    run = make_run([entry(1), entry(2), entry(3, loss=9.0)])
    write_curves(run)
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
    write_curves(run)
    names = ["speech", "$noise_^$", "_music"]
    labels = [f"{name} {split}" for name in names for split in ("train", "validation")]
    at = drawn[0].axes[1]
    assert legend(at) == [*labels, "best epoch: 2"]
    np.testing.assert_allclose(at.lines[2].get_ydata(), [0.2, 0.1])
    assert at.lines[0].get_color() == at.lines[1].get_color() != at.lines[2].get_color()
    columns = page_of(run).tables[0][0]
    assert [name for name in columns if name.startswith("at ")] == [
        f"at {name}, {split}" for name in names for split in ("train", "validation")
    ]


def test_hostile_names_are_text(make_run):
    confusion = np.eye(len(HOSTILE), dtype=int).tolist()
    run = make_run(
        [entry(n, sources=HOSTILE) for n in (1, 2)], result(HOSTILE, confusion), name="<b>run&"
    )
    write_curves(run)
    page = page_of(run)
    assert not {"script", "b"} & set(page.tags)
    assert page.tags.count("img") == 1
    assert [row[0] for row in page.tables[-1][1:-1]] == HOSTILE[:-1]
    assert "? & 猫" in page.tables[-1][-1][0]
    assert "<b>run&" in page.texts


def test_an_unfinished_run_says_so(make_run):
    run = make_run([entry(1), entry(2)])
    write_curves(run)
    page = page_of(run)
    assert any("Not finished: 2 of up to 50 epochs" in text for text in page.texts)
    assert len(page.tables) == 2  # neither scores nor confusion
    assert page.tables[0][2][0] == "2 (best)"


def test_many_classes(make_run, rng):
    names = [f"word {i}" for i in range(35)]
    counts = rng.integers(0, 90, (35, 35))
    run = make_run([entry(1), entry(2)], result(names, counts.tolist()))
    write_curves(run)
    table = page_of(run).tables[-1]
    assert table[0] == ["true", *names]
    assert [[int(cell) for cell in row[1:]] for row in table[1:]] == counts.tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e308, None], ids=str)
def test_numbers_that_cannot_be_drawn_do_not_stop_it(make_run, value):
    all_of_it = dict.fromkeys(("loss", "ce", "accuracy"), value)
    scores = result(["a"], [[value]], best_epoch=None, unweighted_average_recall=value)
    run = make_run([entry(1, at=value, **all_of_it), {"epoch": 2}], scores)
    write_curves(run)
    page = page_of(run)
    assert [row[0].split()[0] for row in page.tables[1]] == ["epoch", "1", "2"]
    assert page.tables[1][2][1:] == ["-"] * 10
    assert (run / "curves.png").stat().st_size > 1000


def test_the_same_run_makes_the_same_bytes(make_run):
    run = make_run([entry(1), entry(2)])
    first = [path.read_bytes() for path in write_curves(run)]
    assert [path.read_bytes() for path in write_curves(run)] == first


@pytest.mark.parametrize("missing", [True, False], ids=["no file", "empty"])
def test_without_an_epoch_it_is_an_input_error(make_run, missing):
    run = make_run([])
    if missing:
        (run / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"metrics\.jsonl: missing or empty; wanted") as raised:
        write_curves(run)
    assert "\n" not in str(raised.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "result.json"])
@pytest.mark.parametrize(("text", "wanted"), [("{", "unreadable"), ("[]", "wanted JSON objects")])
def test_damaged_files_are_named(make_run, name, text, wanted):
    run = make_run([entry(1)])
    (run / name).write_text(text)
    with pytest.raises(StoredDataError, match=f"{name}: {wanted}"):
        write_curves(run)
    assert not (run / "curves.png").exists()


def test_a_confusion_that_is_not_square_is_named(make_run):
    run = make_run([entry(1)], result(["a", "b"], [[1, 2], [3]]))
    with pytest.raises(StoredDataError, match=r"result\.json: confusion is not"):
        write_curves(run)


class Writer:
    def __init__(self, folder, purge_step):
        self.folder, self.purge_step = folder, purge_step
        self.scalars, self.flushed, self.closed = {}, 0, False
        Writer.last = self

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed = True


def test_the_board_is_given_every_scalar(tmp_path, monkeypatch):
    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with TensorBoardLogger(tmp_path / "run") as board:
        assert not (tmp_path / "run").exists()
        board.epoch(entry(3, sources=["speech", "noise"]))
        board.epoch(entry(4, at=None))
    seen = Writer.last
    assert (seen.folder, seen.purge_step) == (str(tmp_path / "run"), 3)
    assert (seen.flushed, seen.closed) == (2, True)
    keys = ("loss", "ce", "at", "accuracy", "at_by_source/speech", "at_by_source/noise")
    both = {f"{key}/{split}" for key in keys for split in ("train", "validation")}
    assert {tag for tag, step in seen.scalars if step == 3} == {*both, "data_wait_seconds"}
    assert seen.scalars["ce/validation", 4] == 0.5
    assert ("at/train", 4) not in seen.scalars


def test_without_tensorboard_the_board_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with TensorBoardLogger(tmp_path) as board:
        board.epoch(entry(1))
    board.close()
    assert list(tmp_path.iterdir()) == []
