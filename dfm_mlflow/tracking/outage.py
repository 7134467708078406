"""A tracking server or artifact store that fails: one sentence, and results that stay."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import mlflow
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException, RestException

from dfm_mlflow.errors import DfmError, TrackingError

_MOST_WORDS = 300  # of a server's own message; some hold whole pages

_logger = logging.getLogger(__name__)


def outage(error: BaseException, then: str = "then run the command again") -> TrackingError | None:
    """Say in a sentence that the server or the store failed.

    Parameters
    ----------
    error : BaseException
    then : str
        What to do when they run again.

    Returns
    -------
    TrackingError or None
        None if `error` is something else.
    """
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
    found = outage(error)
    if found is None and isinstance(error, MlflowException):
        return TrackingError(
            f"MLflow refuses ({error.error_code}, {_words(error)}): check MLFLOW_TRACKING_URI, the "
            "names that were given, and permissions."
        )
    return found


@contextmanager
def outages_in_words() -> Iterator[None]:
    """Raise a failure of the server or the store as one sentence.

    Raises
    ------
    TrackingError
    """
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
    parts = urlsplit(mlflow.get_tracking_uri())
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
