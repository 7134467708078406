"""What line-scan pictures of 16384x4096 pixels cost: memory and time of a training and of scoring.

    python benchmarks/linescan.py
    python benchmarks/linescan.py --quick

Pictures are drawn, with scratches in the defective ones, and written in each format. Each line is a
process of its own, which trains and scores and then says the most memory that it ever held; the
line `nothing` only loads the network. Weights are random unless a file is given: what is measured
here is no accuracy, though the drawn scratches should rank first.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image

SIZE = (16384, 4096)
FORMATS = ("nothing", "png", "tiff", "jpg", "pgm", "png of 12 bits", "png in colour")
OPTIONS = {
    "category": "web",
    "tile": "512",
    "image_size": "4096x1024",
    "max_megapixels": "70",
    "cache": "false",
    "device": "cpu",
    "precision": "fp32",
}


def draw(seed: int, defect: bool, size: tuple[int, int]) -> np.ndarray:
    """Draw a web of cloth in grey, with a dark scratch where it is defective."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(n, dtype=np.float32) for n in size)
    rows = 110 + 40 * np.sin(y / 9 + rng.uniform(0, 6))
    columns = 30 * np.cos(x / 13 + rng.uniform(0, 6))
    picture = (rows[:, None] + columns).astype(np.uint8)
    picture += rng.integers(0, 12, size, dtype=np.uint8)
    if defect:
        top, left = rng.integers(0, size[0] * 3 // 4), rng.integers(0, size[1] * 3 // 4)
        picture[top : top + size[0] // 8, left : left + size[1] // 32] = 5
    return picture


def write(kind: str, picture: np.ndarray, path: Path) -> Path:
    """Write a picture in a format of :data:`FORMATS`."""
    if kind == "png of 12 bits":
        picture = picture.astype(np.uint16) << 4
    elif kind == "png in colour":
        picture = np.repeat(picture[:, :, None], 3, axis=2)
    path = path.with_suffix("." + kind.split()[0])
    Image.fromarray(picture).save(path, **({"compress_level": 1} if "png" in kind else {}))
    return path


def work(folder: Path, size: str, weights: str) -> None:
    """Train on the good pictures of a folder, score the others, and print what it took."""
    from dfm_mlflow.config import Options
    from dfm_mlflow.core.metrics import auroc
    from dfm_mlflow.data.item import Item
    from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
    from dfm_mlflow.network.builder import build_extractor
    from dfm_mlflow.network.depths import extract_settled

    given = OPTIONS | {"weights": weights, "image_size": size}
    options = Options.parse(given).resolve()
    train = [Item(p, "web", "train", "good") for p in sorted(folder.glob("good*"))]
    extractor, digest, options = build_extractor(options, train)
    found = {"loaded": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if train:
        begin = time.perf_counter()
        known, extraction = extract_settled(extractor, [i.path for i in train])
        labels = ["web"] * len(extraction.kept)
        detector = AnomalyDetector.fit(options, known, extraction, labels, digest)
        found["train"] = (time.perf_counter() - begin) / len(train)
        test = sorted(folder.glob("test*"))
        begin = time.perf_counter()
        scores = detector.score(test)["anomaly_score"].to_numpy()
        found["score"] = (time.perf_counter() - begin) / len(test)
        found["auroc"] = auroc(np.array(["bad" in p.name for p in test]), scores)
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


@click.command(help=__doc__.splitlines()[0])
@click.option("--pictures", default=12, show_default=True, help="Good ones to train on.")
@click.option("--scored", default=8, show_default=True, help="Others, half of them defective.")
@click.option("--formats", default=",".join(FORMATS), show_default=True)
@click.option("--weights", default="random", show_default=True)
@click.option("--quick", is_flag=True, help="Smaller pictures, 4096x1024 to 1024x512.")
@click.option("--work", "folder", hidden=True)
def main(
    pictures: int, scored: int, formats: str, weights: str, quick: bool, folder: str | None
) -> None:
    size = "1024x512" if quick else OPTIONS["image_size"]
    if folder:
        work(Path(folder), size, weights)
        return
    full = (4096, 1024) if quick else SIZE
    print(
        f"{full[0]}x{full[1]} to {size}, {pictures} to train on and {scored} to score, on a CPU\n"
    )
    print("| format | MB of a file | peak memory, MB | s a picture, training | scoring | AUROC |")
    print("|---|---|---|---|---|---|")
    for kind in formats.split(","):
        with tempfile.TemporaryDirectory(prefix="dfm-linescan-") as name:
            mb = 0.0
            for i in range(pictures + scored if kind != "nothing" else 0):
                part = f"good{i:02d}" if i < pictures else f"test{'bad' if i % 2 else ''}{i:02d}"
                path = write(kind, draw(i, "bad" in part, full), Path(name, part))
                mb = path.stat().st_size / 1e6
            command = [sys.executable, __file__, "--work", name, "--weights", weights]
            command += ["--quick"] if quick else []
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        cells = [f"{found[n]:.1f}" if n in found else "" for n in ("train", "score")]
        rank = f"{found['auroc']:.2f}" if "auroc" in found else ""
        print(
            f"| {kind} | {mb:.0f} | {found['peak']:.0f} | {' | '.join(cells)} | {rank} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
