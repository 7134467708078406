"""Scores and anomaly maps from Python, without a server.

    python examples/anomaly_maps.py MODEL OUTPUT PICTURE...

MODEL is any MLflow model URI, such as models:/dfm-bottle@production. Writes a PNG a picture into
the folder OUTPUT, which shows the picture (turned as its EXIF entry says) and, over it, what is
unusual; ``--show`` opens them.
"""

from pathlib import Path

import click
from PIL import Image

import dfm_mlflow


@click.command(help=__doc__)
@click.argument("model")
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.argument("pictures", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--show", is_flag=True, help="Open the pictures that are made.")
def main(model: str, output: Path, pictures: tuple[Path, ...], show: bool) -> None:
    """Score pictures and write their maps."""
    output.mkdir(parents=True, exist_ok=True)
    detector = dfm_mlflow.load_model(model)
    rows = detector.score(pictures, anomaly_map=True)
    for picture, row in zip(pictures, rows.itertuples(), strict=True):
        drawn = Image.fromarray(dfm_mlflow.overlay(picture.read_bytes(), row.anomaly_map))
        file = output / f"{picture.stem}.png"
        drawn.save(file)
        print(f"{picture}: p-value {row.p_value:.3f}, score {row.anomaly_score:.4g}; {file}")
        if show:
            drawn.show()


if __name__ == "__main__":
    main()
