import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.item import Item
from dfm_mlflow.report.gallery import build_gallery
from dfm_mlflow.report.html import write_report
from dfm_mlflow.scores.evaluation import Evaluation, image_metrics, score_items
from dfm_mlflow.scores.verdict import Verdict, verdict_of

from ..detectors import fit, pictures
from .conftest import items_in

pytestmark = pytest.mark.integration  # whole jobs, one after the other

SCRIPT = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Counts tags, and collects what a browser would fetch or run."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def report_of(folder, detector, items, labelled=True, origin=None):
    catalog = Catalog("x", str(folder), tuple(items))
    evaluation = score_items(detector, items, None)
    if not labelled:
        table = evaluation.table.assign(label="unlabelled", defective=None)
        evaluation = Evaluation(table, evaluation.seen)
    found = image_metrics(evaluation.table) if labelled else {}
    gallery = build_gallery(detector, catalog, evaluation)
    sentences = [detector.calibration_sentence()]
    where = origin or {"run id": "abc"}
    read = evaluation.table[evaluation.table["error"].isna()]
    verdict = verdict_of(detector, read, found)
    write_report(folder / "report", detector, evaluation, found, sentences, verdict, gallery, where)
    page = (folder / "report/report.html").read_text(encoding="utf-8")
    return page, Page(page), gallery


def test_the_page_shows_all_and_asks_for_nothing(detector, tmp_path):
    text, page, gallery = report_of(tmp_path, detector, items_in(tmp_path))
    assert "script" not in page.tags
    fetched = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href", "data")]
    assert all(v.startswith(("data:image/jpeg;base64,", "#")) for v in fetched)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert "prefers-color-scheme: dark" in text
    for word in (
        "Scores and threshold",
        "Which false-positive rate?",
        "Promised and measured",
        "overkill",
        "escapes",
        "ROC",
        "precision-recall",
        "Kinds of defects",
        "Worst misses",
        "Worst false alarms",
        "Typical hits",
        "Provenance",
        "Configuration",
        "abc",
    ):
        assert word in page.words, word
    identifiers = [v for _, name, v in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    pictures_shown = [t for t in page.tags if t == "img"]
    assert len(pictures_shown) == 2 * sum(map(len, gallery.values()))
    names = {p.name for p in (tmp_path / "report").iterdir()}
    assert {"scores.png", "roc.png", "precision_recall.png", "false_positive_rate.png"} <= names
    # a chart takes the page's colour, so that it is readable on both backgrounds
    assert text.count("<svg") == 6  # the histogram once more for narrow windows
    assert "currentColor" in text
    assert "#1f2933" not in text.split("</style>", 1)[1]


@pytest.mark.parametrize("name", [SCRIPT, "$x$", "_hidden", "&lt;b&gt;", 'a"b', "x" * 300])
def test_names_are_shown_as_they_are_and_do_nothing(tmp_path, name):
    detector = fit({name: pictures(12)}, category="stripes")
    items = items_in(tmp_path, name, name)
    origin = {"data": f"s3://bucket/{name}", "run": name}
    _, page, gallery = report_of(tmp_path, detector, items, origin=origin)
    assert "script" not in page.tags
    assert not {n for _, n, _ in page.attributes if n.startswith("on")}
    assert page.words.count(name) >= 4
    case = next(case for cases in gallery.values() for case in cases)
    assert re.fullmatch(r"[\w. -]{1,200}\.png", case.file)


def test_without_labels_defects_or_pictures(detector, tmp_path):
    items = items_in(tmp_path / "pictures")
    good = [i for i in items if i.label == "good"]
    kinds = {
        "all": (items, True, "finds"),
        "good": (good, True, "no defective picture to rank against"),
        "bad": (items[len(good) :], True, "no good picture to rank against"),
        "unlabelled": (items, False, "unlabelled pictures"),
        "nothing": ([], True, "nothing is known of the defects"),
    }
    for name, (chosen, labelled, words) in kinds.items():
        _, page, gallery = report_of(tmp_path / name, detector, chosen, labelled)
        assert words in page.words, name
        assert "held-out good" in page.words
        assert ("ROC, AUROC" in page.words) == (name == "all"), name
        assert ("Kinds of defects" in page.words) == (name in ("all", "good", "bad")), name
        assert ("Most unusual pictures" in gallery) == (name == "unlabelled")
        assert not re.search(r"\bnan\b", page.words.lower()), name
    assert gallery == {}


def test_several_categories_have_a_histogram_and_rows_each(tmp_path):
    detector = fit({"stripes": pictures(20), "bands": pictures(20, seed=5, shift=60)}, fpr="0.1")
    items = items_in(tmp_path, "stripes") + items_in(tmp_path, "bands", "crack", seed=5)
    text, page, _ = report_of(tmp_path, detector, items)
    assert text.count('aria-label="histogram') == 2
    assert text.count('aria-label="narrow histogram') == 2
    assert "category stripes" in page.words
    assert "category bands" in page.words
    assert page.words.count("good 6") == 2  # a row of the table of each
    assert "at its thresholds" in page.words


@pytest.mark.slow
def test_it_stays_small_with_pictures_of_noise_and_many_kinds_of_defects(tmp_path, monkeypatch):
    monkeypatch.setattr("dfm_mlflow.report.html._MOST_HISTOGRAMS", 2)
    rng = np.random.default_rng(0)
    names = [f"category {i}" for i in range(3)]
    detector = fit({name: pictures(6, seed=i, shift=9 * i) for i, name in enumerate(names)})
    noise = rng.integers(0, 256, (240, 240, 3), dtype=np.uint8)  # not made smaller, so not calmer
    Image.fromarray(noise).save(tmp_path / "noise.png")
    items = [
        Item(tmp_path / "noise.png", name, "test", label)
        for name in names
        for label in ("good", *(f"defect {i}" for i in range(16)))
        for _ in range(3)
    ]
    catalog = Catalog("x", "x", tuple(items))
    scored = score_items(detector, items[:1], None)  # all are the same picture
    table = scored.table.loc[[0] * len(items)].reset_index(drop=True)
    table = table.assign(
        category=[item.category for item in items],
        label=[item.label for item in items],
        defective=[item.label != "good" for item in items],
        anomaly_score=rng.lognormal(2, 2, len(items)),
        is_anomaly=rng.random(len(items)) < 0.5,
    )
    evaluation = Evaluation(table, dict.fromkeys(range(len(items)), scored.seen[0]))
    gallery = build_gallery(detector, catalog, evaluation)
    assert sum(map(len, gallery.values())) >= 18
    verdict = Verdict("It is noise.")
    write_report(tmp_path / "report", detector, evaluation, {}, [], verdict, gallery, {})
    page = tmp_path / "report/report.html"
    assert page.stat().st_size < 3_000_000
    assert "the first 2 of 3 categories" in Page(page.read_text()).words
