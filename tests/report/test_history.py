import re

from dfm_mlflow.registry.history import as_dicts, record_of
from dfm_mlflow.report.history import history_page


def test_a_page_has_a_row_and_a_point_a_version_and_asks_for_nothing():
    records = [
        record_of("1", "2026-11-27T03:00:00+00:00", [], {"recall": 0.5, "n_train": 9.0}, {}),
        record_of("2", "x", ["production"], {}, {"dfm.update.good": "3", "dfm.update.bad": "2"}),
        record_of("3", "x", [], {"recall": 1.0, "n_train": 12.0}, {"dfm.update.by": "<b>ann</b>"}),
    ]
    page = history_page("dfm-<caps>", as_dicts(records), "It does & <well>.")
    assert page.count("<tr><td>") == 3
    recall = re.search(r'aria-label="Recall over versions">(.*?)</svg>', page, re.S)[1]
    (first, last) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', recall)
    assert float(first[0]) < float(last[0])
    assert float(first[1]) > float(last[1])  # higher is better
    assert "Threshold" not in page.split("<table>")[0]  # nobody knows one
    assert "1 update learned from 5 verdicts: 3 good, 2 bad, 0 unsure." in page
    assert "&lt;b&gt;ann" in page
    assert "dfm-&lt;caps&gt;" in page
    assert not re.search(r"(src|href)=", page)
