"""From a folder of good pictures to a served model.

    python examples/own_folder.py FOLDER [--weights FILE]

Fits a detector to the pictures, registers it as ``dfm-<name of the folder>``, serves it and scores
the first picture over REST. The store is what ``MLFLOW_TRACKING_URI`` says, else MLflow's default.
"""

from pathlib import Path

import click
from served import served

from dfm_mlflow import Options, client, train


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--weights", default="imagenet", show_default=True)
def main(folder: Path, weights: str) -> None:
    """Train, register, serve, score."""
    result = train(Options(data=str(folder), category=folder.resolve().name, weights=weights))
    for sentence in result.sentences:  # what the threshold promises
        print(sentence)
    with served(result.registered_uri) as url:
        picture = client.find_pictures([str(folder)])[0]
        row = client.score(url, [picture]).iloc[0]
    print(f"{picture}: p-value {row.p_value:.3f}, anomaly: {row.is_anomaly}")


if __name__ == "__main__":
    main()
