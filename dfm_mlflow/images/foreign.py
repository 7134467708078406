"""What a file is that is not read, in words that a person knows."""

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images.tiff import TIFF, kind_of

_JPEG = "convert it to JPEG"
_PNG = "convert it to PNG or TIFF"
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
_STARTS = (
    (b"GIF8", "a GIF", _PNG),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000", _JPEG),
    (b"\xff\x4f\xff\x51", "a JPEG 2000", _JPEG),
    (b"\0\0\0\x0cJXL ", "a JPEG XL", _JPEG),
    (b"\xff\x0a", "a JPEG XL", _JPEG),
    (b"\x93NUMPY", "a NumPy file", "send its array, or save it as PNG or TIFF"),
    (b"v/1\x01", "an OpenEXR", "save it as a TIFF of 8 or 16 bits"),
    (b"SIMPLE  =", "a FITS", "save it as a TIFF of 8 or 16 bits"),
    (b"%PDF", "a PDF", _PNG),
    (b"<svg", "an SVG", _PNG),
    (b"\xff\xd8", "a JPEG of 12 bits, without loss or of another kind", _PNG),
)


def refusal_of(data: bytes, formats: tuple[str, ...]) -> ImageError:
    """Say what bytes are that no decoder knows."""
    known = f"not a picture in one of the formats {', '.join(formats)}"
    if data.startswith(TIFF) and (kind := kind_of(data)):
        return ImageError(
            f"The picture is a TIFF of {kind}: save it as grey or RGB of 8 or 16 bits."
        )
    if data[4:8] == b"ftyp" and (brand := _BRANDS.get(data[8:12])):
        return ImageError(f"The picture is {brand}, {known}: {_JPEG}.")
    if data[128:132] == b"DICM":
        return ImageError(f"The picture is DICOM, {known}: {_PNG}.")
    for start, name, remedy in _STARTS:
        if data.startswith(start):
            return ImageError(f"The picture is {name}, {known}: {remedy}.")
    return ImageError(f"The bytes are {known}: convert the file.")
