"""A real server and a real browser: what somebody sees who opens MLflow's UI after a run."""

import json
import re
from urllib.parse import quote

import mlflow
import pytest

from dfm_mlflow.config import EvaluateOptions
from dfm_mlflow.jobs.evaluate import evaluate

from ..browser import CHROMIUM, chromium
from ..drawing import drawn
from ..servers import tracking_server

pytest.importorskip("playwright", reason="the browser's driver is not installed")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

PATIENCE = 60_000  # ms; a busy machine is slow, and nothing here waits longer than it must
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(18, 22, 27)"


@pytest.fixture(scope="module")
def judged(zoo):
    """The run that evaluated a model that takes holes for good."""
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(zoo.uri)
    options = {"model": zoo.runs["bad"].model_uri, "data": zoo.clean}
    with drawn():
        run_id = evaluate(EvaluateOptions.parse(options)).run_id
    yield run_id
    mlflow.set_tracking_uri(previous)


@pytest.fixture(scope="module")
def ui(zoo, judged):
    with tracking_server(zoo.uri, zoo.root / "server.log") as url, chromium() as browser:
        yield url, browser


@pytest.fixture
def page(ui):
    opened = ui[1].new_page()
    yield opened
    opened.close()


def expect(locator):
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    return expect(locator)


def loaded(images):
    script = "all => all.length > 0 && all.every(i => i.complete && i.naturalWidth > 0)"
    return images.evaluate_all(script)


def test_the_report_in_the_artifact_viewer(ui, page, judged):
    url, _ = ui
    elsewhere = []
    page.on("request", lambda r: elsewhere.append((r.frame.url, r.url)))
    page.goto(f"{url}/#/experiments/0/runs/{judged}/artifacts/report/report.html")
    frame = page.frame_locator("iframe.mlflow-html-iframe")
    expect(frame.locator(".verdict")).to_contain_text(re.compile(r"finds \d+ of 6 defective"))
    assert "allow-same-origin" not in page.locator("iframe").get_attribute("sandbox")
    expect(frame.locator("svg")).to_have_count(6)
    assert loaded(frame.locator("figure img"))
    expect(frame.locator("h2", has_text="Worst misses")).to_be_visible()
    expect(frame.locator("td", has_text=judged)).to_be_visible()
    body = frame.locator("body")
    assert body.evaluate("b => b.scrollWidth <= b.ownerDocument.documentElement.clientWidth")
    assert body.evaluate("b => getComputedStyle(b).backgroundColor") == LIGHT
    page.emulate_media(color_scheme="dark")
    assert body.evaluate("b => getComputedStyle(b).backgroundColor") == DARK
    assert frame.locator("svg text").first.evaluate(
        "t => getComputedStyle(t).fill == getComputedStyle(document.body).color"
    )
    asked_by_report = [to for by, to in elsewhere if by.startswith("blob:")]
    assert all(to.startswith(("data:", "blob:")) for to in asked_by_report)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_alone(ui, page, zoo, width):
    for kind in ("good", "untested"):
        path = mlflow.artifacts.download_artifacts(
            run_id=zoo.runs[kind].run_id, artifact_path="report/report.html", tracking_uri=zoo.uri
        )
        page.set_viewport_size({"width": width, "height": 800})
        asked = []
        page.on("request", lambda r, asked=asked: asked.append(r.url))
        page.goto(f"file://{path}")
        expect(page.locator(".verdict")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert all(u.startswith(("file:", "data:")) for u in asked)


def test_search_and_names_on_the_runs_page(ui, page):
    url, _ = ui
    search = "metrics.image_auroc > 0.95 and params.resolved_backbone = 'resnet18'"
    page.goto(f"{url}/#/experiments/0/runs?searchFilter={quote(search)}")
    expect(page.get_by_text("matching run").first).to_contain_text("3")  # not bad, not untested
    large = "stripes-resnet18-default-data0-layers=layer2,layer3,layer4-image_size=160"
    expect(page.get_by_role("link", name=large)).to_be_visible()
    expect(page.get_by_text("stripes (").first).to_be_visible()  # the data and their digest


def test_compare_view_and_parallel_coordinates(ui, page, zoo):
    url, _ = ui
    ids = json.dumps([zoo.runs[kind].run_id for kind in ("good", "twin", "large")])
    page.goto(f'{url}/#/compare-runs?runs={ids}&experiments=["0"]')
    expect(page.get_by_text("Comparing 3 Runs from 1 Experiment")).to_be_visible()
    plot = page.locator(".js-plotly-plot").first
    for axis in ("resolved_image_size", "image_auroc"):
        expect(plot.locator(".axis-title", has_text=axis).first).to_be_visible()
    for name in ("resolved_layers", "weights_sha256", "false_negative_rate", "image_auroc/hole"):
        expect(page.get_by_text(name, exact=True).first).to_be_attached()


def test_the_curves_are_plotted(ui, page, judged):
    url, _ = ui
    page.goto(f"{url}/#/experiments/0/runs/{judged}/model-metrics")
    for name in ("roc_true_positive_rate", "precision_at_recall", "measured_false_positive_rate"):
        expect(page.get_by_text(name).first).to_be_visible()
    expect(page.locator(".js-plotly-plot .scatterlayer path.js-line").first).to_be_visible()


def test_the_models_page_shows_metrics_with_their_dataset(ui, page, zoo):
    url, _ = ui
    model_id = zoo.runs["good"].model_uri.removeprefix("models:/")
    page.goto(f"{url}/#/experiments/0/models/{model_id}")
    rows = page.get_by_role("row").filter(has=page.get_by_text("image_auroc", exact=True))
    row = rows.filter(has_text="stripes-resnet18-default")  # an evaluation may have one of its own
    expect(row).to_contain_text("stripes (#")


def test_the_table_of_worst_cases_shows_pictures(ui, page, judged):
    url, _ = ui
    page.goto(f"{url}/#/experiments/0/runs/{judged}/artifacts/worst_cases.json")
    expect(page.get_by_role("columnheader", name="anomaly_map")).to_be_visible()
    expect(page.get_by_text("miss", exact=True).first).to_be_visible()
    page.wait_for_function("[...document.images].filter(i => i.naturalWidth > 60).length >= 2")
