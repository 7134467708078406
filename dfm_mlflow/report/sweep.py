"""The tables of a sweep: configurations as rows, the average first, then a column a category."""

from collections.abc import Mapping

import pandas as pd
from jinja2 import Environment

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sweep</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #8884; padding: .15rem .8rem .15rem 0; text-align: right; }
th:first-child { text-align: left; }
.best { font-weight: bold; }
</style>
</head>
<body>
<h1>Sweep</h1>
<p>Averages are over the categories that are there; the best of each column is bold.</p>
{% for name, table in tables.items() %}
<h2>{{ name }}</h2>
<div class="wide"><table>
<tr><th>configuration</th>{% for c in table.columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for label, row in table.iterrows() %}
<tr><th>{{ label }}</th>{% for c, value in row.items() %}
<td{% if value == table[c].max() %} class="best"{% endif %}>
{{- '%.3f' % value if value == value }}</td>
{%- endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
{% if failures %}<h2>Failed</h2>
{% for category, why in failures.items() %}<p>{{ category }}: {{ why }}</p>{% endfor %}{% endif %}
</body>
</html>
"""


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
    template = Environment(autoescape=True).from_string(_PAGE)
    return template.render(tables=tables, failures=failures)
