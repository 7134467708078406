"""A real tracking server, and the system's Chromium to look at it: nothing is downloaded."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

from .servers import free_port

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# The assistant's panel opens over a third of the page at a first visit.
_QUIET = """try {
  localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
  localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
  localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
} catch { /* a sandboxed frame has no storage */ }"""


@contextmanager
def mlflow_server(folder, store):
    """``mlflow server`` over an existing store; gives its address."""
    port = free_port()
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store,
             "--artifacts-destination", str(folder / "artifacts"), "--workers", "1",
             "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )  # fmt: skip
    try:
        for _ in range(300):
            assert process.poll() is None, (folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@contextmanager
def chromium(**context):
    """Open a headless browser; gives a context for pages, as wide as a laptop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # --no-sandbox: Chromium's own sandbox needs what containers rarely grant
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            opened = browser.new_context(viewport={"width": 1280, "height": 800}, **context)
            opened.add_init_script(_QUIET)
            opened.set_default_timeout(60_000)
            yield opened
        finally:
            browser.close()
