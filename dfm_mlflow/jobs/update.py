"""From what people said of pictures to the next version: the same fit, on a better set."""

import logging
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.models import Model

from dfm_mlflow.config import Options, PromoteOptions, UpdateOptions
from dfm_mlflow.data.accounting import Account, used_of
from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.chosen import with_masks
from dfm_mlflow.data.folder import Naming
from dfm_mlflow.data.groups import is_list
from dfm_mlflow.data.learned import TRAIN, Learned
from dfm_mlflow.data.manifest import read_manifest
from dfm_mlflow.data.picture_list import write_rows
from dfm_mlflow.data.verdicts import PictureVerdict, read_verdicts, who_said
from dfm_mlflow.detector.anomaly_detector import DIGITS, AnomalyDetector
from dfm_mlflow.errors import ArtifactError, ConfigError, DataError, DeviceError, PromotionError
from dfm_mlflow.images.read import Look
from dfm_mlflow.jobs.learned_set import TRAINING, learned_set
from dfm_mlflow.jobs.train import Fitted, Further, TrainResult, fit_and_register
from dfm_mlflow.mlflow_plugin.flavor import load_model
from dfm_mlflow.mlflow_plugin.model_uri import ResolvedModel, addresses_of, resolve
from dfm_mlflow.mlflow_plugin.run_files import address_of
from dfm_mlflow.network.builder import cached, trained_anew
from dfm_mlflow.registry.history import as_dicts, better, history, record_of
from dfm_mlflow.registry.promote import PromoteResult, promote
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
from dfm_mlflow.tracking.experiment import AUTO
from dfm_mlflow.tracking.kept import PARENT, UPDATE
from dfm_mlflow.tracking.run import as_given, log_parameters, run_of

_MOST_NAMES = 500  # characters of those who judged, in a tag

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpdateResult:
    """What an update left behind.

    Attributes
    ----------
    trained : TrainResult
        The new model.
    parent : str
        URI of the model that was updated.
    learned : Learned
        The pictures now, and what became of those that were judged.
    changes : DataFrame
        What both models say of these: ``changes.csv`` of the run.
    sentences : list of str
        The same in words.
    promoted : PromoteResult or None
    """

    trained: TrainResult
    parent: str
    learned: Learned
    changes: pd.DataFrame
    sentences: list[str]
    promoted: PromoteResult | None = None


@dataclass(frozen=True, eq=False)
class _Parent:
    """The model that is updated."""

    found: ResolvedModel
    detector: AnomalyDetector
    name: str | None  # under which the next version is registered
    run_id: str | None

    @property
    def tag(self) -> str:
        """What the next version says of where it comes from."""
        version = self.found.version
        same = version is not None and version.name == self.name
        return str(version.version) if same and version else self.found.uri


def update(options: UpdateOptions, *, experiment: str = AUTO) -> UpdateResult:
    """Fit a model anew on its own pictures, those judged good added and those judged bad taken out.

    Every option stays as it was resolved, and the network is the model's own. The model is a
    function of the set of pictures: it is the one that training from scratch on this set gives, and
    nothing is left in it of a picture that was removed. The old version stays as it is.

    Parameters
    ----------
    options : UpdateOptions
    experiment : str
        As for :func:`~dfm_mlflow.jobs.train.train`.

    Returns
    -------
    UpdateResult

    Raises
    ------
    DfmError
        For verdicts, a model or pictures that cannot be used. Nothing is registered then.
    ConfigError
        If nothing would change.
    PromotionError
        If a gate refuses the new version, which is registered then.
    """
    _check(options)
    parent = _parent(options)
    verdicts = [] if options.verdicts == "none" else read_verdicts(options.verdicts)
    _check_model(parent, verdicts, options.verdicts)
    old = parent.detector
    learned, looks = learned_set(options, verdicts, old, parent.found, parent.run_id)
    _logger.info(learned.sentence())
    source = "-".join(filter(None, ("update", old.options.category, parent.tag.rpartition("/")[2])))
    tags = {"dfm.job": "update", "dfm.category": old.options.category, PARENT: parent.tag}
    refusal: PromotionError | None = None
    promoted = None
    with run_of(source, tags, experiment) as run:
        run_id = run.info.run_id
        log_parameters(run_id, as_given(options) | {"resolved_model": parent.found.uri})
        given = _options(options, parent, run_id)
        catalog = _catalog(given, learned, looks, address_of(run_id, TRAINING))
        extractor = trained_anew(old.extractor, given, catalog.train)
        telling = _Telling(options, parent, learned, verdicts, catalog)
        trained = fit_and_register(
            run_id, source, tags, given, catalog, extractor, old.weights, telling
        )
        if extractor.cache:
            extractor.cache.trim()
        if options.promote != "none":
            try:
                promoted = _promote(options, trained)
            except PromotionError as error:  # the run did its work, and the version is there
                refusal = error
    if refusal:
        raise refusal
    return UpdateResult(
        trained, parent.found.uri, learned, telling.changes, telling.sentences, promoted
    )


def _check(options: UpdateOptions) -> None:
    """Refuse what needs no look at the model."""
    if options.verdicts == "none" and options.remove == "none":
        raise ConfigError(
            "verdicts=none and remove=none change nothing: give a file of verdicts, or of pictures "
            "to remove."
        )
    if options.promote != "none":
        PromoteOptions.parse({"model": "any", "version": "1", "alias": options.promote})


def _parent(options: UpdateOptions) -> _Parent:
    found = resolve(options.model)
    detector = load_model(found.uri)
    asked = torch.device(detector.options.device).type
    if detector.extractor.device.type != asked:
        try:  # features of another device are not the same to the last bit
            detector = load_model(found.uri, device=asked)
        except DeviceError:
            _logger.warning(
                "The model was fitted on %s, which is not here: features are computed on %s and "
                "differ in their last digits.",
                asked,
                detector.extractor.device.type,
            )
    name = found.version.name if found.version else detector.options.model_name
    if options.registered_model != "auto":
        name = None if options.registered_model == "none" else options.registered_model
    run_id = found.version.run_id if found.version else None
    if run_id is None:
        run_id = Model.load(found.where).run_id
    if options.promote != "none" and not name:
        raise ConfigError(
            f"promote={options.promote} needs a registered model, and {options.model} has no name: "
            "give registered_model=<name>."
        )
    return _Parent(found, detector, name, run_id)


def _check_model(parent: _Parent, verdicts: list[PictureVerdict], address: str) -> None:
    """Refuse verdicts on the scores of another model; those on other versions of it are welcome."""
    named = {v.model for v in verdicts if v.model}
    if not named:
        return
    version = parent.found.version
    names = {parent.found.uri, parent.found.where}
    if version is not None:
        every = MlflowClient().search_model_versions(f"name='{version.name}'")
        names |= {version.name}.union(*map(addresses_of, every))
    others = sorted(named - names)
    if others:
        raise DataError(
            f"{address} holds verdicts on pictures that {others[0]} scored, and {parent.found.uri} "
            "is to be updated: give verdicts on its own scores, or remove the column model."
        )


def _options(options: UpdateOptions, parent: _Parent, run_id: str) -> Options:
    """Give the options of the model, on the list that this run is going to hold."""
    old = parent.detector
    group_by = old.options.group_by
    if is_list(group_by):
        _logger.info(
            "The groups of group_by=%s are carried on by the list of pictures; new pictures belong "
            "to none.",
            group_by,
        )
        group_by = "none"
    return old.options.model_copy(
        update={
            "data": address_of(run_id, TRAINING),
            "exclude": "none",  # the list says which are left out
            "group_by": group_by,
            "registered_model": parent.name or "none",
            "engine": "local",
            "device": str(old.extractor.device),
            "precision": old.extractor.precision,
        }
    )


def _catalog(options: Options, learned: Learned, looks: dict[str, Look], source: str) -> Catalog:
    """Read the new list as a training reads it."""
    naming = Naming.of(options.good, options.bad, options.masks)
    with tempfile.TemporaryDirectory(prefix="dfm-update-") as folder:
        path = Path(folder, TRAINING)
        write_rows(learned.rows, path)
        items = tuple(read_manifest(str(path), options.categories, naming.good, naming.bad))
    name = ",".join(options.categories)
    account = Account(used_of(name, items, f"{TRAINING} of this run"))
    catalog = with_masks(Catalog(name, source, items, account), options.max_pixels)
    account.log(_logger)
    catalog.note({path: looks[path] for path in map(str, (i.path for i in items)) if path in looks})
    return catalog


class _Telling:
    """Holds the new model against the old one, once it is fitted and before anything is logged."""

    def __init__(
        self,
        options: UpdateOptions,
        parent: _Parent,
        learned: Learned,
        verdicts: list[PictureVerdict],
        catalog: Catalog,
    ):
        self._options, self._parent, self._learned = options, parent, learned
        self._verdicts, self._catalog = verdicts, catalog
        self.changes, self.sentences = pd.DataFrame(), [""]

    def __call__(self, fitted: Fitted) -> Further:
        contents, old = self._catalog.contents, self._parent.detector
        known = old.with_extractor(cached(old.extractor, old.options))
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


def _promote(options: UpdateOptions, trained: TrainResult) -> PromoteResult:
    given = {"model": trained.detector.options.model_name, "version": trained.registered_version}
    given |= {"alias": options.promote, "reason": options.reason} | options.gates
    return promote(PromoteOptions.parse(given))
