"""Make monitoring.png: Prometheus in Chromium while the lamp over a served model fades.

``python docs/screenshots_monitoring.py``, with the extra ``[dev]``, Prometheus and Chromium
installed. Everything else lands in a temporary folder.
"""

import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import dfm_mlflow  # noqa: E402
from docs.screenshots import save  # noqa: E402
from tests.browser import chromium  # noqa: E402
from tests.detectors import fit, pictures  # noqa: E402
from tests.servers import PARQUET, free_port, parquet, post  # noqa: E402
from tests.serving.test_monitored_server import prometheus, served  # noqa: E402

PANELS = (
    'dfm_flagged_ratio{window="100"}',
    "histogram_quantile(0.5, sum by (le) (rate(dfm_p_value_bucket[15s])))",
)
SECONDS = 50  # of good pictures, and again of darker ones


def main(folder: Path) -> None:
    """Serve, let the lamp fade, and look."""
    dfm_mlflow.save_model(fit({"stripes": pictures(120)}, fpr="0.02"), folder / "model")
    port, seed = free_port(), 1000
    keys = {"metrics_port": port, "log_to": folder / "log", "drift_alarm": 0.01}
    with (
        served(folder / "model", folder / "server.log", expected_flagged=0.04, **keys) as url,
        prometheus(port, folder) as ask,
        chromium() as browser,
    ):
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < 2 * SECONDS:
            fading = max(0.0, now - SECONDS) / SECONDS  # from none to ten grey levels
            status, _ = post(url, parquet(pictures(4, seed, shift=-round(10 * fading))), PARQUET)
            assert status == 200
            seed += 1
            time.sleep(0.3)
        graph = {}
        for i, expression in enumerate(PANELS):
            graph |= {f"g{i}.expr": expression, f"g{i}.tab": "0", f"g{i}.range_input": "2m"}
        page = browser.new_page()
        page.goto(f"{ask.url}/graph?{urllib.parse.urlencode(graph)}")
        page.locator(".rickshaw_graph svg path").nth(len(PANELS) - 1).wait_for()
        time.sleep(2)
        page.add_style_tag(content="nav { position: absolute !important }")
        page.evaluate("scrollTo(0, 0)")
        assert not page.locator(".alert-danger:visible").count()
        save(page.screenshot(full_page=True), "monitoring.png", 0.6)


if __name__ == "__main__":
    # the log may still be written when the server has ended
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        main(Path(name))
