"""Aliases of registered models: who moved them, when and why, and the way back.

MLflow can only overwrite an alias, so two promotions could both believe that they won. Each one
therefore writes its claim into a tag of the registered model, looks whether the alias is still
what it was, sets it, and looks whether the claim is still its own. Of two that both find the alias
unchanged, the first to claim finds the other's claim in the end: at most one is told that it won
(the argument is that of Lamport, A Fast Mutual Exclusion Algorithm, 1987).
"""

import getpass
import logging
import os
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from mlflow import MlflowClient, MlflowException
from mlflow.entities.model_registry import ModelVersion

from dfm_mlflow.errors import PromotionError

NONE = "none"  # no previous version, no reason
STAGES = {"staging": "Staging", "production": "Production"}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Move:
    """An alias, and where it is meant to go.

    Attributes
    ----------
    model, alias : str
    before : str or None
        Version that held the alias when this was decided.
    version : str
        Version that is to hold it.
    id : str
        No other move has it.
    """

    model: str
    alias: str
    before: str | None
    version: str
    id: str

    @classmethod
    def plan(cls, model: str, alias: str, before: str | None, version: str) -> "Move":
        """Plan a move under a new id.

        Parameters
        ----------
        model, alias : str
        before : str or None
            Version that holds the alias now.
        version : str
            Version that is to hold it.

        Returns
        -------
        Move
        """
        return cls(model, alias, before, version, uuid.uuid4().hex)

    @property
    def claim(self) -> str:
        """Key of the tag of the registered model that holds the last claim."""
        return f"dfm.promotion.{self.alias}.claim"


def holder(client: MlflowClient, model: str, alias: str) -> str | None:
    """Version that an alias points to, or None."""
    try:
        aliases = client.get_registered_model(model).aliases
    except MlflowException as error:
        raise PromotionError(
            f"The registered model {model} cannot be read ({error.error_code}): give the name of "
            "one, such as dfm-bottle, and check MLFLOW_TRACKING_URI."
        ) from None
    return str(aliases[alias]) if alias in aliases else None


def version_of(client: MlflowClient, model: str, version: str) -> ModelVersion:
    """Look up a version of a registered model."""
    try:
        return client.get_model_version(model, version)
    except MlflowException as error:
        raise PromotionError(
            f"{model} has no version {version} that can be read ({error.error_code}): give the "
            "number of one that is registered."
        ) from None


def make_move(client: MlflowClient, move: Move, tags: Mapping[str, Mapping[str, str]]) -> None:
    """Move an alias and tag versions, unless another promotion was faster."""
    _check_unchanged(client, move)  # most collisions end here, and leave no claim behind
    try:
        client.set_registered_model_tag(move.model, move.claim, move.id)
        _check_unchanged(client, move)
        # Before the alias: a process that dies between the two leaves a way back.
        for version, texts in tags.items():
            for key, value in texts.items():
                client.set_model_version_tag(move.model, version, key, value)
    except MlflowException as error:  # a database refuses two at once, too
        raise PromotionError(
            f"The registry refuses to tag {move.model} ({error.error_code}), and nothing was moved "
            "here: somebody else may be promoting, so look and try again, or check permissions."
        ) from None
    refusal = _set_alias(client, move)
    try:
        found = client.get_registered_model(move.model)
    except MlflowException as error:
        raise PromotionError(
            f"The registry cannot be read ({error.error_code}) after {move.alias} of {move.model} "
            f"was set to version {move.version}: look whether it points there."
        ) from None
    now = str(found.aliases[move.alias]) if move.alias in found.aliases else None
    if now == move.version and found.tags.get(move.claim) == move.id:
        _set_stage(client, move, found.aliases)
        return
    _mark_contested(client, move)
    if refusal and now == move.before:
        raise PromotionError(
            f"The registry refuses to let {move.alias} of {move.model} point to version "
            f"{move.version} ({refusal}), and nothing was moved here: it points to {_named(now)} "
            "still; check permissions."
        )
    raise PromotionError(
        f"Another promotion of {move.model} to {move.alias} ran at the same moment: {move.alias} "
        f"points to {_named(now)} now, and version {move.version} was to have it; wait for the "
        "other to end, look, and promote again what should be there."
    )


def _mark_contested(client: MlflowClient, move: Move) -> None:
    key = f"dfm.promotion.{move.alias}.contested"
    try:
        client.set_model_version_tag(move.model, move.version, key, move.id)
    except MlflowException as error:
        _logger.warning("The tag %s cannot be set (%s).", key, error.error_code)


def _set_alias(client: MlflowClient, move: Move) -> str:
    """Set the alias; gives why the server refused, or nothing."""
    try:
        client.set_registered_model_alias(move.model, move.alias, move.version)
    except MlflowException as error:  # a database refuses when two insert the same alias at once
        code: str = error.error_code
        return code
    return ""


def _check_unchanged(client: MlflowClient, move: Move) -> None:
    now = holder(client, move.model, move.alias)
    if now != move.before:
        raise PromotionError(
            f"{move.alias} of {move.model} pointed to {_named(move.before)} when this began and "
            f"points to {_named(now)} now: somebody else moved it, nothing was moved here; look "
            "and try again."
        )


def _set_stage(client: MlflowClient, move: Move, aliases: Mapping[str, str]) -> None:
    """Set the stage of the same name, for readers of ``models:/<name>/Production``."""
    stage = STAGES.get(move.alias)
    if stage is None:
        return
    if move.alias == "staging" and str(aliases.get("production")) == move.version:
        return  # a version has one stage, and this one is in production
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            client.transition_model_version_stage(
                move.model, move.version, stage, archive_existing_versions=True
            )
    except MlflowException as error:
        _logger.warning("The server sets no stage (%s); the alias is set.", error.error_code)


def rollback(model: str, alias: str, reason: str = NONE) -> Move:
    """Return an alias to the version that held it before the last promotion.

    Parameters
    ----------
    model : str
        Registered model.
    alias : str
    reason : str
        For the record.

    Returns
    -------
    Move
        The move that was made.

    Raises
    ------
    PromotionError
        If there is nothing to return to, or the alias moves at the same time.
    """
    client = MlflowClient()
    now = holder(client, model, alias)
    if now is None:
        raise PromotionError(
            f"No version of {model} holds {alias}, so there is nothing to return from: promote one."
        )
    previous = version_of(client, model, now).tags.get(f"dfm.promotion.{alias}.previous", NONE)
    if previous == NONE:
        raise PromotionError(
            f"Nothing is known to have held {alias} of {model} before version {now}: promote the "
            "version that should hold it."
        )
    try:
        version_of(client, model, previous)
    except PromotionError:
        raise PromotionError(
            f"Version {previous} of {model} held {alias} before version {now}, and it is gone: "
            "promote another one."
        ) from None
    move = Move.plan(model, alias, now, previous)
    prefix = f"dfm.rollback.{alias}"
    tags = {
        f"{prefix}.by": user(),
        f"{prefix}.at": utc_now(),
        f"{prefix}.reason": reason,
        f"{prefix}.from": now,
        f"{prefix}.to": previous,
        f"{prefix}.id": move.id,
    }
    make_move(client, move, {now: tags, previous: tags})
    return move


def user() -> str:
    """Name of who is at work: of the tracking server's account, else of the machine's."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "unknown"


def utc_now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _named(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"
