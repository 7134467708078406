"""The pictures that a report shows: what is missed, flagged for nothing, and found."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlflow
import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import binary_dilation
from torch import Tensor

from dfm_mlflow.data.catalog import Catalog
from dfm_mlflow.data.item import Mask
from dfm_mlflow.data.masks import fitted_mask
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.maps import to_level
from dfm_mlflow.errors import DfmError
from dfm_mlflow.images.overlay import GOOD_LEVEL, PNG_LEVEL, tint
from dfm_mlflow.scores.evaluation import Evaluation, counted, metric_name
from dfm_mlflow.storage import store

MOST, MOST_GOOD = 6, 3  # pictures of each kind
_SIDE = 1024  # longest side of an overlay
_OUTLINE = (0, 130, 255)  # of a mask; no colour of the map
MISSES, FALSE_ALARMS, UNUSUAL = "Worst misses", "Worst false alarms", "Most unusual pictures"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Shown:
    """One picture of the gallery.

    Shapes: picture, marked (H, W, 3) uint8.
    """

    row: pd.Series  # of the evaluation's table; its name is the picture's number
    picture: np.ndarray
    marked: np.ndarray
    outlined: bool  # whether there is a mask
    # Whether the map is drawn on a scale of its own, from its median to its largest value, since on
    # that of all pictures it is calm.
    own_scale: bool

    @property
    def name(self) -> str:
        """The last two parts of the path."""
        return "/".join(re.split(r"[/\\]", self.row["path"])[-2:])

    @property
    def file(self) -> str:
        """Name of a file for it, of letters that any store takes."""
        parts = (metric_name(self.row["label"]), metric_name(Path(self.row["path"]).stem))
        return f"{self.row.name:05d}_" + "_".join(part[:60] for part in parts) + ".png"

    def write(self, folder: Path) -> None:
        """Write the marked picture into ``overlays`` of the report's `folder`."""
        (folder / "overlays").mkdir(exist_ok=True)
        path = folder / "overlays" / self.file
        Image.fromarray(self.marked).save(path, compress_level=PNG_LEVEL)


def build_gallery(
    detector: AnomalyDetector, catalog: Catalog, evaluation: Evaluation
) -> dict[str, list[Shown]]:
    """Choose pictures and draw their maps."""
    masks = {str(item.path): item.mask for item in catalog.items}
    gallery: dict[str, list[Shown]] = {}
    for title, rows in _choose(counted(evaluation.table)).items():
        gallery[title] = []
        for i, row in rows.iterrows():
            try:
                values = evaluation.seen[cast(int, i)].map
                shown = draw_case(detector, row, values, masks.get(row["path"]))
            except (DfmError, OSError) as error:  # it was there a minute ago
                _logger.warning("%s is not in the report: %s", row["path"], error)
            else:
                gallery[title].append(shown)
    return gallery


def _choose(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    if table.empty:
        return {}
    # By p-value first: scores of different classes are not on one scale.
    unusual = table.sort_values(["p_value", "anomaly_score"], ascending=[True, False])
    if table["defective"].isna().all():
        return {UNUSUAL: unusual.head(MOST)}
    flagged, bad = unusual["is_anomaly"].astype(bool), unusual["defective"].astype(bool)
    chosen = {}
    if bad.any():
        chosen[MISSES] = unusual[bad & ~flagged][::-1].head(MOST)
    if not bad.all():
        chosen[FALSE_ALARMS] = unusual[~bad & flagged].head(MOST)
    chosen["Typical hits"] = _typical(unusual[bad & flagged], MOST)
    chosen["Typical good pictures"] = _typical(unusual[~bad & ~flagged], MOST_GOOD)
    return {t: rows for t, rows in chosen.items() if len(rows) or t in (MISSES, FALSE_ALARMS)}


def _typical(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Take the middle one of each label in turn, then its neighbours."""
    kinds = [rows["category"], rows["label"]]
    of_kind = rows.groupby(kinds)["path"]
    off = (of_kind.cumcount() - (of_kind.transform("size") - 1) / 2).abs()
    turn = off.groupby(kinds).rank(method="first").sort_values(kind="stable")
    return rows.loc[turn.index[:most]]


def draw_case(
    detector: AnomalyDetector,
    row: pd.Series,
    values: Tensor,
    mask: Mask | None = None,
) -> Shown:
    """Read a picture and draw its map over it.

    Shapes: values (h, w).
    """
    whole = detector.extractor.decoder.decode(store.read(row["path"]))[0]
    pixels = shrunk(whole, _SIDE)
    size = pixels.shape[:2]
    level, own_scale = level_of(detector, values, (size[0], size[1]), row["predicted_class"])
    marked = tint(pixels, level)
    if mask is not None:
        try:
            marked = outline(marked, fitted_mask(mask, whole.shape[:2], _source(row["path"])))
        except DfmError:  # the metrics have named it
            mask = None
    return Shown(row, pixels, marked, mask is not None, own_scale)


def level_of(
    detector: AnomalyDetector, values: Tensor, size: tuple[int, int], category: str
) -> tuple[np.ndarray, bool]:
    """Give the levels of a map that is to be seen, whatever its scale.

    Shapes: values (h, w); gives level size, uint8.
    """
    scale = detector.classes[detector.class_names.index(category)].map_scale
    full = detector.full_map(values, size)
    level = to_level(full, scale)
    own_scale = int(level.max()) < GOOD_LEVEL
    if own_scale:  # calm on the common scale, and yet the score comes from somewhere
        full = full - full.median()
        level = to_level(full, float(full.max()) * GOOD_LEVEL / 255)
    return level, own_scale


def _source(path: str) -> Path | store.S3Object:
    return store.find(path) if path.startswith(store.SCHEME) else Path(path)


def outline(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw the border of a mask, of any size, just around what it marks.

    Shapes: pixels (H, W, 3) uint8; mask (h, w) bool; gives (H, W, 3) uint8.
    """
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    # averaged, so that the smallest spot is still there
    small = np.asarray(grey.resize(pixels.shape[1::-1], Image.Resampling.BOX)) > 0
    width = max(1, round(max(small.shape) / 160))
    marked = pixels.copy()
    marked[binary_dilation(small, iterations=width) & ~small] = _OUTLINE
    return marked


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """Shrink a picture, its proportions kept; a smaller one stays as it is.

    Shapes: pixels (H, W, 3) uint8; gives (h, w, 3) uint8.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    return np.asarray(image)


def worst_cases(gallery: dict[str, list[Shown]], side: int = 256) -> pd.DataFrame:
    """Table for :func:`mlflow.log_table`: the misses and false alarms, or the most unusual ones."""
    names = {MISSES: "miss", FALSE_ALARMS: "false alarm", UNUSUAL: "unusual"}
    rows = [
        {
            "case": names[title],
            "picture": mlflow.Image(shrunk(case.picture, side)),
            "anomaly_map": mlflow.Image(shrunk(case.marked, side)),
        }
        | {k: case.row[k] for k in ("label", "anomaly_score", "p_value", "category", "path")}
        | {"own_scale": case.own_scale}
        for title, cases in gallery.items()
        if title in names
        for case in cases
    ]
    return pd.DataFrame(rows)
