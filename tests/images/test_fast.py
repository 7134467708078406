import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dfm_mlflow.errors import ImageError
from dfm_mlflow.images import decode, fast, inflate
from dfm_mlflow.images.decode import decode_image

from ..conftest import examples


@pytest.fixture(scope="module", autouse=True, params=[0, 1 << 40], ids=["libdeflate", "plain"])
def worth(request):
    """Every PNG is inflated apart, or none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inflate, "WORTH", request.param)
        yield request.param


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def encoded(mode, shape, seed, **options):
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels, mode).save(buffer, **options)
    return buffer.getvalue()


def by_pillow(data, monkeypatch_context):
    with monkeypatch_context() as patch:
        patch.setattr(decode, "decode_fast", lambda data, image: None)
        try:
            return decode_image(data)
        except ImageError as error:
            return str(error)


def outcome(data):
    try:
        return decode_image(data)
    except ImageError as error:
        return str(error)


def assert_same(data):
    expected, found = by_pillow(data, pytest.MonkeyPatch.context), outcome(data)
    assert type(found) is type(expected)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_usual_pngs_take_the_fast_way(mode):
    data = encoded(mode, (5, 7), 0, format="PNG")
    with Image.open(io.BytesIO(data)) as image:
        assert fast.decode_fast(data, image).shape == ((5, 7) if mode == "L" else (5, 7, 3))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("side", [10, 147, 148, 300])  # around one and several stored blocks
def test_rows_are_stored_as_they_were(mode, side, worth):
    data = encoded(mode, (side, side), 7, format="PNG")
    assert_same(data)
    n = side * (1 + side * len(mode))
    stored = inflate.with_stored_rows(data, n)
    if worth:
        assert stored is None
        return
    assert_same(bytes(stored))  # a PNG that Pillow reads, with the same pixels
    np.testing.assert_array_equal(decode_image(bytes(stored)), decode_image(data))
    assert inflate.with_stored_rows(data, n + 1) is None
    with Image.open(io.BytesIO(data)) as image:
        assert (
            fast._decode_png(data, n)[:, :].reshape(side, side, -1)
            == np.asarray(image).reshape(side, side, -1)
        ).all()


@examples(60)
@given(mode=st.sampled_from(["L", "RGB", "RGBA", "LA"]), shape=SHAPES, seed=st.integers(0, 99))
def test_png_pixels_are_pillow_s(mode, shape, seed):
    assert_same(encoded(mode, shape, seed, format="PNG"))


@examples(60)
@given(
    mode=st.sampled_from(["L", "RGB"]),
    shape=SHAPES,
    seed=st.integers(0, 99),
    quality=st.integers(20, 100),
    sampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
)
def test_jpeg_pixels_are_within_two_levels_of_pillow_s(
    mode, shape, seed, quality, sampling, progressive
):
    data = encoded(
        mode,
        shape,
        seed,
        format="JPEG",
        quality=quality,
        subsampling=sampling,
        progressive=progressive,
    )
    expected = by_pillow(data, pytest.MonkeyPatch.context)
    assert np.abs(expected.astype(int) - decode_image(data)).max() <= 2


@pytest.mark.parametrize("turn", [None, *range(1, 9)])
@pytest.mark.parametrize("mode", ["L", "I;16", "1", "P", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_what_has_no_colours_may_stay_grey(kind, mode, turn):
    values = np.random.default_rng(1).integers(0, 256, (40, 60), dtype=np.uint8)
    image = Image.fromarray(values.astype(np.uint16) << 7) if mode == "I;16" else None
    image = image or Image.fromarray(values).convert(mode)
    if kind == "JPEG" and mode not in ("L", "RGB"):
        return
    buffer, exif = io.BytesIO(), Image.Exif()
    if turn:
        exif[0x0112] = turn
    image.save(buffer, kind, exif=exif)
    data = buffer.getvalue()
    colours, words = decode.Decoder(max_pixels=10**6).decode(data)
    plain, same_words = decode.Decoder(max_pixels=10**6).decode(data, grey=True)
    assert plain.ndim == (2 if mode in ("L", "I;16") else 3)
    assert plain.flags.c_contiguous
    assert plain.flags.writeable
    np.testing.assert_array_equal(
        plain if plain.ndim == 3 else plain[:, :, None],
        colours[:, :, : 1 if plain.ndim == 2 else 3],
    )
    assert (colours == colours[:, :, :1]).all()
    assert words == same_words


@examples(150)
@given(
    kind=st.sampled_from(["PNG", "JPEG"]),
    where=st.floats(0, 1, exclude_max=True),
    what=st.sampled_from(["cut", "flip", "drop"]),
    bit=st.integers(0, 7),
)
def test_damaged_pictures_are_judged_as_pillow_judges_them(kind, where, what, bit):
    data = bytearray(encoded("RGB", (60, 50), 3, format=kind))
    place = int(where * len(data))
    if what == "cut":
        del data[place:]
    elif what == "drop":
        del data[place : place + 7]
    else:
        data[place] ^= 1 << bit
    assert_same(bytes(data))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_kept(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded("RGB", (20, 30), 1, format=kind, exif=exif)
    assert_same(data)
    assert decode_image(data).shape[:2] == ((30, 20) if orientation in range(5, 9) else (20, 30))
    with Image.open(io.BytesIO(data)) as image:
        theirs = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.abs(theirs.astype(int) - decode_image(data)).max() <= (2 if kind == "JPEG" else 0)


def test_text_in_a_png_does_not_matter():
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Software", "a camera")
    text.add_itxt("Comment", "x", zip=True)
    assert_same(encoded("RGB", (9, 9), 2, format="PNG", pnginfo=text))


def test_sixteen_bit_palette_and_transparent_pngs():
    rng = np.random.default_rng(0)
    for image in (
        Image.fromarray(rng.integers(0, 65536, (9, 8)).astype(np.uint16)),
        Image.fromarray(rng.integers(0, 256, (9, 8), dtype=np.uint8)).convert("P"),
        Image.fromarray(rng.integers(0, 256, (9, 8), dtype=np.uint8)).convert("1"),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        assert_same(buffer.getvalue())
    assert_same(encoded("RGB", (9, 8), 4, format="PNG", transparency=(1, 2, 3)))
