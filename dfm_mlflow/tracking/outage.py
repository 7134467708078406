"""A tracking server or artifact store that fails: one sentence, and results that stay."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import mlflow
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException, RestException

from dfm_mlflow.errors import DfmError, TrackingError

_MOST_WORDS = 300  # of a server's own message; some hold whole pages

_PAGE = re.compile(r"<!doctype html|<html", re.I)

_logger = logging.getLogger(__name__)


def outage(error: BaseException, then: str = "then run the command again") -> TrackingError | None:
    """Say in a sentence that the server or the store failed."""
    # Loaded by whoever raised such an error, and slow to load for everybody else.
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, DfmError):  # its sentence is said already, whatever caused it
        return error if isinstance(error, TrackingError) else None
    if isinstance(error, (Boto3Error, BotoCoreError, ClientError)):
        return TrackingError(
            f"The artifact store of {server()} failed ({_words(error)}): check AWS_ENDPOINT_URL, "
            f"the credentials and the bucket; {then}."
        )
    refused = _refused(error)
    if refused:
        return TrackingError(f"{refused}; {then}.")
    answered = isinstance(error, RestException) and (
        # a database that goes away within a transaction can be a bad request to MLflow
        error.get_http_status_code() >= 500 or "sqlalche.me" in str(error)
    )
    if answered or any(isinstance(e, (RequestException, SQLAlchemyError)) for e in _chain(error)):
        return TrackingError(
            f"The tracking server {server()} failed ({_words(error)}): look whether it and its "
            f"database run; {then}."
        )
    return None


def refusal(error: BaseException) -> TrackingError | None:
    """Say in a sentence that MLflow failed or refuses; None if `error` is something else."""
    found = outage(error) or _deleted(error)
    if found is None and isinstance(error, MlflowException):
        return TrackingError(
            f"MLflow refuses ({error.error_code}, {_words(error)}): check MLFLOW_TRACKING_URI, the "
            "names that were given, and permissions."
        )
    return found


def _refused(error: BaseException) -> str | None:
    """Say who does not let whom in, or that somebody else answers."""
    status = _status(error)
    if status in (401, 403):
        why = "does not know who asks" if status == 401 else "does not let this user do that"
        return (
            f"The tracking server {server()}{_registry()} {why} ({status}, {_words(error)}): set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to "
            "those of a user who may"
        )
    if isinstance(error, MlflowException) and _PAGE.search(str(error)):
        return (
            f"No MLflow server answers at {server()}{_registry()}: it sends a page of HTML, as a "
            "login page or another program does; correct MLFLOW_TRACKING_URI, or sign in"
        )
    return None


def _status(error: BaseException) -> int | None:
    """HTTP status of a refusal; None where there was none."""
    from requests import HTTPError

    for one in _chain(error):
        if isinstance(one, HTTPError) and one.response is not None:
            return int(one.response.status_code)
        if isinstance(one, RestException):
            return int(one.get_http_status_code())
        if isinstance(one, MlflowException):
            found = re.search(r"failed with error code (\d{3})", str(one))
            return int(found[1]) if found else None
    return None


def _deleted(error: BaseException) -> TrackingError | None:
    """Say how a deleted experiment comes back."""
    if not isinstance(error, MlflowException):
        return None
    found = re.search(
        r"deleted experiment (?P<name>'[^']*'|\"[^\"]*\")|"
        r"experiment (?P<id>\S+) must be in the 'active' state. Current state is deleted",
        str(error),
    )
    if found is None:
        return None
    client, name, number = mlflow.MlflowClient(), found["name"], found["id"] or "<id>"
    try:
        if name is None:
            name = client.get_experiment(number).name
        elif experiment := client.get_experiment_by_name(name[1:-1]):
            number = experiment.experiment_id
    except MlflowException:  # what is known is enough
        _logger.debug("The deleted experiment cannot be looked up", exc_info=True)
    return TrackingError(
        f"The experiment {(name or number).strip(chr(39) + chr(34))} is deleted: `mlflow "
        f"experiments restore --experiment-id {number}` brings it back, or name another one in "
        "MLFLOW_EXPERIMENT_NAME."
    )


@contextmanager
def outages_as_errors() -> Iterator[None]:
    """Raise a failure of the server or the store as one sentence."""
    try:
        yield
    except Exception as error:
        found = outage(error)
        if found is None or found is error:
            raise
        raise found from error


def end_failed(run: mlflow.ActiveRun) -> None:
    """Mark `run`, if it is the active one, as failed, should the server answer at once.

    The server had its time already.
    """
    active = mlflow.active_run()
    if active is None or active.info.run_id != run.info.run_id:
        return
    before = os.environ.get(MLFLOW_HTTP_REQUEST_MAX_RETRIES.name)
    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(1)
    try:
        mlflow.end_run("FAILED")
    except Exception as error:
        _logger.debug("Run %s stays RUNNING: %s", run.info.run_id, error)
    finally:
        MLFLOW_HTTP_REQUEST_MAX_RETRIES.unset()
        if before is not None:
            os.environ[MLFLOW_HTTP_REQUEST_MAX_RETRIES.name] = before


def server() -> str:
    """Address of the tracking server, without a password."""
    return _shown(mlflow.get_tracking_uri())


def _registry() -> str:
    """Name the registry, too, where it is another server."""
    registry = mlflow.get_registry_uri()
    return "" if registry == mlflow.get_tracking_uri() else f" or the registry {_shown(registry)}"


def _shown(address: str) -> str:
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return urlunsplit(parts)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _words(error: BaseException) -> str:
    """First line of the innermost error, which says what is the matter."""
    *_, first = _chain(error)
    line = next(iter(str(first).strip().splitlines()), "") or type(first).__name__
    return line if len(line) <= _MOST_WORDS else f"{line[:_MOST_WORDS]}..."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Give an error, and those that led to it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
