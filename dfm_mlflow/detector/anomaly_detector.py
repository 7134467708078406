"""The anomaly detector: extractor, the model of each class, and the only ``score``."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dfm_mlflow.columns import check_on_error, columns_of, table_of
from dfm_mlflow.config import Options
from dfm_mlflow.core.groups import group_rows
from dfm_mlflow.detector.calibrated import CalibratedClasses
from dfm_mlflow.detector.category import candidates, in_place
from dfm_mlflow.detector.class_fit import recalibrate_class
from dfm_mlflow.detector.class_model import ClassModel, ClassScores, score_class
from dfm_mlflow.detector.decision import decide
from dfm_mlflow.detector.fit import fit_classes
from dfm_mlflow.detector.grid import Grid, at_once
from dfm_mlflow.detector.held_out import HeldOutScores, sketches_of
from dfm_mlflow.detector.maps import smooth_map
from dfm_mlflow.detector.rows import OnImage, empty_rows, encoded_map, observations
from dfm_mlflow.errors import ConfigError, ImageError
from dfm_mlflow.images.picture import listed
from dfm_mlflow.network.extraction import Extraction
from dfm_mlflow.network.extractor import Extractor
from dfm_mlflow.network.reading import Source

if TYPE_CHECKING:
    import pandas as pd

    from dfm_mlflow.images.picture import Picture

DIGITS = 32  # of a SHA-256 that tell pictures apart
CHUNK = 256  # images whose features are in memory at once while scoring


class AnomalyDetector(CalibratedClasses):
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
        """Fit and calibrate on the features of good pictures.

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
            Features of n good pictures.
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
        fitted = fit_classes(options, extractor, extraction, labels, groups)
        detector = cls(
            fitted.options,
            fitted.extractor,
            fitted.grids,
            fitted.models,
            weights,
            fitted=fitted.keys,
        )
        return detector, fitted.held_out

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
            Called for each picture that could be read with its index and an
            :class:`~dfm_mlflow.detector.rows.Observation`.

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
        fpr = self._rate(fpr)
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
            :attr:`~dfm_mlflow.detector.rows.Observation.map`.
        size : tuple of int
            Height and width of the picture in pixels.

        Returns
        -------
        Tensor of shape size, float32
        """
        return smooth_map(values, size, self.extractor.pixels.filled_part(size))

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
        rows = empty_rows(extraction, n)
        if not extraction.kept:
            return rows
        scored = self._class_scores(extraction.features, category)
        retest = self.options.retest_rate
        decided, best = decide(self.classes, scored, fpr, retest, category=category, rule=self.rule)
        for row, (i, j) in enumerate(zip(extraction.kept, best, strict=True)):
            rows[i], size = decided[row], extraction.sizes[row]
            if with_map:
                filled = self.extractor.pixels.filled_part(size)
                values, scale = scored[j].maps[row], self.classes[j].map_scale
                rows[i]["anomaly_map"] = encoded_map(values, size, filled, scale)
        if on_image:
            sketches = sketches_of(extraction.features, self.grids)
            seen = observations(extraction, scored, best, self.classes, sketches)
            for i, one in zip(extraction.kept, seen, strict=True):
                on_image(first + i, one)
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
