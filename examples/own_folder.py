"""From a folder of good pictures to a served model.

    python examples/own_folder.py FOLDER [--backbone NAME] [--weights FILE] [--show]

Fits a detector to the pictures, registers it as ``dfm-<name of the folder>``, serves it, scores the
first picture over REST, and draws what the model finds least usual over it. The store is what
``MLFLOW_TRACKING_URI`` says, else MLflow's default. A notebook beside this file does the same.
"""

from pathlib import Path

import click
from PIL import Image
from served import served

from dfm_mlflow import client, overlay, train


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--backbone", default="auto", show_default=True)
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--show", is_flag=True, help="Open the picture that is made.")
def main(folder: Path, backbone: str, weights: str, show: bool) -> None:
    """Train, register, serve, score, draw."""
    name = folder.resolve().name
    result = train(data=folder, category=name, backbone=backbone, weights=weights)
    print(result.verdict.text)  # what the model decides, and what is wrong with that
    with served(result.registered_uri) as url:
        picture = Path(client.find_pictures([str(folder)])[0])
        row = client.score(url, [picture], anomaly_map=True).iloc[0]
    drawn = Image.fromarray(overlay(picture.read_bytes(), row["anomaly_map"]))
    drawn.save(f"{name}-map.png")
    print(f"{picture}: p-value {row['p_value']:.3f}, anomaly: {row['is_anomaly']}; {name}-map.png")
    if show:
        drawn.show()


if __name__ == "__main__":
    main()
