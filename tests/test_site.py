"""The site is built from docs/, strictly, and asks nothing of other servers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason="the extra [docs] is not installed")

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_site_is_built_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = {p.stem for p in tmp_path.glob("*.html")}
    assert {p.stem for p in (ROOT / "docs").glob("*.md")} <= pages
    assert {"SECURITY", "ARCHITECTURE", "CHANGELOG"} <= pages
    start = (tmp_path / "index.html").read_text()
    fetched = re.findall(r'<(?:script|img)[^>]+src="(https?:[^"]+)"', start)
    fetched += re.findall(r'<link[^>]+rel="stylesheet"[^>]+href="(https?:[^"]+)"', start)
    assert fetched == []
