"""The anomaly detector: extractor, class-conditional DFM, calibration, and the only ``score``."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from dfm_mlflow.config import Options
from dfm_mlflow.core.aggregation import aggregate, residual_map
from dfm_mlflow.core.calibration import (
    Calibration,
    combine_classes,
    images_needed,
    is_anomaly,
)
from dfm_mlflow.core.crossfit import assign_folds, crossfit
from dfm_mlflow.core.subspace import Subspace, fit_subspace
from dfm_mlflow.errors import ConfigError, FitError, ImageError
from dfm_mlflow.network.extractor import Extraction, Extractor, Source

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {"anomaly_score": "float64", "p_value": "float64", "is_anomaly": "bool",
           "predicted_class": "object", "fre": "float64", "nll": "float64",
           "anomaly_map": "object", "error": "object"}  # fmt: skip
_CHUNK = 256  # images whose features are in memory at once while scoring


@dataclass(frozen=True)
class ClassModel:
    """What one class of good images looks like in one layer's features.

    Attributes
    ----------
    name : str
    subspace : Subspace
        NumPy, float64 after a fit and float32 after loading.
    calibration : Calibration
        Held-out anomaly scores.
    map_scale : float
        Value of the FRE map that all but 1 in 1,000 held-out good positions stay under.
    """

    name: str
    subspace: Subspace
    calibration: Calibration
    map_scale: float


class AnomalyDetector:
    """A fitted detector; immutable, and safe to score from several threads.

    Parameters
    ----------
    options : Options
        Resolved options.
    extractor : Extractor
        Turns pictures into feature maps.
    shape : tuple of int
        ``(C, h, w)`` of the pooled feature map.
    classes : sequence of ClassModel
        One for each class.
    weights : dict of str to str
        ``id`` and ``sha256`` of the backbone's weights.
    """

    def __init__(
        self,
        options: Options,
        extractor: Extractor,
        shape: tuple[int, int, int],
        classes: Sequence[ClassModel],
        weights: dict[str, str],
    ):
        self.options, self.extractor, self.shape = options, extractor, shape
        self.classes, self.weights = tuple(classes), weights
        self._subspaces = [_on_device(c.subspace, extractor.device) for c in self.classes]

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
        features = extraction.features[0]
        shape = tuple(features.shape[1:])
        rows = features.reshape(len(features), -1).cpu().numpy()
        known = np.asarray(labels)
        models = []
        for name in dict.fromkeys(labels):
            mine = np.flatnonzero(known == name)
            own_groups = None if groups is None else [groups[i] for i in mine]
            try:
                models.append(_fit_class(name, rows[mine], own_groups, options, shape))
            except FitError as error:
                raise FitError(f"The class {name} cannot be fitted. {error}") from None
        return cls(options, extractor, shape, models, weights)

    # -- what is known about it --------------------------------------------------------------------

    @property
    def n_components(self) -> int:
        """Dimensions of the subspaces, summed over classes."""
        return sum(c.subspace.n_components for c in self.classes)

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
        n = min(len(c.calibration.scores) for c in self.classes)
        sentence = (
            f"The threshold promises a false-positive rate of at most {effective:.3g}, from "
            f"{n} held-out good images{' of the smallest class' if len(self.classes) > 1 else ''}"
        )
        if effective > fpr:
            sentence += f"; {images_needed(fpr)} would do for the {fpr:.3g} that was asked for"
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
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            extraction = self.extractor.extract(chunk, progress=progress)
            if extraction.errors and on_error == "raise":
                i, why = min(extraction.errors.items())
                raise ImageError(f"Row {start + i}: {why}")
            rows += self._rows(extraction, len(chunk), fpr, anomaly_map)
        # dtypes are stated: text columns keep None, which pandas would else turn into NaN
        return pd.DataFrame(
            {name: pd.Series([r[name] for r in rows], dtype=kind) for name, kind in COLUMNS.items()}
        )

    def _rows(
        self, extraction: Extraction, n: int, fpr: float, with_map: bool
    ) -> list[dict[str, Any]]:
        nothing = dict.fromkeys(COLUMNS) | {"is_anomaly": False}
        rows = [nothing | {"error": extraction.errors.get(i)} for i in range(n)]
        if not extraction.kept:
            return rows
        scores, fre, nll, maps = self._score_features(extraction.features[0])
        p_values = np.stack(
            [c.calibration.p_value(scores[:, j]) for j, c in enumerate(self.classes)], axis=1
        )
        best = combine_classes(p_values, -nll)
        promise = np.array([c.calibration.effective_fpr(fpr) for c in self.classes])
        for row, (i, j) in enumerate(zip(extraction.kept, best, strict=True)):
            rows[i] = {
                "anomaly_score": float(scores[row, j]),
                "p_value": float(p_values[row, j]),
                "is_anomaly": bool(is_anomaly(p_values[row, j], promise[j])),
                "predicted_class": self.classes[j].name,
                "fre": float(fre[row, j]),
                "nll": float(nll[row, j]),
                "anomaly_map": None,
                "error": None,
            }
            if with_map:
                scale = self.classes[j].map_scale
                rows[i]["anomaly_map"] = _map_png(maps[j][row], scale, extraction.sizes[row])
        return rows

    @torch.inference_mode()
    def _score_features(
        self, features: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[torch.Tensor]]:
        """Give anomaly scores, FRE and NLL of shape (n, n_classes), and the maps by class."""
        x = features.reshape(len(features), -1)
        columns, maps = [], []
        for subspace in self._subspaces:
            coordinates, residual = subspace.split(x)
            fre_map = residual_map(residual, self.shape)
            fre = fre_map.sum(dim=(1, 2))
            nll = subspace.nll_of(coordinates, fre)
            score = (
                nll if self.options.score == "nll" else aggregate(fre_map, self.options.aggregate)
            )
            columns.append(torch.stack([score, fre, nll]))
            maps.append(fre_map)
        table = torch.stack(columns, dim=2).double().cpu().numpy()
        return table[0], table[1], table[2], maps


def _fit_class(
    name: str,
    x: np.ndarray,
    groups: Sequence[str] | None,
    options: Options,
    shape: tuple[int, int, int],
) -> ClassModel:
    level = float(options.pca_level)
    subspace = fit_subspace(x, level)
    folds = assign_folds(len(x), groups=groups, seed=options.seed)
    if folds.max() == 0:
        raise FitError("All its images are in one group: group_by must tell captures apart.")
    held_out = crossfit(x, folds, level)
    subspace = subspace.with_noise(held_out.noise_variance(subspace.n_components))
    fre_map = residual_map(held_out.residual, shape)
    if options.score == "nll":
        scores = held_out.nll(subspace)
    else:
        scores = aggregate(fre_map, options.aggregate)
    scale = float(np.quantile(fre_map, 0.999))
    return ClassModel(name, subspace, Calibration.of(scores), scale)


def _on_device(subspace: Subspace, device: torch.device) -> Subspace:
    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.asarray(array), dtype=torch.float32, device=device)

    return Subspace(
        tensor(subspace.mean),
        tensor(subspace.basis),
        tensor(subspace.variances),
        subspace.noise_variance,
        subspace.n_samples,
    )


def _map_png(fre_map: torch.Tensor, scale: float, size: tuple[int, int]) -> str:
    full = torch.nn.functional.interpolate(
        fre_map[None, None].float(), size, mode="bilinear", align_corners=False
    )
    level = (full[0, 0] * (128 / max(scale, math.ulp(1.0)))).clamp(0, 255).round()
    buffer = io.BytesIO()
    Image.fromarray(level.to(torch.uint8).cpu().numpy()).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
