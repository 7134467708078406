"""What tuning without a single defect gains and costs, beside `preset=default`.

    python benchmarks/tune.py mono poly --weights resnet18.safetensors
    python benchmarks/tune.py magnetic_tile --data FOLDER --weights resnet18.safetensors

One row a category: image AUROC of `train` and of `tune`, the lead on synthetic defects that the
choice rests on, and the seconds that both take with everything that they log. Runs go to a
temporary MLflow store; features are not cached. `--sweep` also measures 24 configurations of one
category in a sweep beside one training run. Prints Markdown.
"""

import os
import tempfile
import time
from pathlib import Path

import click
import mlflow

from dfm_mlflow.config import Options, SweepOptions

GRID = "pca_level=0.9,0.97,0.99;normalize=global,position;aggregate=sum,top:0.02,top:0.05,top:0.1"


@click.command()
@click.argument("categories", nargs=-1, required=True)
@click.option("--data", default="auto", show_default=True)
@click.option("--weights", default="imagenet", show_default=True)
@click.option("--backbone", default="auto", show_default=True)
@click.option("--seed", default="42", show_default=True)
@click.option("--sweep", "with_sweep", is_flag=True, help="Measure sweeps instead.")
def main(categories, data, weights, backbone, seed, with_sweep):
    """Print the table."""
    weights = str(Path(weights).absolute()) if Path(weights).is_file() else weights
    data = str(Path(data).absolute()) if Path(data).exists() else data
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        given = {
            "data": data,
            "weights": weights,
            "backbone": backbone,
            "cache": "false",
            "seed": seed,
            "registered_model": "none",
        }
        if with_sweep:
            sweeps(categories, given)
        else:
            tunes(categories, given)


def tunes(categories: tuple[str, ...], given: dict[str, str]) -> None:
    """Print one row a category."""
    from dfm_mlflow.jobs.train import train
    from dfm_mlflow.jobs.tune import tune

    click.echo(
        "| category | default | tuned | difference | synthetic, default | synthetic, chosen "
        "| train, s | tune, s | ratio | chosen |"
    )
    click.echo("|---" * 10 + "|")
    for category in categories:
        options = Options.parse(given | {"category": category})
        plain, plain_seconds = timed(lambda: train(options))  # noqa: B023
        tuned, tune_seconds = timed(lambda: tune(options))  # noqa: B023
        areas = [r.metrics.get("image_auroc", float("nan")) for r in (plain, tuned.trained)]
        found, first = tuned.scored[tuned.choice.index], tuned.scored[0]
        chosen = ", ".join(
            getattr(tuned.trained.detector.options, name) for name in ("normalize", "augment")
        )
        click.echo(
            f"| {category} | {areas[0]:.4f} | {areas[1]:.4f} | {areas[1] - areas[0]:+.4f} "
            f"| {first.auroc:.4f} | {found.auroc:.4f} | {plain_seconds:.1f} | {tune_seconds:.1f} "
            f"| {tune_seconds / plain_seconds:.2f} | {chosen} |"
        )
        click.echo(tuned.choice.sentence, err=True)


def sweeps(categories: tuple[str, ...], given: dict[str, str]) -> None:
    """Print what 24 configurations cost beside one training run."""
    from dfm_mlflow.jobs.sweep import sweep
    from dfm_mlflow.jobs.train import train

    click.echo("| category | train, s | sweep of 24, s | ratio |")
    click.echo("|---" * 4 + "|")
    for category in categories:
        options = given | {"category": category}
        _, plain = timed(lambda: train(Options.parse(options)))  # noqa: B023
        _, many = timed(lambda: sweep(SweepOptions.parse(options | {"grid": GRID})))  # noqa: B023
        click.echo(f"| {category} | {plain:.1f} | {many:.1f} | {many / plain:.2f} |")


def timed(work):
    """Give the result and the seconds."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


if __name__ == "__main__":
    main()
