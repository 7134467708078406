"""Score pictures on a server that ``mlflow models serve`` started; needs neither torch nor MLflow.

from dfm_mlflow import client
table = client.score("http://127.0.0.1:5001", ["a.png", "b.png"])
"""

import base64
import http.client
import io
import json
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dfm_mlflow.columns import COLUMNS, check_on_error
from dfm_mlflow.errors import ConfigError, ImageError, ServerError
from dfm_mlflow.images.picture import Picture, encoded, listed
from dfm_mlflow.storage.score_table import ScoreTable, as_arrow

_ROWS = 64  # pictures in one request: a server answers them long before it gives up on a request
_LONGEST_PAUSE = 5.0


def score(
    url: str,
    images: Sequence[Picture],
    *,
    fpr: float | None = None,
    category: str = "auto",
    anomaly_map: bool = False,
    on_error: str = "raise",
    timeout: float = 60.0,
    retries: int = 5,
    request_bytes: int = 16 << 20,
    headers: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Score pictures on a server.

    Parameters
    ----------
    url : str
        Of the server, with or without ``/invocations``.
    images : sequence of Picture
        Files (``str`` or ``Path``), encoded pictures (bytes-like), PIL images, and arrays of shape
        (H, W, 3), RGB, or (H, W), grey, uint8, of any strides; the last two are sent as PNG.
    fpr : float, optional
        False-positive rate of the decision; the model's own by default.
    category : str
        Category that the pictures are known to be of; ``auto`` judges each by the one it fits best.
    anomaly_map : bool
        Whether to ask for maps.
    on_error : {"raise", "report"}
        Raise for a picture that cannot be scored, or say why in its row.
    timeout : float
        Seconds that one attempt may take.
    retries : int
        Further attempts, with growing pauses, when the server is overloaded (503) or a connection
        fails. Scoring changes nothing on the server, so a repeated request does no harm.
    request_bytes : int
        Encoded pictures in one request at most, unless a single one is larger.
    headers : mapping, optional
        Further headers, such as ``Authorization``.

    Returns
    -------
    DataFrame
        One row an image, in their order; an image that cannot be scored has null in every column
        but ``error``.

    Raises
    ------
    ServerError
        With the server's sentence, if it refuses, fails, or cannot be reached.
    ImageError
        If a file cannot be read or an array is not a picture, with ``on_error="raise"``.
    ConfigError
        For an argument that cannot be used.
    """
    images = listed(images)
    check_on_error(on_error)
    # what is the server's default is not sent: only JSON carries parameters through MLflow, and
    # parquet is several times faster
    params: dict[str, Any] = {"fpr": fpr} if fpr is not None else {}
    params |= {"category": category} if category != "auto" else {}
    params |= {"anomaly_map": True} if anomaly_map else {}
    params |= {"on_error": on_error} if on_error != "raise" else {}
    target = _target(url)
    rows: dict[int, dict[str, Any]] = {}
    errors: dict[int, str] = {}
    for part in _parts(images, request_bytes, on_error, errors):
        body, kind = _body([data for _, data in part], params)
        request = urllib.request.Request(target, body, {**(headers or {}), "Content-Type": kind})
        names = [(i, images[i]) for i, _ in part]
        answer = _post(request, timeout, retries, names)
        rows |= dict(zip((i for i, _ in part), answer, strict=True))
    nothing = dict.fromkeys(next(iter(rows.values()), COLUMNS))
    rows |= {i: nothing | {"error": why} for i, why in errors.items()}
    return pd.DataFrame(
        {
            name: pd.Series(
                [rows[i][name] for i in sorted(rows)], dtype=COLUMNS.get(name, "object")
            )
            for name in nothing
        }
    )


def find_pictures(names: Iterable[str]) -> list[str]:
    """List files, and the pictures in folders, patterns, ``s3://`` prefixes and manifests.

    Masks in ``ground_truth`` and hidden files are left out; the log says what is used.

    Parameters
    ----------
    names : iterable of str

    Returns
    -------
    list of str

    Raises
    ------
    DataError
        If a name is not there, or there is no picture.
    """
    from dfm_mlflow.data.find import find_all

    return [str(source) for source in find_all(list(names)).sources]


def score_into(
    url: str,
    sources: Sequence[Any],
    table: ScoreTable,
    *,
    overlays: str = "none",
    searched: Sequence[str] = (),
    anomaly_map: bool = False,
    **asked: Any,
) -> None:
    """Score files and objects on a server, into a table that is written as the answers come.

    Parameters
    ----------
    url : str
        Of the server.
    sources : sequence of Path or S3Object
    table : ScoreTable
        Gets the column ``path``, then those of the answers.
    overlays : str
        Local folder for pictures with their maps drawn over them, or ``none``.
    searched : sequence of str
        Folders that the pictures were found in.
    anomaly_map : bool
        Whether the table gets the maps.
    **asked
        Of :func:`score`.

    Raises
    ------
    DfmError
        As :func:`score`, for an object that cannot be read, and for a folder of overlays that
        cannot be used.
    """
    from dfm_mlflow.images.overlay_files import OverlayFolder
    from dfm_mlflow.images.read import read_picture

    drawn = None if overlays == "none" else OverlayFolder(overlays, sources, searched)
    with table:
        for start in range(0, len(sources), _ROWS):
            step = sources[start : start + _ROWS]
            given = [s if isinstance(s, Path) else read_picture(s) for s in step]
            found = score(url, given, anomaly_map=anomaly_map or drawn is not None, **asked)
            if drawn is not None:
                for source, one in zip(step, found["anomaly_map"], strict=True):
                    if one is not None:
                        drawn.write(source, read_picture(source), one)
            if not anomaly_map:
                found["anomaly_map"] = pd.Series([None] * len(found), dtype="object")
            found.insert(0, "path", [str(source) for source in step])
            table.write(as_arrow(found))


def _target(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"url={url!r} is not a server's: give http://HOST:PORT.")
    path = parts.path.rstrip("/")
    if not path.endswith("/invocations"):
        path += "/invocations"
    return urllib.parse.urlunsplit(parts._replace(path=path))


def _parts(
    images: Sequence[Picture], limit: int, on_error: str, errors: dict[int, str]
) -> Iterator[list[tuple[int, bytes]]]:
    """Give what each request sends; pictures are read when their turn comes."""
    part: list[tuple[int, bytes]] = []
    size = 0
    for i, image in enumerate(images):
        try:
            data = encoded(image)
        except ImageError as error:
            if on_error == "raise":
                raise ImageError(f"{_name(i, image)}: {error}") from None
            errors[i] = str(error)
            continue
        if part and (size + len(data) > limit or len(part) == _ROWS):
            yield part
            part, size = [], 0
        part.append((i, data))
        size += len(data)
    if part:
        yield part


def _name(i: int, image: Picture) -> str:
    return f"Row {i} ({image})" if isinstance(image, str | Path) else f"Row {i}"


def _body(data: list[bytes], params: dict[str, Any]) -> tuple[bytes, str]:
    if params:
        records = [{"image": base64.b64encode(d).decode("ascii")} for d in data]
        body = json.dumps({"dataframe_records": records, "params": params}).encode()
        return body, "application/json"
    buffer = io.BytesIO()
    # pictures are compressed already
    pd.DataFrame({"image": data}).to_parquet(buffer, engine="pyarrow", compression=None)
    return buffer.getvalue(), "application/vnd.apache.parquet"


def _post(
    request: urllib.request.Request,
    timeout: float,
    retries: int,
    names: list[tuple[int, Picture]],
) -> list[dict[str, Any]]:
    host = urllib.parse.urlsplit(request.full_url).netloc
    for attempt in range(retries + 1):
        if attempt:
            # the random part keeps clients that were refused together from coming back together
            time.sleep(min(_LONGEST_PAUSE, 0.1 * 2**attempt) * random.uniform(0.5, 1))
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return _rows(answer.read(), len(names), host)
        except urllib.error.HTTPError as error:
            refusal = ServerError(_sentence(error, host, names), error.code)
            if error.code != 503:
                raise refusal from None
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):  # to ask again would double the server's load
                raise ServerError(
                    f"{host} did not answer within {timeout:g} s: give a longer timeout."
                ) from None
            refusal = ServerError(
                f"{host} cannot be reached ({reason}): check the URL and whether the server runs."
            )
    raise refusal


def _rows(body: bytes, n: int, host: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(body)["predictions"]
    except (ValueError, KeyError, TypeError):
        rows = None
    if not isinstance(rows, list) or len(rows) != n or not all(isinstance(r, dict) for r in rows):
        raise ServerError(
            f"{host} did not answer with one row for each of {n} pictures: check that it serves a "
            "dfm model."
        )
    return rows


def _sentence(
    error: urllib.error.HTTPError, host: str, names: Iterable[tuple[int, Picture]]
) -> str:
    """Take the sentence out of a refusal, with the caller's own row numbers."""
    try:
        body = error.read().decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):
        body = ""
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        words = body if 0 < len(body) <= 200 and not body.startswith("<") else error.reason
        return f"{host} answered {error.code}: {words}"
    row = re.match(r"Row (\d+): ", message)
    names = list(names)
    if row and int(row[1]) < len(names):
        return f"{_name(*names[int(row[1])])}: {message[row.end() :]}"
    return message
