"""The depth of a training's pictures: guessed from a few of them, settled by all."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dfm_mlflow.errors import FitError, ImageError
from dfm_mlflow.images.decode import Decoder
from dfm_mlflow.images.depth import BYTES, Depth, Words, depth_of
from dfm_mlflow.images.limits import MAX_PIXELS
from dfm_mlflow.images.read import read_picture
from dfm_mlflow.network.copies import UPRIGHT, Copy
from dfm_mlflow.network.extraction import Extraction
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.reading import Source
from dfm_mlflow.storage.store import S3Object, map_in_threads

N_GUESSED = 16  # pictures that a guess looks at

_logger = logging.getLogger(__name__)


def guessed(
    decoder: Decoder, sources: Sequence[Path | S3Object], stated: int | None = None
) -> Decoder:
    """Look at one picture, and at a few more where it has values of 16 bits."""
    decoder = replace(decoder, depth=BYTES, strict=False)

    def words_at(source: Path | S3Object) -> Words | None:
        try:
            return decoder.decode(read_picture(source, decoder.max_bytes))[1]
        except ImageError:  # the extraction reports it
            return None

    found = [words_at(source) for source in sources[:1]]
    if any(found):
        step = max(1, len(sources) // N_GUESSED)
        more = list(sources[step::step][:N_GUESSED])
        large = decoder.max_pixels > MAX_PIXELS  # several at a time would fill the memory
        found += list(map(words_at, more)) if large else map_in_threads(words_at, more)
    return replace(decoder, depth=depth_of([w for w in found if w], stated))


def settled(extractor: Extractor, extraction: Extraction, stated: int | None = None) -> Extractor:
    """Give an extractor that knows the depth of training pictures, and refuses others."""
    if extractor.decoder.strict:
        return extractor
    words, n = list(extraction.words.values()), len(extraction.kept)
    if 0 < len(words) < n:
        _logger.warning(
            "%d of %d training pictures have values of 16 bits, the others of 8: check that they "
            "come from the same camera.",
            len(words),
            n,
        )
    return extractor.with_depth(depth_of(words, stated))


def extract_settled(
    extractor: Extractor,
    sources: Sequence[Source],
    stated: int | None = None,
    *,
    copies: Sequence[Copy] = (UPRIGHT,),
    hold: bool = False,
    progress: str | None = None,
) -> tuple[Extractor, Extraction]:
    """Extract training pictures, once more if all of them show another depth than a few did."""
    extraction = extractor.extract(sources, copies=copies, hold=hold, progress=progress)
    known = settled(extractor, extraction, stated)
    if was_misread(extractor, known, extraction):
        _logger.info("The pictures are read again: %s", _depth(known).sentence())
        del extraction
        extractor.release()  # inputs of another depth
        extraction = known.extract(sources, copies=copies, hold=hold, progress=progress)
    elif extraction.words:
        _logger.info(_depth(known).sentence())
    return known, extraction


def was_misread(guess: Extractor, known: Extractor, extraction: Extraction) -> bool:
    """Whether features by a guess are not those of the known depth, or it refuses a picture."""
    if known is guess:
        return False
    depth = _depth(known)
    return depth.white != _depth(guess).white or any(
        depth.refusal(words) for words in extraction.words.values()
    )


def check_read(guess: Extractor, known: Extractor, extraction: Extraction) -> None:
    """Refuse features that were extracted under another depth than the pictures have."""
    if was_misread(guess, known, extraction):
        raise FitError(
            f"{_depth(known).sentence()} Their features were extracted under another depth: use "
            "extract_settled."
        )


def _depth(extractor: Extractor) -> Depth:
    return extractor.decoder.depth or Depth()
