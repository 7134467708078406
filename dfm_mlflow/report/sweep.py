"""The tables of a sweep: configurations as rows, the average first, then a column a category."""

from collections.abc import Mapping

import pandas as pd

from dfm_mlflow.report.pages import PAGES


def as_markdown(table: pd.DataFrame) -> str:
    """Write a `table` of a sweep in Markdown, with three decimals."""
    lines = [
        "| configuration | " + " | ".join(table.columns) + " |",
        "|---" * (1 + len(table.columns)) + "|",
    ]
    for label, row in table.iterrows():
        cells = ["" if pd.isna(value) else f"{value:.3f}" for value in row]
        lines.append(f"| {str(label).replace('|', chr(92) + '|')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_page(tables: Mapping[str, pd.DataFrame], failures: Mapping[str, str]) -> str:
    """Write `tables`, and `failures` by category, as one HTML page that needs nothing else."""
    return PAGES.get_template("sweep.html.j2").render(tables=tables, failures=failures)
