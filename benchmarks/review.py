"""How large the review page is, and how long Chromium takes to open it.

    python benchmarks/review.py [--pictures 500] [--side 1024]

Pictures of noise, which no format makes smaller, are the worst case; those of a real line are a
fraction of it. The time is from the navigation to the first picture on the screen, of the file.
"""

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfm_mlflow.images.overlay import layer
from dfm_mlflow.report import review as page
from dfm_mlflow.scores.to_review import FLAGGED, Case
from tests.browser import chromium


def shots(n: int, side: int) -> list[page.Shot]:
    """Pictures of noise with maps of noise."""
    rng = np.random.default_rng(0)
    budget = min(page._MOST, page._PICTURES // n)
    found = []
    for i in range(n):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        level = np.asarray(
            Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).resize(
                (page._MAP, page._MAP), Image.Resampling.BICUBIC
            )
        )
        drawn = page._encoded(Image.fromarray(layer(level)), "WEBP", 80)
        texts = [page._picture(pixels, budget - len(drawn)), drawn]
        thumb = page._encoded(Image.fromarray(page.shrunk(pixels, page._THUMB)), "JPEG", 70)
        case = Case(f"/line/{i:05d}.png", FLAGGED, "noise", 2.0, 0.01, "", f"{i:064x}")
        found.append(page.Shot(case, *map(page._text, [*texts, thumb]), own_scale=False))
    return found


def main() -> None:
    """Make the page, open it five times, print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--side", type=int, default=1024)
    given = parser.parse_args()
    start = time.perf_counter()
    text = page.review_page(
        shots(given.pictures, given.side),
        model="models:/dfm-noise/1",
        who="ann",
        defects=["hole"],
        said={},
        categories=("noise",),
        verdicts="verdicts.csv",
    )
    made = time.perf_counter() - start
    buffer = io.BytesIO(text.encode())
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        path = Path(folder, "review.html")
        path.write_bytes(buffer.getvalue())
        times = []
        for _ in range(5):
            tab = browser.new_page()
            start = time.perf_counter()
            tab.goto(path.as_uri(), wait_until="commit")
            tab.wait_for_selector("html[data-ready=yes][data-shown=yes]")
            times.append(time.perf_counter() - start)
            tab.close()
    print("| pictures | side | made in s | page in MB | opens in s: median | slowest of 5 |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {given.pictures} | {given.side} | {made:.1f} | {len(buffer.getvalue()) / 1e6:.1f} | "
        f"{np.median(times):.2f} | {max(times):.2f} |"
    )


if __name__ == "__main__":
    main()
