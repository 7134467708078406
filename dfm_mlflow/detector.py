"""The anomaly detector: extractor, class-conditional DFM, calibration, and the only ``score``."""

import base64
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dfm_mlflow.class_fit import fit_class, recalibrate_class
from dfm_mlflow.class_model import MOST_LEADING, ClassModel, ClassScores, Grid, score_class
from dfm_mlflow.config import Options
from dfm_mlflow.core.calibration import combine_classes, images_needed, is_anomaly
from dfm_mlflow.errors import ConfigError, FitError, ImageError
from dfm_mlflow.network.extraction import Extraction
from dfm_mlflow.network.extractor import Extractor, Source
from dfm_mlflow.network.maps import smooth_map, to_level, to_png

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "anomaly_score": "float64",
    "p_value": "float64",
    "is_anomaly": "bool",
    "predicted_class": "object",
    "fre": "float64",
    "nll": "float64",
    "anomaly_map": "object",
    "error": "object",
}
# Only in models with a retest band: reject, retest or pass.
DECISION = {"decision": "object"}
CHUNK = 256  # images whose features are in memory at once while scoring


@dataclass(frozen=True, eq=False)
class Observation:
    """What is seen of one picture beside its row.

    Attributes
    ----------
    map : Tensor of shape (h, w)
        Anomaly map on the feature grid; :meth:`AnomalyDetector.full_map` brings it to `size`.
    size : tuple of int
        Height and width of the picture in pixels.
    places : ndarray of shape (l,)
        Place of each leading coordinate, of all layers, among those of the calibration's good
        pictures, in (0, 1]: uniform where nothing changed; NaN where a class has fewer of them.
    """

    map: torch.Tensor
    size: tuple[int, int]
    places: np.ndarray


OnImage = Callable[[int, Observation], None]


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
    """

    def __init__(
        self,
        options: Options,
        extractor: Extractor,
        grids: Sequence[Grid],
        classes: Sequence[ClassModel],
        weights: dict[str, str],
    ):
        self.options, self.extractor, self.grids = options, extractor, tuple(grids)
        self.classes, self.weights = tuple(classes), weights
        self._ready = [c.on(extractor.device) for c in self.classes]

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
            Features of n good images.
        labels : sequence of str
            Class of each of the n images.
        weights : dict of str to str
            ``id`` and ``sha256`` of the backbone's weights.
        groups : sequence of str, optional
            Images of one group are held out together.

        Raises
        ------
        FitError
            If a class has fewer than 2 images or one group, or features no model fits.
        """
        if len(extraction.kept) < 2:
            raise FitError(f"{len(extraction.kept)} good images could be read; 2 are needed.")
        grids = [
            Grid((c, h, w), extractor.roi_cells((h, w)))
            for _, c, h, w in (f.shape for f in extraction.features)
        ]
        if not all(g.cells.any() for g in grids):
            raise FitError("The roi touches no cell of a layer: paint a larger region.")
        known = np.asarray(labels)
        models = []
        for name in dict.fromkeys(labels):
            mine = np.flatnonzero(known == name)
            own_groups = None if groups is None else [groups[i] for i in mine.tolist()]
            features = [f[torch.from_numpy(mine)] for f in extraction.features]
            try:
                models.append(fit_class(name, features, own_groups, grids, options))
            except FitError as error:
                raise FitError(f"The class {name} cannot be fitted. {error}") from None
        return cls(options, extractor, grids, models, weights)

    def with_extractor(self, extractor: Extractor) -> "AnomalyDetector":
        """Return a detector that scores the same through another extractor on the same device."""
        other = copy.copy(self)
        other.extractor = extractor
        return other

    def recalibrated(self, name: str, features: Sequence[torch.Tensor]) -> "AnomalyDetector":
        """Return a detector with new thresholds for one class, from pictures never fitted.

        Parameters
        ----------
        name : str
            Of the class.
        features : sequence of Tensor of shape (n, C, h, w)
            Of n good images of it, one for each layer.

        Raises
        ------
        ConfigError
            For a class that the detector does not have.
        FitError
            For fewer than 2 images.
        """
        if name not in self.class_names:
            raise ConfigError(
                f"The model has no class {name}: its classes are {', '.join(self.class_names)}."
            )
        j = self.class_names.index(name)
        n = len(features[0]) if features else 0
        parts = [[f[i : i + CHUNK] for f in features] for i in range(0, n, CHUNK)]
        with torch.inference_mode():
            scored = [score_class(self._ready[j], p, self.grids, self.options) for p in parts]
        classes = list(self.classes)
        classes[j] = recalibrate_class(classes[j], scored, self.options)
        return AnomalyDetector(self.options, self.extractor, self.grids, classes, self.weights)

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
        """Anomaly score above which an image of each class is flagged."""
        fpr = self.options.fpr if fpr is None else fpr
        return {c.name: c.calibration.threshold(fpr) for c in self.classes}

    def effective_fpr(self, fpr: float | None = None) -> float:
        """False-positive rate that the calibration can promise, of the class with fewest images."""
        fpr = self.options.fpr if fpr is None else fpr
        return max(c.calibration.effective_fpr(fpr) for c in self.classes)

    def calibration_sentence(self, fpr: float | None = None) -> str:
        """Say in one sentence where the threshold comes from and what it promises."""
        fpr = self.options.fpr if fpr is None else fpr
        effective = self.effective_fpr(fpr)
        smallest = min(self.classes, key=lambda c: len(c.calibration.scores)).calibration
        several = len(self.classes) > 1
        thresholds = self.thresholds(fpr)
        if several:
            subject = "The thresholds " + ", ".join(f"{c} {t:.4g}" for c, t in thresholds.items())
        else:
            subject = f"The threshold {next(iter(thresholds.values())):.4g}"
        kind = "p-values with a generalised Pareto tail" if smallest.tail else "empirical p-values"
        sentence = (
            f"{subject} promise{'' if several else 's'} a false-positive rate of at most "
            f"{effective:.3g}, by {kind} from {len(smallest.scores)}"
            f"{'' if smallest.n_folds else ' new'} good images"
            f"{' of the smallest class' if several else ''}"
            f"{f' held out in {smallest.n_folds} folds' if smallest.n_folds else ''}"
        )
        if effective > fpr:
            enough = images_needed(fpr, smallest.tail)
            sentence += f"; {enough} would do for the {fpr:.3g} that was asked for"
        if self.options.retest_rate is not None:
            sentence += (
                f"; pictures with p-values up to {self.options.retest_rate:.3g} are to be looked "
                "at again"
            )
        return sentence + "."

    # -- scoring -----------------------------------------------------------------------------------

    def score(
        self,
        images: Sequence[Source],
        *,
        fpr: float | None = None,
        anomaly_map: bool = False,
        on_error: str = "raise",
        progress: str | None = None,
        on_image: OnImage | None = None,
    ) -> "pd.DataFrame":
        """Score pictures.

        Parameters
        ----------
        images : sequence of bytes, Path or ndarray
            Encoded pictures, files, or RGB arrays of shape (H, W, 3), uint8.
        fpr : float, optional
            False-positive rate of the decision; the model's own by default.
        anomaly_map : bool
            Whether to add a map as base64 of an 8-bit grey PNG at the picture's size. Level 128 is
            what all but 1 in 1,000 positions of held-out good images stay under, in every picture.
        on_error : {"raise", "report"}
            Raise for a picture that cannot be read, or say why in its row.
        progress : str, optional
            Title of a progress bar.
        on_image : callable, optional
            Called for each image that could be read with its index and an :class:`Observation`.

        Returns
        -------
        DataFrame
            One row an image, in their order, with :data:`COLUMNS`.

        Raises
        ------
        ImageError
            With ``on_error="raise"``, for the first picture that cannot be read.
        ConfigError
            For an `fpr` outside (0, 1) or another `on_error`.
        """
        import pandas as pd

        fpr = self.options.fpr if fpr is None else fpr
        if not 0 < fpr < 1:
            raise ConfigError(f"fpr={fpr} is outside (0, 1): give a false-positive rate.")
        if on_error not in ("raise", "report"):
            raise ConfigError(f"on_error={on_error!r} is not known: give raise or report.")
        rows: list[dict[str, Any]] = []
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            extraction = self.extractor.extract(chunk, progress=progress)
            if extraction.errors and on_error == "raise":
                i, why = min(extraction.errors.items())
                raise ImageError(f"Row {start + i}: {why}")
            rows += self._rows(extraction, len(chunk), fpr, anomaly_map, on_image, start)
        # dtypes are stated: text columns keep None, which pandas would else turn into NaN
        return pd.DataFrame(
            {
                name: pd.Series([r[name] for r in rows], dtype=kind)
                for name, kind in self.columns.items()
            }
        )

    def full_map(self, values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Bring a map from the feature grid to a picture's height and width, smooth, float32."""
        return smooth_map(values, size, self.extractor.filled_part(size))

    @property
    def columns(self) -> dict[str, str]:
        """Columns of :meth:`score` with their dtypes."""
        return COLUMNS | (DECISION if self.options.retest_rate is not None else {})

    def _score_features(
        self, features: Sequence[torch.Tensor], fpr: float
    ) -> tuple[list[dict[str, Any]], list[torch.Tensor], list[list[torch.Tensor]], np.ndarray]:
        """Score extracted features, one tensor of shape (n, C, h, w) a layer.

        Returns
        -------
        rows : list of dict
            One for each image, without map.
        maps : list of Tensor of shape (n, h, w)
            Anomaly maps under each class.
        leading : list of list of Tensor of shape (n, l)
            First coordinates under each class in each layer.
        classes : ndarray of shape (n,), int
            Index of the class that each image fits best.
        """
        scored = self._class_scores(features)
        rows, best = self.decide(scored, fpr)
        return rows, [s.maps for s in scored], [s.leading for s in scored], best

    def decide(
        self, scored: Sequence[ClassScores], fpr: float
    ) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Turn the scores of n pictures under each class into rows, without map.

        Returns
        -------
        rows : list of dict
            One for each picture.
        classes : ndarray of shape (n,), int
            Index of the class that each fits best.
        """
        columns = [torch.stack([s.score, s.fre, s.nll]) for s in scored]
        score, fre, nll = torch.stack(columns, dim=2).double().cpu().numpy()
        p_values = np.stack(
            [c.calibration.p_value(score[:, j]) for j, c in enumerate(self.classes)], axis=1
        )
        best = combine_classes(p_values, -nll)
        promise = np.array([c.calibration.effective_fpr(fpr) for c in self.classes])
        rows = []
        for i, j in enumerate(best):
            p = float(p_values[i, j])
            flagged = bool(is_anomaly(p_values[i, j], promise[j]))
            rows.append(
                {
                    "anomaly_score": float(score[i, j]),
                    "p_value": p,
                    "is_anomaly": flagged,
                    "predicted_class": self.classes[j].name,
                    "fre": float(fre[i, j]),
                    "nll": float(nll[i, j]),
                    "anomaly_map": None,
                    "error": None,
                    "decision": self._decision(p, flagged),
                }
            )
        return rows, best

    def _rows(
        self,
        extraction: Extraction,
        n: int,
        fpr: float,
        with_map: bool,
        on_image: OnImage | None,
        first: int,
    ) -> list[dict[str, Any]]:
        nothing = dict.fromkeys((*COLUMNS, *DECISION)) | {"is_anomaly": False}
        rows = [nothing | {"error": extraction.errors.get(i)} for i in range(n)]
        if not extraction.kept:
            return rows
        scored, maps, leading, best = self._score_features(extraction.features, fpr)
        for row, (i, j) in enumerate(zip(extraction.kept, best, strict=True)):
            rows[i] = scored[row]
            if with_map:
                full = self.full_map(maps[j][row], extraction.sizes[row])
                level = to_level(full, self.classes[j].map_scale)
                rows[i]["anomaly_map"] = base64.b64encode(to_png(level)).decode("ascii")
            if on_image:
                places = _places(self.classes[j], [z[row] for z in leading[j]])
                seen = Observation(maps[j][row], extraction.sizes[row], places)
                on_image(first + i, seen)
        return rows

    def _decision(self, p_value: float, flagged: bool) -> str:
        if flagged:
            return "reject"
        retest = self.options.retest_rate
        return "retest" if retest is not None and p_value <= retest else "pass"

    @torch.inference_mode()
    def _class_scores(self, features: Sequence[torch.Tensor]) -> list[ClassScores]:
        """Score features under each class."""
        return [score_class(c, features, self.grids, self.options) for c in self._ready]


def _places(model: ClassModel, leading: Sequence[torch.Tensor]) -> np.ndarray:
    places = []
    for layer, values in zip(model.layers, leading, strict=True):
        known = layer.leading
        above = len(known) - np.array(
            [np.searchsorted(known[:, k], v) for k, v in enumerate(values.cpu().numpy())]
        )
        # classes of few pictures have fewer coordinates; all give rows of one length
        padded = np.full(MOST_LEADING, np.nan)
        padded[: len(above)] = (1 + above) / (len(known) + 1)
        places.append(padded)
    return np.concatenate(places)
