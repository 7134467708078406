"""Do anomaly maps show what was flagged? Levels of the maps of real defects and good pictures.

    python benchmarks/maps.py --data FOLDER --categories magnetic_tile,pill --weights FILE

FOLDER holds one folder a category in the layout of MVTec AD. For each category the product is
fitted with its defaults and the test pictures are scored; printed is the share of the flagged
defects whose map exceeds grey level 128 somewhere, as it is drawn, and of the good test pictures.
``--odd`` adds, to the good pictures, so many defective ones of the test set: the scale must stay.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dfm_mlflow.config import Options
from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.data.item import GOOD
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.detector.maps import to_level
from dfm_mlflow.images.overlay import GOOD_LEVEL
from dfm_mlflow.jobs.fit import fit_pictures
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.scores.evaluation import score_items
from dfm_mlflow.scores.operating_points import flagged_at

RATES = (0.01, 0.05)


def largest_levels(detector: AnomalyDetector, seen: dict, predicted: list[str]) -> np.ndarray:
    """Largest level of the map of each picture, at no more than 512 pixels a side."""
    scales = {c.name: c.map_scale for c in detector.classes}
    levels = []
    for i, name in enumerate(predicted):
        shrink = max(1.0, max(seen[i].size) / 512)
        size = tuple(max(1, round(s / shrink)) for s in seen[i].size)
        levels.append(to_level(detector.full_map(seen[i].map, size), scales[name]).max())
    return np.array(levels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--categories", required=True)
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--odd", type=int, default=0)
    asked = parser.parse_args()
    print("category           good  fpr    flagged defects  above 128   good pictures above 128")
    for category in asked.categories.split(","):
        given = {"data": asked.data, "category": category, "weights": asked.weights}
        options = Options.parse(given).resolve()
        catalog = load_catalog(options.data, (category,))
        odd = [i for i in catalog.test if i.label != GOOD][: asked.odd]
        odd = [replace(item, split="train", label=GOOD, mask=None) for item in odd]
        tested = [i for i in catalog.test if i.path not in {o.path for o in odd}]
        catalog = replace(catalog, items=(*catalog.train, *odd, *tested))
        extractor, weights, options = build_extractor(options, catalog.train)
        detector = fit_pictures(options, catalog, extractor, weights).detector
        evaluation = score_items(detector, catalog.test)
        table = evaluation.table
        levels = largest_levels(detector, evaluation.seen, table["predicted_class"].tolist())
        bad = table["defective"].to_numpy(bool)
        for fpr in RATES:
            flagged = flagged_at(detector, table, fpr) & bad
            shown, good = (levels[flagged] > GOOD_LEVEL).mean(), (levels[~bad] > GOOD_LEVEL).mean()
            print(
                f"{category:18s} {len(catalog.train):4d}  {fpr:<6g} {flagged.sum():4d} of "
                f"{bad.sum():4d}     {shown:6.1%}      {good:6.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
