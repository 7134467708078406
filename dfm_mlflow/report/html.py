"""One self-contained HTML page about a run: no script, no request, light and dark."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from dfm_mlflow.data.item import GOOD
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.decision import is_estimate
from dfm_mlflow.images.overlay import tint
from dfm_mlflow.report import curves, figures, words
from dfm_mlflow.report.charts import Charts
from dfm_mlflow.report.gallery import Shown
from dfm_mlflow.report.look import LookSection
from dfm_mlflow.report.pages import PAGES
from dfm_mlflow.report.rate_table import which_rate
from dfm_mlflow.report.thumbnail import data_url
from dfm_mlflow.scores.evaluation import Evaluation, counted, defect_table
from dfm_mlflow.scores.verdict import Verdict, percent

_MOST_HISTOGRAMS = 6  # of categories
_TIMES = {
    "extract_seconds": "features of the training pictures, s",
    "fit_seconds": "fit and calibration, s",
    "images_per_second": "pictures a second, decoding included",
    "model_megabytes": "model, MB",
    "peak_memory_megabytes": "memory at its peak, MB",
}


def write_report(
    folder: Path,
    detector: AnomalyDetector,
    evaluation: Evaluation,
    metrics: dict[str, float],
    sentences: list[str],
    verdict: Verdict,
    gallery: Mapping[str, list[Shown]],
    provenance: Mapping[str, str],
    look: LookSection | None = None,
) -> None:
    """Write ``report.html`` and its pictures as files beside it."""
    folder.mkdir(parents=True)
    table = counted(evaluation.table)
    for case in (case for cases in gallery.values() for case in cases):
        case.write(folder)
    kinds = defect_table(table) if table["defective"].notna().any() else pd.DataFrame()
    drawn = look.drawn.rates if look is not None and look.drawn is not None else None
    page = PAGES.get_template("report.html.j2").render(
        title=", ".join(detector.class_names),
        subtitle=_subtitle(detector),
        verdict=verdict,
        which=which_rate(folder, detector, table, drawn),
        tiles=_tiles(metrics, is_estimate(detector.classes, detector.options.fpr)),
        sentences=sentences,
        histograms=_histograms(folder, detector, table),
        n_classes=len(detector.classes),
        curves=_curves(folder, detector, table, metrics),
        rates=words.rates(detector, table),
        look=look.html(folder, detector) if look is not None else "",
        kinds=kinds.to_dict("records"),
        several=len(kinds) > 0 and kinds["category"].nunique() > 1,
        good=GOOD,
        gallery=[
            {"title": title, "cases": [_case(case) for case in cases]}
            for title, cases in gallery.items()
        ],
        legend=_legend(),
        masks=words.masks(metrics, table),
        times={name: metrics[key] for key, name in _TIMES.items() if key in metrics},
        metrics=sorted(metrics.items()),
        options=sorted(detector.options.model_dump().items()),
        provenance=provenance,
        percent=percent,
    )
    # a file's name may hold bytes that are no text
    text = page.encode("utf-8", errors="xmlcharrefreplace")
    (folder / "report.html").write_bytes(text)


def _subtitle(detector: AnomalyDetector) -> str:
    options = detector.options
    return (
        f"{options.backbone}, {options.layers}, {options.score}, {options.aggregate}, "
        f"preset {options.preset}, {options.image_size} pixels"
    )


def _tiles(metrics: dict[str, float], estimated: bool) -> list[tuple[str, str, str]]:
    """Figures to see first: value, name, explanation."""
    shown = [
        ("image_auroc", "image AUROC", "", "{:.3f}".format),
        ("recall", "of the defects found", "recall", percent),
        ("false_positive_rate", "overkill", "good pictures flagged", percent),
        ("false_negative_rate", "escapes", "defects that pass", percent),
        ("drift_flagged", "flagged", "of good or unlabelled pictures", percent),
        ("pixel_aupro", "AUPRO", "of the maps", "{:.3f}".format),
        ("effective_fpr", "overkill promised", "estimated" if estimated else "at most", percent),
        ("threshold", "threshold", "of the score", "{:.4g}".format),
        ("n_train", "good pictures", "fitted", "{:.0f}".format),
    ]
    tiles = [(fmt(metrics[key]), name, note) for key, name, note, fmt in shown if key in metrics]
    return tiles[:6]


def _histograms(
    folder: Path, detector: AnomalyDetector, table: pd.DataFrame
) -> list[dict[str, object]]:
    """One for each category, whose scores are on one scale."""
    draw = Charts(folder).draw
    drawn: list[dict[str, object]] = []
    names = detector.class_names
    thresholds = detector.thresholds()
    for i, name in enumerate(names[:_MOST_HISTOGRAMS]):
        rows = figures.score_rows(detector, table, name)
        file = "scores" if len(names) == 1 else f"scores_{i + 1}"

        def paint(
            figure: Figure,
            rows: dict[str, pd.DataFrame] = rows,
            limit: float = thresholds[name],
            narrow: bool = False,
        ) -> None:
            figures.paint_scores(figure, rows, limit, narrow)

        wide = draw(file, (9.6, 1.0 + 0.45 * len(rows)), paint)
        size = (4.4, 1.1 + 0.62 * len(rows))
        narrow = draw(f"{file}_narrow", size, partial(paint, narrow=True), png=False)
        drawn.append({"name": name, "wide": Markup(wide), "narrow": Markup(narrow)})
    return drawn


def _curves(
    folder: Path, detector: AnomalyDetector, table: pd.DataFrame, metrics: dict[str, float]
) -> list[Markup]:
    wanted: dict[str, Callable[[Figure], Any]] = {}
    if "image_auroc" in metrics:
        wanted["roc"] = lambda f: curves.paint_roc(f, table, metrics)
        wanted["precision_recall"] = lambda f: curves.paint_precision_recall(f, table, metrics)
    good = table[table["label"].isin([GOOD, "unlabelled"])]
    if len(good):
        wanted["false_positive_rate"] = lambda f: curves.paint_promise(f, detector, good)
    draw = Charts(folder).draw
    return [Markup(draw(name, (3.7, 3.2), paint)) for name, paint in wanted.items()]


def _case(case: Shown) -> dict[str, object]:
    row = case.row
    return {
        "picture": data_url(case.picture),
        "marked": data_url(case.marked),
        "outlined": case.outlined,
        "own_scale": case.own_scale,
        "name": case.name,
        "path": row["path"],
        "label": row["label"],
        "predicted": row["predicted_class"] if row["predicted_class"] != row["category"] else "",
        "score": row["anomaly_score"],
        "p_value": row["p_value"],
    }


def _legend() -> str:
    """Give the colours of the maps as a CSS gradient over grey, level 0 to 255."""
    levels = np.linspace(0, 255, 33).astype(np.uint8)
    strip = tint(np.full((1, len(levels), 3), 128, dtype=np.uint8), levels[None])[0]
    stops = (f"rgb({r} {g} {b})" for r, g, b in strip)
    return f"linear-gradient(to right, {', '.join(stops)})"
