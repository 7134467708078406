"""One self-contained HTML page about a run."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment
from PIL import Image

from dfm_mlflow.detector import AnomalyDetector
from dfm_mlflow.evaluation import Evaluation, metric_name
from dfm_mlflow.images import storage
from dfm_mlflow.images.catalog import GOOD, Catalog
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.network.maps import overlay, to_level, to_png
from dfm_mlflow.report.figures import draw_curves, draw_histogram, draw_p_values

_THUMBNAIL = 200
_TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(
    folder: Path,
    detector: AnomalyDetector,
    catalog: Catalog,
    evaluation: Evaluation,
    metrics: dict[str, float],
    sentences: list[str],
) -> None:
    """Write ``report.html`` and its pictures.

    Parameters
    ----------
    folder : Path
        Created.
    detector : AnomalyDetector
    catalog : Catalog
    evaluation : Evaluation
        Scored pictures, empty where there are none.
    metrics : dict of str to float
    sentences : list of str
        What calibration and measurement say in words.
    """
    folder.mkdir(parents=True)
    read = evaluation.table[evaluation.table["error"].isna()]
    held_out = np.concatenate([c.calibration.scores for c in detector.classes])
    figures = ["scores.png"]
    draw_histogram(folder / "scores.png", held_out, read, detector.thresholds())
    if "image_auroc" in metrics:
        figures.append("curves.png")
        draw_curves(folder / "curves.png", read)
    if read["label"].isin([GOOD, "unlabelled"]).any():
        figures.append("p_values.png")
        draw_p_values(folder / "p_values.png", read, detector.effective_fpr())
    page = (
        Environment(autoescape=True)
        .from_string(_TEMPLATE.read_text())
        .render(
            title=f"{catalog.name}: {detector.options.backbone}",
            verdict=_verdict(metrics),
            sentences=sentences,
            metrics=sorted(metrics.items()),
            options=sorted(detector.options.model_dump().items()),
            provenance={"data": catalog.source, "data digest": catalog.digest, **detector.weights},
            figures=[_data_url((folder / name).read_bytes()) for name in figures],
            gallery=_gallery(detector, evaluation, folder / "overlays"),
        )
    )
    (folder / "report.html").write_text(page)


def _verdict(metrics: dict[str, float]) -> str:
    if "image_auroc" not in metrics:
        if "n_train" in metrics:
            return f"Fitted to {metrics['n_train']:.0f} good images; no defects to test on."
        return f"{metrics.get('drift_flagged', 0):.1%} of the images are flagged."
    sentence = f"Image AUROC {metrics['image_auroc']:.3f} on {metrics['n_test']:.0f} test images"
    if "recall" in metrics and "false_positive_rate" in metrics:
        sentence += (
            f"; at the threshold {metrics['recall']:.1%} of the defects are found and "
            f"{metrics['false_positive_rate']:.1%} of the good images are flagged"
        )
    return sentence + "."


def _gallery(
    detector: AnomalyDetector, evaluation: Evaluation, folder: Path, most: int = 4
) -> list[dict]:
    """Choose the worst misses, worst false alarms and clearest hits, with their maps.

    The overlays are written to a folder too, as PNG at the size of their pictures.
    """
    table = evaluation.table[evaluation.table["error"].isna()]
    if table.empty:
        return []
    flagged, falling = table["is_anomaly"].astype(bool), {"by": "anomaly_score", "ascending": False}
    if table["defective"].isna().all():
        chosen = {"Most unusual pictures": table.sort_values(**falling)}
    else:
        bad = table["defective"].astype(bool)
        chosen = {
            "Worst misses": table[bad & ~flagged].sort_values("anomaly_score"),
            "Worst false alarms": table[~bad & flagged].sort_values(**falling),
            "Clearest hits": table[bad & flagged].sort_values(**falling),
            "Typical good pictures": _middle(table[~bad & ~flagged].sort_values(**falling), most),
        }
    return [
        {
            "title": title,
            "pictures": [_picture(detector, evaluation, i, folder) for i in rows.index[:most]],
        }
        for title, rows in chosen.items()
        if len(rows)
    ]


def _middle(table: pd.DataFrame, most: int) -> pd.DataFrame:
    start = max(0, (len(table) - most) // 2)
    return table.iloc[start : start + most]


def _picture(detector: AnomalyDetector, evaluation: Evaluation, i: int, folder: Path) -> dict:
    row, seen = evaluation.table.loc[i], evaluation.seen[i]
    pixels = decode_image(storage.read(row["path"]))
    classes = [c.name for c in detector.classes]
    scale = detector.classes[classes.index(row["predicted_class"])].map_scale
    marked = overlay(pixels, to_level(detector.full_map(seen.map, seen.size), scale))
    folder.mkdir(exist_ok=True)
    name = f"{i:05d}_{metric_name(row['label'])}_{Path(row['path']).stem}.png"
    (folder / name).write_bytes(to_png(marked))
    return {
        "image": _data_url(_thumbnail(pixels)),
        "overlay": _data_url(_thumbnail(marked)),
        "name": f"{Path(row['path']).parent.name}/{Path(row['path']).name}",
        "score": row["anomaly_score"],
        "p_value": row["p_value"],
    }


def _thumbnail(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return _jpeg(image)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _data_url(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
