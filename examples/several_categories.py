"""One class-conditional model over several categories.

    python examples/several_categories.py DATA a,b [--weights FILE]

DATA holds a folder in MVTec's layout for each category. A picture is judged by the class that
it is likeliest in, and has the p-value of this one.
"""

import click
import mlflow
import pandas as pd

from dfm_mlflow import load_catalog, train


@click.command(help=__doc__)
@click.argument("data")
@click.argument("categories")
@click.option("--weights", default="imagenet", show_default=True)
def main(data: str, categories: str, weights: str) -> None:
    """Train one model, and count which class the test pictures are given."""
    result = train(data=data, category=categories, weights=weights)
    print(f"image AUROC {result.metrics['image_auroc']:.3f}, model {result.registered_uri}")

    test = load_catalog(data, categories.split(",")).test
    model = mlflow.pyfunc.load_model(result.registered_uri)  # any MLflow host loads it like this
    rows = model.predict(pd.DataFrame({"image": [item.path.read_bytes() for item in test]}))
    print(
        pd.crosstab(
            pd.Series([item.category for item in test], name="category"), rows["predicted_class"]
        )
    )


if __name__ == "__main__":
    main()
