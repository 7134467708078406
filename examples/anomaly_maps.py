"""Scores and anomaly maps from Python, without a server.

    python examples/anomaly_maps.py MODEL OUTPUT PICTURE...

MODEL is any MLflow model URI, such as models:/dfm-bottle@production. Writes a PNG a picture into
the folder OUTPUT: the picture, and beside it the map, whose grey level 128 is the most that good
pictures usually show.
"""

import base64
import io
from pathlib import Path

import click
import numpy as np
from PIL import Image

import dfm_mlflow


@click.command(help=__doc__)
@click.argument("model")
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.argument("pictures", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(model: str, output: Path, pictures: tuple[Path, ...]) -> None:
    """Score pictures and write their maps."""
    output.mkdir(parents=True, exist_ok=True)
    detector = dfm_mlflow.load_model(model)
    rows = detector.score([p.read_bytes() for p in pictures], anomaly_map=True)
    for picture, row in zip(pictures, rows.itertuples(), strict=True):
        heat = Image.open(io.BytesIO(base64.b64decode(row.anomaly_map))).convert("RGB")
        image = Image.open(picture).convert("RGB").resize(heat.size)
        Image.fromarray(np.hstack([image, heat])).save(output / f"{picture.stem}.png")
        print(f"{picture}: p-value {row.p_value:.3f}, score {row.anomaly_score:.4g}")


if __name__ == "__main__":
    main()
