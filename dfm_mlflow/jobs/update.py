"""From what people said of pictures to the next version: the same fit, on a better set."""

import logging
import tempfile
from dataclasses import dataclass
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
from dfm_mlflow.data.learned import Learned
from dfm_mlflow.data.manifest import read_manifest
from dfm_mlflow.data.picture_list import write_rows
from dfm_mlflow.data.verdicts import PictureVerdict, read_verdicts
from dfm_mlflow.errors import ConfigError, DataError, DeviceError, PromotionError
from dfm_mlflow.images.read import Look
from dfm_mlflow.jobs.learned_set import TRAINING, learned_set
from dfm_mlflow.jobs.train import TrainResult, fit_and_register
from dfm_mlflow.jobs.update_record import Parent, Telling
from dfm_mlflow.mlflow_plugin.flavor import load_model
from dfm_mlflow.mlflow_plugin.model_uri import addresses_of, resolve
from dfm_mlflow.mlflow_plugin.run_files import address_of
from dfm_mlflow.network.builder import for_new_pictures
from dfm_mlflow.registry.promote import PromoteResult, promote
from dfm_mlflow.tracking.experiment import AUTO
from dfm_mlflow.tracking.lineage import PARENT
from dfm_mlflow.tracking.run import as_given, log_parameters, run_of

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


def update(options: UpdateOptions, *, experiment: str = AUTO) -> UpdateResult:
    """Fit a model again on its own pictures, with those judged good and without those judged bad.

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
        extractor = for_new_pictures(old.extractor, given, catalog.train)
        telling = Telling(options, parent, learned, verdicts, catalog)
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


def _parent(options: UpdateOptions) -> Parent:
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
    return Parent(found, detector, name, run_id)


def _check_model(parent: Parent, verdicts: list[PictureVerdict], address: str) -> None:
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


def _options(options: UpdateOptions, parent: Parent, run_id: str) -> Options:
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


def _promote(options: UpdateOptions, trained: TrainResult) -> PromoteResult:
    given = {"model": trained.detector.options.model_name, "version": trained.registered_version}
    given |= {"alias": options.promote, "reason": options.reason} | options.gates
    return promote(PromoteOptions.parse(given))
