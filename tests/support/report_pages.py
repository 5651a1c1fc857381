"""Make entries and results of runs without training, and parse the pages of reports."""

from html.parser import HTMLParser

from antigram.studies.report import draw_run

EPOCHS = "Means over the segments of each epoch"
SETTINGS = "Content of config.json"
CONFUSION = "Confusion of the test split: true class by row, predicted by column."
RECALL = "Recall of each class, test split"


class Page(HTMLParser):
    """A parsed page: tags, attributes of images, paragraphs, and cells of each table by heading."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.tables, self.texts, self.styles = [], [], [], [], []
        self.in_cell = self.in_heading = False
        self.heading, self.named = "", {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        if tag == "img":
            self.sources.append(given["src"])
        elif tag == "h2":
            self.heading, self.in_heading = "", True
        elif tag == "table":
            self.tables.append([])
            self.named[self.heading] = self.tables[-1]
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.styles.append(given.get("style"))
            self.in_cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False
        elif tag == "h2":
            self.in_heading = False

    def handle_data(self, data):
        if self.in_cell:
            self.tables[-1][-1][-1] += data
        elif self.in_heading:
            self.heading += data
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


def page_of(run):
    draw_run(run)  # an existing page is left alone
    return Page((run / "report.html").read_text())
