"""The system's Chromium: nothing is downloaded."""

import shutil
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# The assistant's panel opens over a third of the page at a first visit.
_QUIET = """try {
  localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
  localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
  localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
} catch { /* a sandboxed frame has no storage */ }"""


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
