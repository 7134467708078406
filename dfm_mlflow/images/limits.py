"""How large a picture may be, and how much work of its decoder: told before it decodes a pixel."""

from PIL import Image

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.container import check_scans

MAX_PIXELS = 50_000_000
MAX_BYTES = 64 * 1024 * 1024

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of a TIFF
_RUN_LENGTHS = (1, 2)  # compressions of a BMP
_MOST_LAYERS = 8  # of strips or tiles over the whole picture: one for each colour at most


def too_many_bytes(n: int, most: int) -> ImageError:
    """Give the refusal of a file of `n` bytes, where `most` is the limit."""
    return ImageError(f"The picture has {n} bytes, more than the limit of {most}: compress it.")


def max_bytes_of(max_pixels: int) -> int:
    """Limit of a file in bytes."""
    return MAX_BYTES if max_pixels <= MAX_PIXELS else 6 * max_pixels


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse a picture of no pixels, or of more than any may have."""
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"The picture has {width}x{height} pixels, more than the limit of {max_pixels}: "
            "scale it down."
        )
    if max(width, height) > max_pixels // 4:  # a row takes 16 bytes beside its pixels
        raise ImageError(
            f"The picture has a side of {max(width, height)} pixels, more than the limit of "
            f"{max_pixels // 4}: cut it."
        )
    if width < 1 or height < 1:
        raise ImageError(f"The picture has {width}x{height} pixels: replace it.")


def check_work(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuse a picture that makes its decoder work far more than its pixels are worth."""
    if image.format in ("JPEG", "MPO"):
        check_scans(data, image.width * image.height, max_pixels)
    elif image.format == "BMP" and image.info.get("compression") in _RUN_LENGTHS:
        raise ImageError(  # Pillow goes over it byte by byte
            "The picture is a BMP with run-length encoding: save it without, or as PNG."
        )
    elif image.format == "TIFF":  # a tile may be far larger than the picture
        tags = getattr(image, "tag_v2", {})
        if _TILE_WIDTH in tags and _TILE_LENGTH in tags:
            check_size((tags[_TILE_WIDTH], tags[_TILE_LENGTH]), max_pixels)
    if image.format in ("BMP", "TIFF"):
        _check_strips(image)


def _check_strips(image: Image.Image) -> None:
    """Look at the parts that Pillow itself reads; they may lie over each other."""
    extents = [tile[1] for tile in getattr(image, "tile", [])]
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in extents)
    if area > _MOST_LAYERS * image.width * image.height:
        raise ImageError("The picture has strips that overlap: re-encode it.")
    # Pillow copies an unfinished row for every block that it reads: let a block hold one.
    row = 8 * max((right - left for left, _, right, _ in extents), default=0)
    image.decodermaxblock = max(image.decodermaxblock, row)  # type: ignore[attr-defined]
