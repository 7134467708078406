"""One page on which a person judges pictures, with keys or a mouse, from a file or a server."""

import base64
import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import DfmError
from dfm_mlflow.images.overlay import layer
from dfm_mlflow.images.read import look_at, read_picture
from dfm_mlflow.report.gallery import level_of, shrunk
from dfm_mlflow.report.pages import PAGES
from dfm_mlflow.scores.to_review import FLAGGED, PASSED, RETEST, TRAINING, Case
from dfm_mlflow.storage import store

_PICTURES = 42 * 10**6  # bytes of all pictures, which base64 makes a third longer
_MOST = 160_000  # bytes of one picture
_SIDE, _THUMB, _MAP = 960, 72, 160  # most pixels a side
_QUALITY = 82
WORDS = {
    RETEST: "to be looked at again",
    FLAGGED: "flagged",
    PASSED: "passes, but least typical",
    TRAINING: "unusual training picture",
}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shot:
    """A picture as the page shows it."""

    case: Case  # with the digest of what was read
    picture: str
    layer: str
    thumb: str
    own_scale: bool  # whether the map is on a scale of its own


def shoot(detector: AnomalyDetector, cases: Sequence[Case]) -> list[Shot]:
    """Read pictures and draw their maps; one that cannot be read is left out with a warning."""
    seen: dict[int, Any] = {}
    sources = [_source(case.path) for case in cases]
    there = [i for i, source in enumerate(sources) if source is not None]
    scores = detector.score(
        [s for s in sources if s is not None],
        on_error="report",
        progress="drawing",
        on_image=lambda i, observed: seen.update({there[i]: observed}),
    )
    names = dict(zip(there, scores["predicted_class"], strict=True))
    shots, left_out = [], []
    budget = min(_MOST, _PICTURES // max(1, len(cases)))
    for i, case in enumerate(cases):
        observed, source = seen.get(i), sources[i]
        if observed is None or source is None:
            left_out.append(case.path)
            continue
        name = case.category if case.category in detector.class_names else names[i]
        try:
            shots.append(_shot(detector, case, source, observed, name, budget))
        except (DfmError, OSError):  # it was there a moment ago
            left_out.append(case.path)
    if left_out:
        _logger.warning(
            "%d of %d pictures are not on the page, since they cannot be read or have other "
            "contents than were scored, such as %s.",
            len(left_out),
            len(cases),
            left_out[0],
        )
    return shots


def _source(path: str) -> Path | store.S3Object | None:
    try:
        source = store.find(path) if path.startswith(store.SCHEME) else Path(path)
    except DfmError:
        return None
    return source if source.is_file() else None


def _shot(
    detector: AnomalyDetector,
    case: Case,
    source: Path | store.S3Object,
    observed: Any,
    name: str,
    budget: int,
) -> Shot:
    digest = observed.digest or look_at(source).sha256
    if case.sha256 and case.sha256 != digest:
        raise OSError("other contents")
    decoder = detector.extractor.decoder
    whole = decoder.decode(read_picture(source, decoder.max_bytes))[0]
    pixels = shrunk(whole, _SIDE)
    height, width = pixels.shape[:2]
    share = min(1.0, _MAP / max(height, width))
    size = max(1, round(height * share)), max(1, round(width * share))
    level, own_scale = level_of(detector, observed.map, size, name)
    drawn = _encoded(Image.fromarray(layer(level)), "WEBP", 80)
    known = Case(case.path, case.why, name, case.score, case.p_value, case.label, digest)
    return Shot(
        known,
        _text(_picture(pixels, budget - len(drawn))),
        _text(drawn),
        _text(_encoded(Image.fromarray(shrunk(pixels, _THUMB)), "JPEG", 70)),
        own_scale,
    )


def _picture(pixels: np.ndarray, budget: int) -> bytes:
    """A JPEG of at most so many bytes, as large as that allows."""
    side = max(pixels.shape[:2])
    while True:
        data = _encoded(Image.fromarray(shrunk(pixels, side)), "JPEG", _QUALITY)
        if len(data) <= budget or side <= 2 * _THUMB:
            return data
        side = int(side * min(0.9, max(0.5, (budget / len(data)) ** 0.5)))


def _encoded(image: Image.Image, kind: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, quality=quality)
    return buffer.getvalue()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def review_page(
    shots: Sequence[Shot],
    *,
    model: str,
    who: str,
    defects: Sequence[str],
    said: Mapping[str, tuple[str, str]],
    categories: Sequence[str],
    verdicts: str,
    token: str | None = None,
) -> str:
    """Write the page."""
    pictures = [
        {
            "sha256": shot.case.sha256,
            "path": shot.case.path,
            "why": WORDS[shot.case.why],
            "category": shot.case.category,
            "score": shot.case.score,
            "p": shot.case.p_value,
            "label": shot.case.label,
            "ownScale": shot.own_scale,
            "picture": shot.picture,
            "layer": shot.layer,
            "thumb": shot.thumb,
        }
        for shot in shots
    ]
    whole = "\n".join([model, *(shot.case.sha256 for shot in shots)])
    state = {
        "id": hashlib.sha256(whole.encode()).hexdigest(),
        "model": model,
        "several": len(categories) > 1,
        "said": {digest: list(both) for digest, both in said.items()},
        "token": token,
        "file": Path(verdicts).name,
        "pictures": pictures,
    }
    return PAGES.get_template("review.html.j2").render(
        model=model,
        who=who,
        defects=defects,
        served=token is not None,
        verdicts=verdicts,
        n=len(shots),
        state=Markup(json.dumps(state, ensure_ascii=False).replace("<", "\\u003c")),
    )
