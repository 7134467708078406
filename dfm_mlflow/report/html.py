"""One self-contained HTML page about a run."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment
from PIL import Image

from dfm_mlflow.detector import AnomalyDetector
from dfm_mlflow.images.catalog import Catalog
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.report.figures import draw_curves, draw_histogram

_THUMBNAIL = 200
_TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(
    folder: Path,
    detector: AnomalyDetector,
    catalog: Catalog,
    table: pd.DataFrame,
    metrics: dict[str, float],
) -> None:
    """Write ``report.html`` and its pictures.

    Parameters
    ----------
    folder : Path
        Created.
    detector : AnomalyDetector
    catalog : Catalog
    table : DataFrame
        Scored test set, empty where there is none.
    metrics : dict of str to float
    """
    folder.mkdir(parents=True)
    read = table[table["error"].isna()]
    held_out = np.concatenate([c.calibration.scores for c in detector.classes])
    figures = ["scores.png"]
    draw_histogram(folder / "scores.png", held_out, read, detector.thresholds())
    if "image_auroc" in metrics:
        figures.append("curves.png")
        draw_curves(folder / "curves.png", read)
    page = (
        Environment(autoescape=True)
        .from_string(_TEMPLATE.read_text())
        .render(
            title=f"{catalog.name}: {detector.options.backbone}",
            verdict=_verdict(metrics),
            calibration=detector.calibration_sentence(),
            metrics=sorted(metrics.items()),
            options=sorted(detector.options.model_dump().items()),
            provenance={"data": catalog.source, "data digest": catalog.digest, **detector.weights},
            figures=[_data_url((folder / name).read_bytes()) for name in figures],
            gallery=_gallery(detector, read),
        )
    )
    (folder / "report.html").write_text(page)


def _verdict(metrics: dict[str, float]) -> str:
    if "image_auroc" not in metrics:
        return f"Fitted to {metrics['n_train']:.0f} good images; there are no defects to test on."
    sentence = f"Image AUROC {metrics['image_auroc']:.3f} on {metrics['n_test']:.0f} test images"
    if "recall" in metrics and "false_positive_rate" in metrics:
        sentence += (
            f"; at the threshold {metrics['recall']:.1%} of the defects are found and "
            f"{metrics['false_positive_rate']:.1%} of the good images are flagged"
        )
    return sentence + "."


def _gallery(detector: AnomalyDetector, table: pd.DataFrame, most: int = 4) -> list[dict]:
    """Choose the worst misses, worst false alarms and clearest hits, with their maps."""
    if table.empty:
        return []
    flagged, bad = table["is_anomaly"].astype(bool), table["defective"]
    chosen = {
        "Worst misses": table[bad & ~flagged].sort_values("anomaly_score"),
        "Worst false alarms": table[~bad & flagged].sort_values("anomaly_score", ascending=False),
        "Clearest hits": table[bad & flagged].sort_values("anomaly_score", ascending=False),
    }
    return [
        {"title": title, "pictures": [_picture(detector, row) for _, row in rows[:most].iterrows()]}
        for title, rows in chosen.items()
        if len(rows)
    ]


def _picture(detector: AnomalyDetector, row: pd.Series) -> dict:
    data = Path(row["path"]).read_bytes()
    coded = detector.score([data], anomaly_map=True)["anomaly_map"][0]
    level = Image.open(io.BytesIO(base64.b64decode(coded)))
    image = Image.fromarray(decode_image(data))
    for picture in (image, level):
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    red = Image.new("RGB", image.size, (220, 30, 30))
    # Level 128 is the most that held-out good positions show: below it the picture stays calm.
    opacity = level.resize(image.size).point(lambda v: max(0, min(200, (v - 100) * 2)))
    overlay = Image.composite(red, image, opacity)
    return {
        "image": _data_url(_jpeg(image)),
        "overlay": _data_url(_jpeg(overlay)),
        "name": f"{Path(row['path']).parent.name}/{Path(row['path']).name}",
        "score": row["anomaly_score"],
        "p_value": row["p_value"],
    }


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _data_url(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
