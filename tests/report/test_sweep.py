import re

import numpy as np
import pandas as pd

from dfm_mlflow.report.sweep import as_markdown, write_page

TABLE = pd.DataFrame(
    {"Avg": [0.75, 0.8], "cap": [0.9, np.nan], "a|b<i>": [0.6, 0.8]},
    index=["layers=layer2|layer3", "preset"],
)


def test_markdown_has_a_cell_for_each_number():
    head, rule, *rows = as_markdown(TABLE).splitlines()
    assert rule == "|---|---|---|---|"
    assert rows == [
        r"| layers=layer2\|layer3 | 0.750 | 0.900 | 0.600 |",
        "| preset | 0.800 |  | 0.800 |",
    ]
    assert head.startswith("| configuration | Avg | cap | ")


def test_the_page_marks_the_best_of_each_column_and_escapes_names():
    page = write_page({"image_auroc": TABLE}, {"nut": "<script>alert(1)</script>"})
    assert re.findall(r'class="best">([\d.]+)<', page) == ["0.900", "0.800", "0.800"]
    assert "<th>a|b&lt;i&gt;</th>" in page
    assert "<script" not in page
    assert "nut: &lt;script&gt;" in page
    assert "nan" not in page
    assert "Failed" not in write_page({"image_auroc": TABLE}, {})
