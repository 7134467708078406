"""The dashboard of docs/monitoring.md: Grafana's own types know it, and its metrics exist."""

import json
import re
from pathlib import Path

import pytest

from dfm_mlflow.serving.monitor.metrics import Metrics

DASHBOARD = Path(__file__).parent.parent / "docs/grafana-dashboard.json"
CONTRACT = {
    "dfm_pictures_total",
    "dfm_requests_total",
    "dfm_errors_total",
    "dfm_request_seconds",
    "dfm_flagged_ratio",
    "dfm_model_version",
    "dfm_alarm",
    "dfm_log_dropped_total",
}


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(DASHBOARD.read_text())


def same(given, read, place=""):
    """Everything that was given was read as what it is."""
    if isinstance(given, dict):
        for name, value in given.items():
            assert name in read, f"{place}/{name}"
            same(value, read[name], f"{place}/{name}")
    elif isinstance(given, list):
        assert len(given) == len(read), place
        for i, (one, other) in enumerate(zip(given, read, strict=True)):
            same(one, other, f"{place}/{i}")
    else:
        assert given == read, place


def test_grafana_s_schema_knows_every_key(dashboard):
    pytest.importorskip("grafana_foundation_sdk")
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    read = Dashboard.from_json(dashboard)
    same(dashboard, json.loads(JSONEncoder().encode(read)))
    assert {panel.type_val for panel in read.panels} == {"stat", "timeseries"}
    assert len({panel.id_val for panel in read.panels}) == len(read.panels)


def test_panels_ask_for_metrics_that_there_are(dashboard):
    metrics = Metrics(1)
    names = {s.name for m in metrics.collector().collect() for s in m.samples}
    names |= {m.name for m in metrics.collector().collect()}  # those that have no sample yet
    names |= {f"{m.name}_total" for m in metrics.collector().collect() if m.type == "counter"}
    asked = set(re.findall(r"\bdfm_\w+", json.dumps(dashboard["panels"])))
    assert asked <= names
    assert {name for name in CONTRACT if name in names} == CONTRACT


def test_panels_lie_beside_each_other(dashboard):
    taken = set()
    for panel in dashboard["panels"]:
        g = panel["gridPos"]
        assert g["x"] + g["w"] <= 24
        cells = {
            (x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])
        }
        assert not cells & taken
        taken |= cells
