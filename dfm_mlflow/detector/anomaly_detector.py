"""The anomaly detector: extractor, the model of each class, and the only ``score``."""

import base64
import copy
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dfm_mlflow.columns import COLUMNS, DECISION, check_on_error, columns_of, table_of
from dfm_mlflow.config import Options
from dfm_mlflow.core.crossfit import n_folds_of, unequal_folds
from dfm_mlflow.core.groups import group_rows
from dfm_mlflow.detector.category import candidates, in_place
from dfm_mlflow.detector.class_fit import fit_class_held_out, recalibrate_class
from dfm_mlflow.detector.class_model import ClassModel, ClassScores, score_class
from dfm_mlflow.detector.decision import (
    calibration_ranks_of,
    calibration_sentence,
    decide,
    rank_of_light,
)
from dfm_mlflow.detector.grid import Grid, at_once, grids_of
from dfm_mlflow.detector.held_out import HeldOutScores, sketches_of
from dfm_mlflow.detector.layer_fit import Deal, check_single
from dfm_mlflow.detector.maps import smooth_map, to_level, to_png
from dfm_mlflow.errors import ConfigError, FitError, ImageError
from dfm_mlflow.images.picture import listed
from dfm_mlflow.network.copies import augment_of
from dfm_mlflow.network.depths import check_read, settled
from dfm_mlflow.network.extraction import Extraction, keys_of
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.reading import Source

if TYPE_CHECKING:
    import pandas as pd

    from dfm_mlflow.images.picture import Picture

DIGITS = 32  # of a SHA-256 that tell pictures apart
CHUNK = 256  # images whose features are in memory at once while scoring


@dataclass(frozen=True, eq=False)
class Observation:
    """What is seen of one picture beside its row."""

    # (h, w): Anomaly map on the feature grid; :meth:`AnomalyDetector.full_map` brings it to `size`.
    map: torch.Tensor
    size: tuple[int, int]  # height and width of the picture in pixels
    # (l,): Rank of each leading coordinate, of all layers, among those of the calibration's good
    # pictures, in (0, 1]: uniform where nothing changed; NaN where a class has fewer of them.
    calibration_ranks: np.ndarray
    # The same of its mean level; NaN where that is not known of the calibration.
    light: float = math.nan
    # SHA-256 of the file that it was read from; None for bytes and arrays.
    digest: str | None = None
    # (layers, s) float32, or None: Of its features: what near-duplicates are found by.
    sketch: np.ndarray | None = None


OnImage = Callable[[int, Observation], None]

_logger = logging.getLogger(__name__)


class AnomalyDetector:
    """A fitted detector; immutable, and safe to score from several threads.

    Parameters
    ----------
    options : Options
        Resolved options.
    extractor : Extractor
        Turns pictures into feature maps.
    grids : sequence of Grid
        Feature map of each layer.
    classes : sequence of ClassModel
        One for each class.
    weights : dict of str to str
        ``id`` and ``sha256`` of the backbone's weights.
    rule : {1, 2}
        How several classes are decided between; see :func:`~dfm_mlflow.detector.decision.decide`.
    fitted : iterable of str
        SHA-256 of the pictures that it was fitted to, hexadecimal, of which the first 32 digits
        are kept; none where they are not known.
    """

    def __init__(
        self,
        options: Options,
        extractor: Extractor,
        grids: Sequence[Grid],
        classes: Sequence[ClassModel],
        weights: dict[str, str],
        rule: int = 2,
        fitted: Iterable[str] = (),
    ):
        self.options, self.extractor, self.grids = options, extractor, tuple(grids)
        self.classes, self.weights, self.rule = tuple(classes), weights, rule
        self.fitted = frozenset(digest[:DIGITS] for digest in fitted)
        self._ready = [c.on(extractor.device) for c in self.classes]

    @classmethod
    def from_images(
        cls, images: "Sequence[Picture]", labels: Sequence[str] | None = None, **options: Any
    ) -> "AnomalyDetector":
        """Fit and calibrate on good pictures, without a run and without MLflow.

        Parameters
        ----------
        images : sequence of Picture
            Good ones, in whatever form :meth:`score` takes.
        labels : sequence of str, optional
            Class of each, for one class-conditional detector over several; one class by default.
        **options
            Of a training, by name: ``backbone="efficientnet_lite0"``, ``fpr=0.02``.
            ``precision`` is fp32 and ``augment`` none unless given otherwise.

        Returns
        -------
        AnomalyDetector

        Raises
        ------
        ConfigError
            For options that do not go together or need files, and labels of another number.
        ImageError
            For the first image that cannot be read.
        FitError
            As :meth:`fit`.
        """
        from dfm_mlflow.detector.from_images import fit_images

        return fit_images(cls, images, labels, options)

    @classmethod
    def fit(
        cls,
        options: Options,
        extractor: Extractor,
        extraction: Extraction,
        labels: Sequence[str],
        weights: dict[str, str],
        groups: Sequence[str] | None = None,
    ) -> "AnomalyDetector":
        """Fit and calibrate on the features of good images.

        Parameters
        ----------
        options : Options
            Resolved options.
        extractor : Extractor
            The one that made the features.
        extraction : Extraction
            Features of n good pictures, or of the copies of each that ``augment`` names.
        labels : sequence of str
            Class of each of the n images.
        weights : dict of str to str
            ``id`` and ``sha256`` of the backbone's weights.
        groups : sequence of str, optional
            Images of one group are held out together, and count as one in p-values. Images with
            the same bytes are of one group in any case.

        Raises
        ------
        FitError
            If a class has too few pictures or one group, or features no model fits.

        Notes
        -----
        The fit is a function of the set of images: neither their order nor their names matter.
        """
        return cls.fit_held_out(options, extractor, extraction, labels, weights, groups)[0]

    @classmethod
    def fit_held_out(
        cls,
        options: Options,
        extractor: Extractor,
        extraction: Extraction,
        labels: Sequence[str],
        weights: dict[str, str],
        groups: Sequence[str] | None = None,
    ) -> tuple["AnomalyDetector", HeldOutScores]:
        """Fit as :meth:`fit`, and keep what the images showed while they were held out.

        Parameters
        ----------
        options : Options
            Resolved options.
        extractor : Extractor
            The one that made the features.
        extraction : Extraction
            Features of n good images.
        labels : sequence of str
            Class of each of the n images.
        weights : dict of str to str
            ``id`` and ``sha256`` of the backbone's weights.
        groups : sequence of str, optional
            As :meth:`fit` takes them.

        Returns
        -------
        detector : AnomalyDetector
        held_out : HeldOutScores
            Of the n images, in their order.

        Raises
        ------
        FitError
            As :meth:`fit`.
        """
        if len(extraction.kept) < options.fewest_pictures:
            raise FitError(
                f"{len(extraction.kept)} good pictures could be read; {options.fewest_pictures} "
                "are needed."
            )
        known = settled(extractor, extraction, options.stated_bits)
        check_read(extractor, known, extraction)
        grids = grids_of(
            (f.shape[1:] for f in extraction.features), extractor.roi_cells, options.rows_are
        )
        keys, n = keys_of(extraction), len(extraction.kept)
        times = len(extraction.features[0]) // n  # each picture and its copies
        options = options.model_copy(update={"augment": augment_of(times)})
        models, held_out, calibration_ranks = [], [], []
        for name in dict.fromkeys(labels):
            mine = sorted((i for i, c in enumerate(labels) if c == name), key=keys.__getitem__)
            own_groups = None if groups is None else [groups[i] for i in mine]
            rows = torch.tensor([j * n + i for j in range(times) for i in mine])
            features = [f[rows] for f in extraction.features]
            n_folds = n_folds_of(len(rows))
            try:
                deal = Deal.of([keys[i] for i in mine], own_groups, options.seed, n_folds)
                if len(mine) == 1:
                    check_single(grids)
                if warning := unequal_folds(deal.folds):
                    _logger.warning("The class %s: %s", name, warning)
                model, seen = fit_class_held_out(name, features, deal, grids, options)
                if extraction.light:
                    model = replace(model, light=np.sort([extraction.light[i] for i in mine]))
            except FitError as error:
                raise FitError(f"The category {name} cannot be fitted. {error}") from None
            models.append(model)
            held_out.append(seen)
            calibration_ranks.append(np.array(mine))
        detector = cls(options, known, grids, models, weights, fitted=keys)
        return detector, HeldOutScores.joined(held_out, calibration_ranks)

    def with_extractor(self, extractor: Extractor) -> "AnomalyDetector":
        """Return a detector that scores the same through another `extractor` on the same device."""
        other = copy.copy(self)
        other.extractor = extractor
        return other

    def recalibrated(
        self,
        name: str,
        features: Sequence[torch.Tensor],
        keys: Sequence[str] | None = None,
        light: Sequence[float] = (),
    ) -> "AnomalyDetector":
        """Return a detector with new thresholds for one class, from pictures never fitted.

        Parameters
        ----------
        name : str
            Of the class.
        features : sequence of Tensor of shape (n, C, h, w)
            Of n good pictures of it, one for each layer.
        keys : sequence of str, optional
            Digest of each of the n images: those with the same count as one.
        light : sequence of float
            Mean level of each of the n images, as an extraction has it.

        Raises
        ------
        ConfigError
            For a class that the detector does not have.
        FitError
            For fewer than 2 images.
        """
        if name not in self.class_names:
            raise ConfigError(
                f"The model has no category {name}: it has {', '.join(self.class_names)}."
            )
        j = self.class_names.index(name)
        n = len(features[0]) if features else 0
        parts = [[f[i : i + CHUNK] for f in features] for i in range(0, n, CHUNK)]
        with torch.inference_mode():
            scored = [self._score_class(self._ready[j], p) for p in parts]
        classes = list(self.classes)
        groups = None if keys is None else group_rows(keys)
        made = recalibrate_class(classes[j], scored, groups, self.options)
        classes[j] = replace(made, light=np.sort(light) if len(light) else None)
        return AnomalyDetector(
            self.options,
            self.extractor,
            self.grids,
            classes,
            self.weights,
            self.rule,
            self.fitted,
        )

    # -- what is known about it --------------------------------------------------------------------

    @property
    def n_components(self) -> int:
        """Dimensions of the subspaces, summed over layers and classes."""
        return sum(layer.subspace.n_components for c in self.classes for layer in c.layers)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(c.name for c in self.classes)

    def thresholds(self, fpr: float | None = None) -> dict[str, float]:
        """Anomaly score above which an image of each class is flagged.

        Parameters
        ----------
        fpr : float, optional
            False-positive rate in (0, 1); the model's own by default.

        Returns
        -------
        dict of str to float
            By the class's name.
        """
        fpr = self.options.fpr if fpr is None else fpr
        return {c.name: c.calibration.threshold(fpr) for c in self.classes}

    def effective_fpr(self, fpr: float | None = None) -> float:
        """False-positive rate that p-values are compared with, of the class with fewest images.

        Parameters
        ----------
        fpr : float, optional
            False-positive rate in (0, 1); the model's own by default.

        Returns
        -------
        float
        """
        fpr = self.options.fpr if fpr is None else fpr
        return max(c.calibration.effective_fpr(fpr) for c in self.classes)

    def promised_fpr(self, fpr: float | None = None) -> float:
        """Share of good pictures that may be flagged: more than the former with declared dirt.

        Parameters
        ----------
        fpr : float, optional
            False-positive rate in (0, 1); the model's own by default.

        Returns
        -------
        float
        """
        fpr = self.options.fpr if fpr is None else fpr
        return max(c.calibration.promised_fpr(fpr) for c in self.classes)

    def calibration_sentence(self, fpr: float | None = None) -> str:
        """Say in one sentence where the threshold comes from and what it promises.

        Parameters
        ----------
        fpr : float, optional
            False-positive rate in (0, 1); the model's own by default.

        Returns
        -------
        str
        """
        fpr = self.options.fpr if fpr is None else fpr
        return calibration_sentence(
            self.classes, fpr, self.options.retest_rate, self.options.contamination
        )

    # -- scoring -----------------------------------------------------------------------------------

    def score(
        self,
        images: Sequence[Source],
        *,
        fpr: float | None = None,
        category: str = "auto",
        anomaly_map: bool = False,
        on_error: str = "raise",
        progress: str | None = None,
        on_image: OnImage | None = None,
    ) -> "pd.DataFrame":
        """Score pictures.

        Parameters
        ----------
        images : sequence of Picture
            Files (``str`` or ``Path``), encoded pictures (bytes-like), PIL images, and arrays of
            shape (H, W, 3), RGB, or (H, W), grey, uint8, of any strides.
        fpr : float, optional
            False-positive rate of the decision; the model's own by default.
        category : str
            Class that the images are known to be of; ``auto`` chooses the one that each fits best.
        anomaly_map : bool
            Whether to add a map as base64 of an 8-bit grey PNG at the picture's size. Level 128 is
            what nine in ten held-out good pictures stay under everywhere, in every picture.
        on_error : {"raise", "report"}
            Raise for a picture that cannot be read, or say why in its row.
        progress : str, optional
            Title of a progress bar.
        on_image : callable, optional
            Called for each picture that could be read with its index and an :class:`Observation`.

        Returns
        -------
        DataFrame
            One row an image, in their order, with :data:`COLUMNS`; an image that cannot be scored
            has null in every column but ``error``.

        Raises
        ------
        ImageError
            With ``on_error="raise"``, for the first picture that cannot be read.
        ConfigError
            For a single picture in place of a list, an `fpr` outside (0, 1), another `on_error`,
            or a `category` that is no class.
        """
        fpr = self.options.fpr if fpr is None else fpr
        if not 0 < fpr < 1:
            raise ConfigError(f"fpr={fpr} is outside (0, 1): give a false-positive rate.")
        check_on_error(on_error)
        if category not in ("auto", *self.class_names):
            raise ConfigError(
                f"The model has no such category: it has {', '.join(self.class_names)}; give one "
                "of them, or auto."
            )
        images, rows = listed(images), []
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            extraction = self.extractor.extract(chunk, progress=progress)
            if extraction.errors and on_error == "raise":
                i, why = min(extraction.errors.items())
                raise ImageError(f"Row {start + i}: {why}")
            rows += self._rows(extraction, len(chunk), fpr, category, anomaly_map, on_image, start)
        return table_of(rows, self.columns)

    def predict(
        self, images: Sequence[Source], *, fpr: float | None = None, category: str = "auto"
    ) -> np.ndarray:
        """Say of each picture whether it is anomalous.

        Parameters
        ----------
        images : sequence of Picture
        fpr : float, optional
            As :meth:`score` takes it.
        category : str
            As :meth:`score` takes it.

        Returns
        -------
        ndarray of shape (n,), bool

        Raises
        ------
        DfmError
            As :meth:`score`, which has scores, p-values and maps beside it.
        """
        return self.score(images, fpr=fpr, category=category)["is_anomaly"].to_numpy(bool)

    def full_map(self, values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Bring a map from the feature grid to the size of its picture, smooth.

        Parameters
        ----------
        values : Tensor of shape (h, w)
            :attr:`Observation.map`.
        size : tuple of int
            Height and width of the picture in pixels.

        Returns
        -------
        Tensor of shape size, float32
        """
        return smooth_map(values, size, self.extractor.filled_part(size))

    @property
    def columns(self) -> dict[str, str]:
        """Columns of :meth:`score` with their dtypes."""
        return columns_of(self.options.retest_rate is not None)

    def _rows(
        self,
        extraction: Extraction,
        n: int,
        fpr: float,
        category: str,
        with_map: bool,
        on_image: OnImage | None,
        first: int,
    ) -> list[dict[str, Any]]:
        nothing = dict.fromkeys((*COLUMNS, *DECISION))
        rows = [nothing | {"error": extraction.errors.get(i)} for i in range(n)]
        if not extraction.kept:
            return rows
        scored = self._class_scores(extraction.features, category)
        decided, best = decide(
            self.classes, scored, fpr, self.options.retest_rate, category=category, rule=self.rule
        )
        sketches = sketches_of(extraction.features, self.grids) if on_image else None
        for row, (i, j) in enumerate(zip(extraction.kept, best, strict=True)):
            rows[i], values = decided[row], scored[j].maps[row]
            if with_map:
                full = self.full_map(values, extraction.sizes[row])
                level = to_level(full, self.classes[j].map_scale)
                rows[i]["anomaly_map"] = base64.b64encode(to_png(level)).decode("ascii")
            if on_image:
                of_row = [z[row] for z in scored[j].leading_coordinates]
                ranks = calibration_ranks_of(self.classes[j], of_row)
                digest, size = extraction.digests.get(i), extraction.sizes[row]
                sketch = None if sketches is None else sketches[row]
                light = rank_of_light(self.classes[j], extraction.light[row])
                on_image(first + i, Observation(values, size, ranks, light, digest, sketch))
        return rows

    @torch.inference_mode()
    def _class_scores(
        self, features: Sequence[torch.Tensor], category: str = "auto"
    ) -> list[ClassScores]:
        """Score features under the classes that may be chosen; all of them in format 1."""
        if len(self._ready) == 1 or (self.rule == 1 and category == "auto"):
            return [self._score_class(c, features) for c in self._ready]
        if category == "auto":
            mine = torch.cat(
                [candidates(self._ready, part, self.grids) for part in self._parts(features)]
            )
        else:
            mine = torch.tensor([name == category for name in self.class_names])
            mine = mine.expand(len(features[0]), -1).to(features[0].device)
        return [
            in_place(self._score_class(c, [f[own] for f in features]) if own.any() else None, own)
            for c, own in zip(self._ready, mine.T, strict=True)
        ]

    def _score_class(self, model: ClassModel, features: Sequence[torch.Tensor]) -> ClassScores:
        parts = self._parts(features)
        return ClassScores.joined([score_class(model, p, self.grids, self.options) for p in parts])

    def _parts(self, features: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Features of as many pictures as are scored at once."""
        step = at_once(self.grids, CHUNK)
        return [[f[i : i + step] for f in features] for i in range(0, len(features[0]), step)]
