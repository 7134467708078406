"""Make the pictures of this folder: the report, and the comparison of runs in MLflow's UI.

``python docs/screenshots.py``, with the extra ``[dev]`` and Chromium installed. The surfaces are
made here; nothing is fetched. Everything else lands in a temporary folder.
"""

import io
import json
import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from dfm_mlflow.config import Options  # noqa: E402
from dfm_mlflow.jobs.train import train  # noqa: E402
from tests.browser import chromium  # noqa: E402
from tests.servers import tracking_server  # noqa: E402

SIDE = 320
PLAN = {"train/good": 80, "test/good": 40, "test/scratch": 14, "test/dent": 12, "test/stain": 12}
RUNS = [
    {"backbone": "efficientnet_lite0"},
    {"backbone": "efficientnet_lite0", "preset": "anomalib"},
    {"backbone": "efficientnet_lite0", "pca_level": "0.9"},
    {"backbone": "resnet18", "weights": "random"},
    {"backbone": "resnet18", "weights": "random", "preset": "anomalib"},
]


def brushed_steel(rng: np.random.Generator) -> np.ndarray:
    """Grey levels of a brushed sheet: grooves along one direction, and uneven light."""
    grooves = gaussian_filter1d(rng.normal(size=(SIDE, SIDE)), 28, axis=1, mode="wrap")
    fine = gaussian_filter1d(rng.normal(size=(SIDE, SIDE)), 4, axis=1, mode="wrap")
    waves = gaussian_filter(rng.normal(size=(SIDE, SIDE)), 60, mode="wrap")
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    light = 22 * np.cos(1.4 * (y - rng.uniform(-0.2, 0.2))) - 8 * x
    return 138 + light + 80 * grooves + 11 * fine + 500 * waves + rng.normal(0, 2, (SIDE, SIDE))


def scratch(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A thin bent line, bright with a dark shadow beside it."""
    angle, length = rng.uniform(0, np.pi), rng.uniform(60, 170)
    along = np.linspace(-0.5, 0.5, 400) * length
    bend = rng.uniform(-0.002, 0.002) * along**2
    centre = rng.uniform(90, SIDE - 90, 2)
    line = np.zeros_like(image)
    ys = centre[0] + along * np.sin(angle) + bend * np.cos(angle)
    xs = centre[1] + along * np.cos(angle) - bend * np.sin(angle)
    line[ys.astype(int).clip(0, SIDE - 1), xs.astype(int).clip(0, SIDE - 1)] = 1
    wide = gaussian_filter(line, rng.uniform(0.7, 1.2))
    wide /= wide.max()
    depth = rng.uniform(25, 90)
    return image + depth * (wide - 0.8 * np.roll(wide, 2, 0)), wide > 0.1


def dent(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A shallow hollow that bends the grooves and catches the light on one side."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    cy, cx = rng.uniform(60, SIDE - 60, 2)
    radius = rng.uniform(12, 30)
    inside = np.exp(-(((y - cy) ** 2 + (x - cx) ** 2) / radius**2))
    slope = (y - cy) / radius * inside
    bent = map_coordinates(
        image, [y + 9 * slope, x + 5 * (x - cx) / radius * inside], order=1, mode="nearest"
    )
    return bent + rng.uniform(25, 75) * slope, inside > 0.3


def stain(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A dried drop: a faint film with a darker rim."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    cy, cx = rng.uniform(70, SIDE - 70, 2)
    angle = np.arctan2(y - cy, x - cx)
    radius = rng.uniform(18, 45) * (
        1
        + 0.15 * np.sin(3 * angle + rng.uniform(0, 6))
        + 0.08 * np.sin(5 * angle + rng.uniform(0, 6))
    )
    distance = np.hypot(y - cy, x - cx) / radius
    film = 1 / (1 + np.exp(14 * (distance - 1)))
    rim = np.exp(-(((distance - 1) / 0.09) ** 2))
    return image - rng.uniform(7, 26) * film - rng.uniform(8, 30) * rim, distance < 1.1


def write_surfaces(root: Path) -> Path:
    """Write one category in the layout of MVTec AD, with masks."""
    rng = np.random.default_rng(3)
    tint = np.array([0.97, 1.0, 1.04])
    for place, n in PLAN.items():
        label = place.split("/")[1]
        folder, masks = root / "steel" / place, root / "steel/ground_truth" / label
        folder.mkdir(parents=True)
        for i in range(n):
            image = brushed_steel(rng)
            if label != "good":
                image, mask = globals()[label](image, rng)
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{i:03d}_mask.png")
            pixels = (image[:, :, None] * tint).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return root


def main(folder: Path) -> None:
    """Train, and take the screenshots."""
    store = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(store)
    experiment = mlflow.create_experiment("brushed steel", (folder / "artifacts").as_uri())
    mlflow.set_experiment(experiment_id=experiment)
    given = {"data": str(write_surfaces(folder / "data")), "category": "steel", "fpr": "0.02"}
    runs = [train(Options.parse(given | more)).run_id for more in RUNS]
    report = mlflow.artifacts.download_artifacts(
        run_id=runs[0], artifact_path="report/report.html", dst_path=str(folder / "shown")
    )
    take_screenshots(folder, store, experiment, runs, report)


def take_screenshots(
    folder: Path, store: str, experiment: str, runs: list[str], report: str
) -> None:
    """Open the report, and the runs side by side in a real server."""
    ids = json.dumps(runs).replace(" ", "")
    with tracking_server(store, folder / "server.log") as url, chromium() as browser:
        page = browser.new_page()
        page.goto(f"file://{report}")
        looked_at = page.locator(".gallery").first.locator(":scope > *").first.bounding_box()
        height = looked_at["y"] + looked_at["height"] + 8
        whole = page.screenshot(
            full_page=True, clip={"x": 0, "y": 0, "width": 1280, "height": height}
        )
        save(whole, "report.png", 0.75)
        page.set_viewport_size({"width": 1280, "height": 1060})
        page.goto(f'{url}/#/compare-runs?runs={ids}&experiments=["{experiment}"]')
        page.locator(".js-plotly-plot .axis-title").first.wait_for()
        page.get_by_text("steel-resnet18-default").first.wait_for()
        page.mouse.move(0, 0)
        save(page.screenshot(), "compare.png")


def save(png: bytes, name: str, scale: float = 1) -> None:
    """Save a screenshot in few colours: a third of the bytes, and the same to the eye."""
    image = ImageOps.scale(Image.open(io.BytesIO(png)).convert("RGB"), scale)
    few = image.quantize(256, kmeans=3, dither=Image.Dither.NONE)
    few.save(HERE / name, optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
