"""The history of a registered model as one page: figures over versions, and the verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

from dfm_mlflow.report.pages import PAGES

_WIDTH, _HEIGHT, _EDGE = 320, 110, 14
_CHARTS = (
    ("recall", "Recall", "{:.3f}"),
    ("false_alarms", "False alarms", "{:.3f}"),
    ("threshold", "Threshold", "{:.4g}"),
    ("n_train", "Training pictures", "{:.0f}"),
)


def history_page(name: str, records: Sequence[Mapping[str, Any]], sentence: str) -> str:
    """Write a page that needs nothing else."""
    charts = [
        {"title": title, **chart}
        for key, title, form in _CHARTS
        if (chart := _chart(records, key, form))
    ]
    return PAGES.get_template("history.html.j2").render(
        figure=_figure,
        name=name,
        records=records,
        sentence=sentence,
        charts=charts,
        width=_WIDTH,
        height=_HEIGHT,
        legend=_legend(records),
    )


def _figure(value: object) -> str:
    if value is None:
        return "\u2013"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _chart(records: Sequence[Mapping[str, Any]], key: str, form: str) -> dict[str, Any] | None:
    """Places of a line through the versions that know a figure; None where fewer than one does."""
    known = [(i, float(r[key])) for i, r in enumerate(records) if r[key] is not None]
    if not known:
        return None
    low, high = min(v for _, v in known), max(v for _, v in known)
    span, step = high - low or 1.0, max(1, len(records) - 1)
    inner = _WIDTH - 2 * _EDGE, _HEIGHT - 4 * _EDGE
    dots = []
    for i, value in known:
        x = _EDGE + inner[0] * i / step
        y = 2.5 * _EDGE + inner[1] * (1 - (value - low) / span)
        dots.append({"x": f"{x:.1f}", "y": f"{y:.1f}", "text": form.format(value),
                     "version": records[i]["version"]})  # fmt: skip
    ends = {0, len(dots) - 1} if len(dots) > 6 else set(range(len(dots)))
    for i, dot in enumerate(dots):
        dot["shown"] = i in ends
    return {"dots": dots, "line": " ".join(f"{d['x']},{d['y']}" for d in dots)}


def _legend(records: Sequence[Mapping[str, Any]]) -> str:
    said = [r for r in records if r["good"] is not None or r["bad"] is not None]
    if not said:
        return "No version was made from verdicts yet."
    good, bad, unsure = (sum(r[k] or 0 for r in said) for k in ("good", "bad", "unsure"))
    updates = "1 update" if len(said) == 1 else f"{len(said)} updates"
    return (
        f"{updates} learned from {good + bad + unsure} verdicts: {good} good, {bad} bad, {unsure} "
        "unsure."
    )
