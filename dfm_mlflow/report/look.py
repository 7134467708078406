"""The report's section on the training pictures: which to look at, and why."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.held_out import HeldOutScores
from dfm_mlflow.errors import DfmError
from dfm_mlflow.report.gallery import Shown, draw_case
from dfm_mlflow.report.pages import PAGES
from dfm_mlflow.report.thumbnail import data_url
from dfm_mlflow.scores.training import Odd, TrainingLook
from dfm_mlflow.scores.verdict import percent
from dfm_mlflow.tuning.drawn import SyntheticRecall
from dfm_mlflow.tuning.synthetic import SIZES, STRENGTHS

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LookSection:
    """What a report says of the training pictures."""

    look: TrainingLook
    held_out: HeldOutScores  # with the maps of the pictures to look at
    drawn: SyntheticRecall | None = None  # where there are no test pictures

    def html(self, folder: Path, detector: AnomalyDetector) -> Markup:
        """Write the overlays into a folder, and give the section."""
        several = len(detector.class_names) > 1
        thresholds = {t.path for t in self.look.thresholds if t.setter.apart}
        return Markup(
            PAGES.get_template("look.html.j2").render(
                sentences=[t.sentence(several) for t in self.look.thresholds],
                copies=_lines(self.look),
                odd=self._cases(self.look.odd, folder, detector),
                typical=[]
                if self.drawn is None
                else self._cases(self.look.typical, folder, detector),
                setters=thresholds,
                lines=[odd.path for odd in self.look.odd],
                near=self.look.groups.to_csv(index=False).strip() if len(self.look.groups) else "",
                excluded=self.look.pictures.loc[
                    self.look.pictures["excluded"] != "", ["path", "excluded"]
                ].to_dict("records"),
                n_used=int(self.look.scores["used"].sum()),
                drawn=self.drawn,
                table=_recall_table(self.drawn),
                several=several,
            )
        )

    def _cases(
        self, odd: Sequence[Odd], folder: Path, detector: AnomalyDetector
    ) -> list[dict[str, object]]:
        cases = []
        for one in odd:
            values = self.held_out.maps.get(one.place)
            if values is None:  # far away on an executor: it is no odd one
                continue
            row = pd.Series(
                {"path": one.path, "label": "training", "predicted_class": one.category},
                name=one.place,
            )
            try:
                shown = draw_case(detector, row, values)
            except (DfmError, OSError) as error:  # it was there a minute ago
                _logger.warning("%s is not in the report: %s", one.path, error)
                continue
            shown.write(folder)
            cases.append(_case(one, shown))
        return cases


def _case(one: Odd, shown: Shown) -> dict[str, object]:
    return {
        "picture": data_url(shown.picture),
        "marked": data_url(shown.marked),
        "name": shown.name,
        "path": one.path,
        "category": one.category,
        "score": one.score,
        "p_value": one.p_value,
        "why": one.why,
        "own_scale": shown.own_scale,
    }


def _lines(look: TrainingLook) -> list[str]:
    """Copies in words, one a line."""
    lines = [
        f"{path} is left out of the metrics: {why}" for path, why in look.copies.left_out.items()
    ]
    lines += [
        f"{path} has the bytes of {other}"
        for path, other in look.copies.of.items()
        if path not in look.copies.left_out
    ]
    lines += [f"{path} nearly equals {other}" for path, other in look.near.of.items()]
    lines += [
        f"the test picture {path} nearly equals the training picture {other}"
        for path, other in look.near.in_test.items()
    ]
    return lines


def _recall_table(drawn: SyntheticRecall | None) -> list[dict[str, object]]:
    if drawn is None:
        return []
    rows: list[dict[str, object]] = []
    for size in SIZES:
        cells = []
        for strength in STRENGTHS:
            found, n = drawn.of(size, strength)
            cells.append(f"{found} of {n} ({percent(found / n)})" if n else "")
        rows.append({"size": size, "cells": cells})
    return rows
