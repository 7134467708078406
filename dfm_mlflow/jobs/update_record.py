"""What an update says of itself: what each verdict changed, figures, tags, and the history."""

import logging
from dataclasses import dataclass
from datetime import datetime, timezone

import pandas as pd

from dfm_mlflow.config import UpdateOptions
from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.learned import TRAIN, Learned
from dfm_mlflow.data.verdicts import PictureVerdict, who_said
from dfm_mlflow.detector.anomaly_detector import DIGITS, AnomalyDetector
from dfm_mlflow.errors import ArtifactError
from dfm_mlflow.jobs.train import Fitted, Further
from dfm_mlflow.mlflow_plugin.model_uri import ResolvedModel
from dfm_mlflow.network.builder import cache_of
from dfm_mlflow.registry.history import as_dicts, better, history, record_of
from dfm_mlflow.registry.runs import read_train_scores
from dfm_mlflow.report.history import history_page
from dfm_mlflow.scores.before_after import compare_models
from dfm_mlflow.scores.evaluation import image_metrics, score_items
from dfm_mlflow.scores.verdict_changes import (
    Said,
    change_table,
    changes_sentence,
    hard_ones_sentence,
    said_of_scored,
    said_while_held_out,
)
from dfm_mlflow.storage import store
from dfm_mlflow.tracking.lineage import PARENT, UPDATE

_MOST_NAMES = 500  # characters of those who judged, in a tag

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Parent:
    """The model that is updated."""

    found: ResolvedModel  # where it is
    detector: AnomalyDetector
    name: str | None  # under which the next version is registered
    run_id: str | None  # of the run that made it

    @property
    def tag(self) -> str:
        """What the next version says of where it comes from."""
        version = self.found.version
        same = version is not None and version.name == self.name
        return str(version.version) if same and version else self.found.uri


class Telling:
    """Holds the new model against the old one, once it is fitted and before anything is logged."""

    def __init__(
        self,
        options: UpdateOptions,
        parent: Parent,
        learned: Learned,
        verdicts: list[PictureVerdict],
        catalog: Catalog,
    ):
        self._options, self._parent, self._learned = options, parent, learned
        self._verdicts, self._catalog = verdicts, catalog
        self.changes, self.sentences = pd.DataFrame(), [""]

    def __call__(self, fitted: Fitted) -> Further:
        """Say what changed in sentences and metrics of `fitted`; gives tags and files."""
        contents, old = self._catalog.contents, self._parent.detector
        known = old.with_extractor(old.extractor.with_cache(cache_of(old.options)))
        tested = score_items(known, self._catalog.test).table
        now = fitted.evaluation.table
        if "left_out" in now:
            tested = tested.assign(left_out=now["left_out"])
        self.changes = change_table(
            self._learned.changes,
            self._before(known, tested, contents),
            _by_content(
                said_of_scored(now) | said_while_held_out(fitted.detector, fitted.look.scores),
                contents,
            ),
        )
        sentence, figures = compare_models("The new model", old, fitted.detector, tested, now)
        n_calibrated = min(len(c.calibration.scores) for c in old.classes)
        hard = hard_ones_sentence(self.changes, n_calibrated)
        said = [self._learned.sentence(), changes_sentence(self.changes), sentence, hard]
        self.sentences = [text for text in said if text]
        fitted.sentences.extend(self.sentences)
        for text in self.sentences[1:]:
            _logger.log(logging.WARNING if text == hard else logging.INFO, text)
        fitted.metrics.update(figures | self._figures(tested))
        tags = self._tags()
        files = {
            "changes.csv": self.changes.to_csv(index=False),
            "report/history.html": self._page(fitted.metrics, tags),
        }
        if self._options.verdicts != "none":
            files["verdicts.csv"] = store.read_address(self._options.verdicts).decode("utf-8-sig")
        return Further(tags, files)

    def _before(
        self, old: AnomalyDetector, tested: pd.DataFrame, contents: dict[str, str]
    ) -> dict[str, Said]:
        """What the old model says of test pictures, and of those that were judged good."""
        judged = {c.sha256 for c in self._learned.changes if c.after == TRAIN}
        joined = [i for i in self._catalog.train if contents[str(i.path)] in judged]
        inside = frozenset(p for p, digest in contents.items() if digest[:DIGITS] in old.fitted)
        tables = [tested, *([score_items(old, joined).table] if joined else [])]
        said: dict[str, Said] = {}
        for table in tables:
            said |= _by_content(said_of_scored(table, inside), contents)
        scores = read_train_scores(self._parent.run_id)
        held_out = {} if scores is None else said_while_held_out(old, scores, by="sha256")
        return said | {d: held_out[d] for d, s in said.items() if not s.held_out and d in held_out}

    def _figures(self, tested: pd.DataFrame) -> dict[str, float]:
        before, learned = image_metrics(tested), self._learned
        said = learned.n_said
        figures = {
            f"{name}_before": before[name]
            for name in ("recall", "false_positive_rate", "image_auroc")
            if name in before
        }
        return figures | {
            "threshold_before": max(self._parent.detector.thresholds().values()),
            "n_verdicts_good": float(said["good"]),
            "n_verdicts_bad": float(said["bad"]),
            "n_verdicts_unsure": float(learned.n_unsure),
            "n_joined_training": float(learned.count(after=TRAIN)),
            "n_left_training": float(learned.count(before=TRAIN)),
        }

    def _tags(self) -> dict[str, str]:
        learned, said = self._learned, self._learned.n_said
        counts = {
            "good": said["good"],
            "bad": said["bad"],
            "unsure": learned.n_unsure,
            "added": learned.count(after=TRAIN),
            "removed": learned.count(before=TRAIN),
        }
        return {
            PARENT: self._parent.tag,
            **{f"{UPDATE}{name}": str(n) for name, n in counts.items()},
            f"{UPDATE}by": who_said(self._verdicts)[:_MOST_NAMES],
            f"{UPDATE}reason": self._options.reason,
        }

    def _page(self, metrics: dict[str, float], tags: dict[str, str]) -> str:
        name = self._parent.name
        try:
            records = history(name) if name else []
        except ArtifactError:  # the first version under another name
            records = []
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        records = [*records, record_of("new", at, [], metrics, tags)]
        return history_page(name or self._catalog.name, as_dicts(records), better(records))


def _by_content(said: dict[str, Said], contents: dict[str, str]) -> dict[str, Said]:
    return {contents[path]: one for path, one in said.items() if path in contents}
