"""What the package asks of a store: list, look up, read, write. The only place that knows boto3.

Importing this module imports boto3, so `storage` does it when the first ``s3://`` address appears.
Credentials, region and endpoint come from boto3's own chain (``AWS_*`` variables, profiles, roles)
and from nowhere else.
"""

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import boto3
import urllib3
from botocore import exceptions as boto
from botocore.config import Config

from dfm_mlflow.errors import DataError

READERS = 32  # requests under way at once; a store answers each slowly and many at a time
TRIES = 6  # of one request, and of one body that breaks without a new byte
PART = 8 * 1024**2  # an object larger than this is read in parallel ranges
_CHUNK = 64 * 1024  # what is lost when a connection breaks

_clients: dict[Any, Any] = {}
_lock = threading.Lock()


def list_folder(
    bucket: str, prefix: str, *, recursive: bool = False
) -> tuple[list[tuple[str, str, int]], list[str]]:
    """List what lies under a prefix."""
    objects: list[tuple[str, str, int]] = []
    folders: list[str] = []
    one_level = {} if recursive else {"Delimiter": "/"}
    with _as_data_error(f"s3://{bucket}/{prefix}"):
        pages = _client().get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix, **one_level):
            folders += [p["Prefix"] for p in page.get("CommonPrefixes", ())]
            objects += [
                (o["Key"], o["ETag"].strip('"'), o["Size"])
                for o in page.get("Contents", ())
                if not o["Key"].endswith("/")  # a browser's mark of an empty folder
            ]
    return objects, folders


def list_dated(bucket: str, prefix: str) -> list[tuple[str, int, float]]:
    """List everything below a prefix with the time at which it was written."""
    with _as_data_error(f"s3://{bucket}/{prefix}"):
        pages = _client().get_paginator("list_objects_v2")
        return [
            (o["Key"], o["Size"], o["LastModified"].timestamp())
            for page in pages.paginate(Bucket=bucket, Prefix=prefix)
            for o in page.get("Contents", ())
            if not o["Key"].endswith("/")
        ]


def look_up(bucket: str, key: str) -> tuple[str, int]:
    """ETag and size in bytes of the object `key` in a `bucket`."""
    with _as_data_error(f"s3://{bucket}/{key}"):
        found = _client().head_object(Bucket=bucket, Key=key)
        return found["ETag"].strip('"'), found["ContentLength"]


def download(bucket: str, key: str, etag: str, size: int) -> bytes:
    """Read one object, in parallel ranges where it is large."""
    ranges = [(start, min(start + PART, size)) for start in range(0, size, PART)]
    if len(ranges) <= 1:
        return b"".join(_read_range(bucket, key, etag, *r) for r in ranges)
    with ThreadPoolExecutor(min(len(ranges), 8)) as pool:
        return b"".join(pool.map(lambda r: _read_range(bucket, key, etag, *r), ranges))


def upload(bucket: str, key: str, data: bytes) -> None:
    """Write one object, whole or not at all."""
    with _as_data_error(f"s3://{bucket}/{key}", written=True):
        _client().put_object(Bucket=bucket, Key=key, Body=data)


def delete(bucket: str, key: str) -> None:
    """Remove the object `key` of a `bucket`, if it is there."""
    with _as_data_error(f"s3://{bucket}/{key}", written=True):
        _client().delete_object(Bucket=bucket, Key=key)


def endpoint() -> str:
    """Address of the store, so that two stores with one bucket name are told apart."""
    with _as_data_error("The S3 store"):
        return str(_client().meta.endpoint_url)


def _read_range(bucket: str, key: str, etag: str, start: int, stop: int) -> bytes:
    """Read from `start` up to `stop`; a broken body goes on from the byte where it broke."""
    uri = f"s3://{bucket}/{key}"
    data = bytearray()
    failures = 0
    while True:
        before, why = len(data), "the connection was closed early"
        try:
            for chunk in _open(bucket, key, etag, start + len(data), stop):
                data += chunk
        except (boto.BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
            why = type(error).__name__
        if len(data) == stop - start:
            return bytes(data)
        failures = 1 if len(data) > before else failures + 1
        if failures == TRIES:
            raise DataError(
                f"{uri} breaks off at byte {start + len(data)} of its reading, {TRIES} times in a "
                f"row ({why}): check the network and the store."
            )
        # Jittered, so that many readers of one ailing store do not come back together.
        time.sleep(random.uniform(0.5, 1) * min(0.1 * 2**failures, 5))


def _open(bucket: str, key: str, etag: str, start: int, stop: int) -> Iterator[bytes]:
    uri = f"s3://{bucket}/{key}"
    with _as_data_error(uri, listed=True):  # boto3 has tried again where that helps
        answer = _client().get_object(
            Bucket=bucket, Key=key, IfMatch=f'"{etag}"', Range=f"bytes={start}-{stop - 1}"
        )
    if answer["ETag"].strip('"') != etag:  # a store that does not know If-Match
        raise _changed(uri)
    if answer["ContentLength"] != stop - start:
        raise DataError(
            f"{uri}: {answer['ContentLength']} bytes came where {stop - start} were requested: the "
            "store does not know ranges; copy the data to a local folder and name it."
        )
    with answer["Body"] as body:
        while chunk := body.read(_CHUNK):
            yield chunk


def _client() -> Any:
    """One client for all threads of a process; another one when ``AWS_*`` variables change."""
    key = (os.getpid(), *sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))
    with _lock:
        if key not in _clients:
            _clients.clear()
            config = Config(
                max_pool_connections=READERS,
                connect_timeout=10,
                read_timeout=30,
                # Exponential backoff with jitter, on throttling (503 SlowDown) too.
                retries={"mode": "standard", "total_max_attempts": TRIES},
                user_agent_extra="dfm-mlflow",
            )
            # A session of its own: the default one is not safe to create in threads.
            _clients[key] = boto3.session.Session().client("s3", config=config)
        return _clients[key]


@contextmanager
def _as_data_error(uri: str, *, listed: bool = False, written: bool = False) -> Iterator[None]:
    try:
        yield
    except (boto.BotoCoreError, boto.ClientError, ValueError) as error:
        if isinstance(error, DataError):  # a ValueError too
            raise
        told = _data_error(uri, error, listed)
        if written:
            words = str(told).replace("cannot be read", "cannot be written")
            told = DataError(words.replace("may read it", "may write it"))
        raise told from None


def _changed(uri: str) -> DataError:
    return DataError(
        f"{uri} changed after it was listed: start again when nothing is written there any more."
    )


def _data_error(uri: str, error: Exception, listed: bool) -> DataError:
    if isinstance(error, boto.ClientError):
        return _refused(uri, str(error.response.get("Error", {}).get("Code", "unknown")), listed)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return DataError(
            f"There are no credentials for {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE, or give the machine a role."
        )
    unreachable = boto.HTTPClientError | boto.ConnectionError
    if isinstance(error, unreachable):
        where = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return DataError(
            f"{uri} cannot be reached at {where or 'AWS'} after {TRIES} tries "
            f"({type(error).__name__}): check the network, AWS_ENDPOINT_URL and AWS_REGION."
        )
    text = " ".join(str(error).split())
    return DataError(f"{uri} cannot be read ({text}): check the address and the AWS_* settings.")


def _refused(uri: str, code: str, listed: bool) -> DataError:
    if code in ("PreconditionFailed", "412"):
        return _changed(uri)
    if code in ("NoSuchKey", "404"):
        if listed:
            return _changed(uri.rstrip("/"))
        return DataError(f"{uri} does not exist: give the address of an object that does.")
    if code == "NoSuchBucket":
        return DataError(f"The bucket of {uri} does not exist: correct it, or AWS_ENDPOINT_URL.")
    if code in ("SlowDown", "503", "ServiceUnavailable", "RequestLimitExceeded", "Throttling"):
        return DataError(
            f"{uri} cannot be read: the store is still overloaded after {TRIES} tries ({code}); "
            "start again later, what was read is kept."
        )
    return DataError(
        f"{uri} cannot be read, the store answers {code}: check that these credentials may read "
        "it, and AWS_REGION."
    )
