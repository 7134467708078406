"""What decoding costs, and what a reduced scale of JPEG would bring and change.

    python benchmarks/decode.py
    python benchmarks/decode.py --data FOLDER        # real pictures, enlarged to 4000x3000

JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, by leaving out part of the inverse cosine
transform; the network sees 256x256 pixels. Prints processor milliseconds of decoding and resizing a
picture of 12 megapixels whole and reduced (to no less than twice the input), how much of it is the
entropy decoding that no scale saves, by how many levels the input differs, and by what share the
scores of a detector change. Then PNG of 1,024 pixels by each decoder that is installed.
"""

import io
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import simplejpeg
import torch
from imagecodecs import png_decode, spng_decode
from PIL import Image
from scipy.ndimage import gaussian_filter

from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.images.decode import decode_image
from dfm_mlflow.network.pixels import Pixels

T = TypeVar("T")
SIZE, INPUT = (4000, 3000), 256
PIXELS = Pixels((INPUT, INPUT), "stretch", (0, 0, 0), None)


def timed(work: Callable[[], T], times: int = 3) -> tuple[T, float]:
    """Result, and the least processor milliseconds."""
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return result, 1000 * best


def pictures(data: Path | None, n: int, size: tuple[int, int]) -> Iterator[Image.Image]:
    """Real pictures with a sensor's noise, or drawn surfaces."""
    rng = np.random.default_rng(0)
    kinds = (".png", ".jpg", ".jpeg")
    listed = sorted(p for p in data.rglob("*") if p.suffix in kinds) if data else [None] * n
    found = listed[:n]
    for path in found:
        if path is None:
            noise = rng.normal(size=(size[1] // 4, size[0] // 4))
            grey = 128 + 60 * gaussian_filter(noise, 2) + 300 * gaussian_filter(noise, 12)
            image = Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
        else:
            image = Image.open(path).convert("RGB")
        values = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        values = values + rng.normal(0, 3, (size[1], size[0], 1)).astype(np.int16)
        yield Image.fromarray(values.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


def reduced(data: bytes, least: int = 2 * INPUT) -> np.ndarray:
    pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", min_height=least, min_width=least)
    return pixels


def jpeg(data: Path | None, n: int, weights: str) -> None:
    taken: dict[str, list[float]] = {}
    changes, inputs = [], ([], [])
    for image in pictures(data, n, SIZE):
        data_ = encoded(image, "JPEG")
        whole, first = timed(lambda d=data_: PIXELS.resized(decode_image(d)))
        small, second = timed(lambda d=data_: PIXELS.resized(reduced(d)))
        # at 1/8 only one coefficient of 64 is transformed: nearly all that is left is entropy
        _, least = timed(lambda d=data_: reduced(d, 1))
        _, only = timed(lambda d=data_: decode_image(d))
        for name, value in (
            ("megabytes", len(data_) / 1e6),
            ("whole: decode and resize", first),
            ("  of which decoding", only),
            ("reduced: decode and resize", second),
            ("least of any scale: decoding at 1/8", least),
        ):
            taken.setdefault(name, []).append(value)
        changes.append(float((whole.float() - small.float()).abs().mean()))
        inputs[0].append(whole.permute(1, 2, 0).numpy())
        inputs[1].append(small.permute(1, 2, 0).numpy())
    for name, values in taken.items():
        click.echo(f"{name}: {statistics.median(values):.1f}")
    ratio = [
        a / b
        for a, b in zip(
            taken["whole: decode and resize"], taken["reduced: decode and resize"], strict=True
        )
    ]
    click.echo(
        f"reduced is {statistics.median(ratio):.2f}x as fast; the input differs by ", nl=False
    )
    click.echo(f"{statistics.mean(changes):.2f} levels on average")
    scores(*inputs, weights)


def scores(whole: list[np.ndarray], small: list[np.ndarray], weights: str) -> None:
    """Fit to half of the pictures as they are, and score the others both ways."""
    half = len(whole) // 2
    if half < 8:
        click.echo("scores: at least 16 pictures are needed (--pictures)")
        return
    for preset in ("anomalib", "default"):
        detector = AnomalyDetector.from_images(
            whole[:half], backbone="resnet18", weights=weights, preset=preset
        )
        a, b = (detector.score(x[half:])["anomaly_score"].to_numpy() for x in (whole, small))
        change = np.abs(b / a - 1)
        click.echo(
            f"preset {preset}: scores of good pictures change by {np.median(change):.2%} in the "
            f"median and {change.max():.2%} at most; the standard deviation of the change is "
            f"{np.std(b - a) / np.std(a):.3f} of that of the scores"
        )


def png(data: Path | None, n: int) -> None:
    for image in pictures(data, min(n, 3), (1024, 1024)):
        for kind in ("RGB", "L"):
            data_ = encoded(image.convert(kind), "PNG")
            rows = {
                "here": lambda d=data_: decode_image(d),
                "libspng": lambda d=data_: spng_decode(d),
                "libpng": lambda d=data_: png_decode(d),
                "Pillow": lambda d=data_: np.asarray(Image.open(io.BytesIO(d))),
            }
            cells = ", ".join(f"{name} {timed(work)[1]:.1f}" for name, work in rows.items())
            click.echo(f"PNG {kind} 1024x1024, ms: {cells}")


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--pictures", "n", default=24, show_default=True)
@click.option("--weights", default="random", show_default=True, help="Of ResNet-18: a file.")
def main(data: Path | None, n: int, weights: str) -> None:
    torch.set_num_threads(1)
    jpeg(data, n, weights)
    png(data, n)


if __name__ == "__main__":
    main()
