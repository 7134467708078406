"""From scored pictures to a page on which a person judges them."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient, MlflowException
from mlflow.models import Model

from dfm_mlflow.config import ReviewOptions
from dfm_mlflow.data.item import GOOD
from dfm_mlflow.data.verdicts import PictureVerdict, read_verdicts
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.jobs.review_server import ReviewServer
from dfm_mlflow.mlflow_plugin.flavor import load_model
from dfm_mlflow.mlflow_plugin.model_uri import ResolvedModel, addresses_of, resolve
from dfm_mlflow.registry.aliases import user
from dfm_mlflow.registry.runs import read_train_scores
from dfm_mlflow.report.review import WORDS, Shot, review_page, shoot
from dfm_mlflow.scores.to_review import Scores, choose, read_scores
from dfm_mlflow.storage.whole_file import whole_file
from dfm_mlflow.tracking.project import refuse_lost_output

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReviewResult:
    """What there is to judge."""

    output: str  # the page, or the address that it was served at
    model: str  # that drew the maps
    counts: dict[str, int]  # pictures on the page, by why they are shown
    megabytes: float  # of the page
    verdicts: str  # file of the verdicts

    def summary(self) -> str:
        """Say in a few lines what to do with it."""
        parts = [f"{WORDS[why]}: {n}" for why, n in self.counts.items()]
        return (
            f"{self.output} shows {sum(self.counts.values())} pictures ({'; '.join(parts)}) in "
            f"{self.megabytes:.1f} MB. Judge them by g, b and u, then teach the model what you "
            f"said:\n\n    dfm-mlflow update {self.model} --verdicts {self.verdicts}"
        )


def review(
    options: ReviewOptions, *, started: Callable[[ReviewServer], object] | None = None
) -> ReviewResult:
    """Choose pictures, draw their maps, and write the page or serve it until Ctrl-C."""
    if not options.serve:
        refuse_lost_output(options.output)
    scores = [read_scores(options.scores)]
    found = _model(options, scores[0])
    said = _said(options.verdicts)
    detector = load_model(found.uri)
    if scores[0].n_not_kept:
        _logger.info("%d scored pictures were not kept and are not shown.", scores[0].n_not_kept)
    if options.training and scores[0].kind != "training":
        scores += _training(found)
    cases = choose(scores, options.most)
    shots = shoot(detector, cases)
    if not shots:
        raise DataError(
            f"No picture of {options.scores} can be shown: look whether they are where the scores "
            "say, or give scores of others."
        )
    name = name_of(found)
    page = _page(options, name, detector, shots, said)
    counts = dict(Counter(shot.case.why for shot in shots))
    if options.serve:
        where, size = _serve(options, page, name, shots, detector, started)
    else:
        target, text = Path(options.output).expanduser(), page(None)
        with whole_file(target) as draft:
            draft.write_text(text, encoding="utf-8")
        where, size = str(target), target.stat().st_size
    return ReviewResult(where, name, counts, size / 1e6, options.verdicts)


def _model(options: ReviewOptions, scores: Scores) -> ResolvedModel:
    asked = scores.model if options.model == "auto" else options.model
    if asked is None:
        raise ConfigError(
            f"{options.scores} does not say which model gave these scores: give "
            "model=models:/NAME@ALIAS, whose maps are to be shown."
        )
    return resolve(asked)


def name_of(found: ResolvedModel) -> str:
    """Give the address of a model for the record: of the version that it is, where it is one."""
    if found.version is not None or not found.uri.startswith("models:/"):
        return found.uri
    model_id = found.uri.removeprefix("models:/")
    client = MlflowClient()
    try:
        run_id = client.get_logged_model(model_id).source_run_id
        versions = client.search_model_versions(f"run_id='{run_id}'") if run_id else []
    except MlflowException:
        return found.uri
    mine = [v for v in versions if found.uri in addresses_of(v)]
    return f"models:/{mine[0].name}/{mine[0].version}" if mine else found.uri


def _training(found: ResolvedModel) -> list[Scores]:
    """The training pictures of the model's run, where it recorded them."""
    run_id = (found.version and found.version.run_id) or Model.load(found.where).run_id
    table = read_train_scores(run_id)
    if table is None:
        _logger.info("Training pictures are not shown: the model's run recorded none.")
        return []
    return [Scores(table[table["used"].astype(bool)], "training")]


def _said(path: str) -> list[PictureVerdict]:
    return read_verdicts(path) if Path(path).expanduser().is_file() else []


def _page(
    options: ReviewOptions,
    name: str,
    detector: AnomalyDetector,
    shots: Sequence[Shot],
    said: Sequence[PictureVerdict],
) -> Callable[[str | None], str]:
    labels = [shot.case.label for shot in shots] + [v.defect for v in said]
    defects = sorted({label for label in labels if label not in ("", GOOD)})

    def page(token: str | None) -> str:
        return review_page(
            shots,
            model=name,
            who=_who(options),
            defects=defects,
            said={v.sha256: (v.verdict, v.defect) for v in said},
            categories=detector.class_names,
            verdicts=options.verdicts,
            token=token,
        )

    return page


def _who(options: ReviewOptions) -> str:
    return user() if options.who == "auto" else options.who


def _serve(
    options: ReviewOptions,
    page: Callable[[str | None], str],
    name: str,
    shots: Sequence[Shot],
    detector: AnomalyDetector,
    started: Callable[[ReviewServer], object] | None,
) -> tuple[str, int]:
    several = len(detector.class_names) > 1
    known = {
        shot.case.sha256: PictureVerdict(
            shot.case.sha256,
            "unsure",
            shot.case.path,
            category=shot.case.category if several else "",
            model=name,
        )
        for shot in shots
    }
    path = Path(os.path.abspath(Path(options.verdicts).expanduser()))
    port = 0 if options.port == "auto" else int(options.port)
    with ReviewServer(page, known, path, port) as server:
        if started is None:
            _logger.info("The page is at %s until Ctrl-C; verdicts go to %s.", server.url, path)
        else:
            started(server)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            _logger.info("Ended; the verdicts are in %s.", path)
        return server.url, len(server.page)
