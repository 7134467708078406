"""Masks are looked at before a network runs, and fitted to their pictures after it."""

import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.data.item import Item, Mask
from dfm_mlflow.data.masks import check_masks, fitted_mask, read_mask
from dfm_mlflow.errors import ImageError

SHAPE = np.zeros((40, 60), dtype=bool)
SHAPE[8:24, 12:40] = True


@pytest.fixture
def item(tmp_path):
    """Write masks, arrays or bytes, and give a picture that has them."""

    def write(*masks, label="hole", name="000_mask.png"):
        files = []
        for i, mask in enumerate(masks):
            path = tmp_path / f"{i}{name}"
            if isinstance(mask, bytes):
                path.write_bytes(mask)
            else:
                Image.fromarray(mask.astype(np.uint8) * 255).save(path)
            files.append(path)
        return Item(tmp_path / "picture.png", "a", "test", label, Mask(tuple(files)))

    return write


@pytest.mark.parametrize(
    ("marks", "label", "words"),
    [
        (b"noise", "hole", "0000_mask.png: The bytes are not a picture"),
        (b"", "hole", "is empty"),
        (~SHAPE, "hole", "marks 81% of its picture, as if it were inverted"),
        (SHAPE & False, "hole", "marks nothing"),
        (SHAPE, "good", "marks something of a good picture"),
    ],
)
def test_a_mask_that_cannot_be_right_is_named_and_taken_away(item, caplog, marks, label, words):
    right = item(SHAPE, name="right.png")
    kept = check_masks([item(marks, label=label), right])
    assert [i.mask is not None for i in kept] == [False, True]
    assert "1 of 2 masks are not used and count as missing" in caplog.text
    assert words in caplog.text
    assert len(caplog.records) == 1


def test_a_black_mask_of_a_good_picture_is_right(item, caplog):
    assert check_masks([item(SHAPE & False, label="good")])[0].mask is not None
    assert caplog.text == ""


def test_a_file_that_went_away_is_named(item, caplog):
    gone = item(SHAPE)
    gone.mask.files[0].unlink()
    assert check_masks([gone])[0].mask is None
    assert f"{gone.mask.files[0]}: The file cannot be read" in caplog.text


def test_many_wrong_masks_are_one_line(item, caplog):
    items = [item(b"noise", name=f"_{i}.png") for i in range(9)]
    check_masks(items)
    (record,) = caplog.records
    assert "9 of 9 masks" in record.getMessage()
    assert record.getMessage().endswith("; and 4 more.")
    assert "\n" not in record.getMessage()


def test_soft_masks_are_said_once(item, tmp_path, caplog):
    masks = [item(SHAPE, name=f"_{i}.png") for i in range(3)]
    for i in (0, 1):
        jpeg = tmp_path / f"{i}.jpg"
        Image.fromarray(SHAPE.astype(np.uint8) * 255).save(jpeg)
        masks[i] = Item(masks[i].path, "a", "test", "hole", Mask((jpeg,)))
    assert check_masks(masks) == masks
    assert "2 of 3 masks have the noise of JPEG or soft edges" in caplog.text


def test_several_masks_are_laid_over_each_other(item):
    left, right = SHAPE.copy(), SHAPE.copy()
    left[:, 30:] = False
    right[:, :30] = False
    np.testing.assert_array_equal(read_mask(item(left, right).mask), SHAPE)
    with pytest.raises(ImageError, match=r"it has 60x20 pixels, and 0000_mask.png beside it 60x40"):
        read_mask(item(left, right[:20]).mask)


def test_a_mask_of_another_size_fits_by_its_proportions(item):
    for size in ((40, 60), (400, 600), (401, 600), (80, 121)):
        assert fitted_mask(item(SHAPE).mask, size, "unread").shape == (40, 60)
    for size in ((40, 50), (60, 61)):
        with pytest.raises(ImageError, match="0000_mask.png: it has 60x40 pixels, and its picture"):
            fitted_mask(item(SHAPE).mask, size, "unread")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_before_exif_turned_its_picture_is_turned(item, tmp_path, orientation):
    """The picture is the mask itself, so that the two must agree after turning."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = tmp_path / "turned.png"
    Image.fromarray(SHAPE.astype(np.uint8) * 255).save(picture, exif=exif)
    from dfm_mlflow.images.decode import decode_image

    shown = decode_image(picture.read_bytes())[:, :, 0] > 0
    assert shown.shape == (60, 40)
    fitted = fitted_mask(item(SHAPE).mask, shown.shape, picture)
    np.testing.assert_array_equal(fitted, shown)
    # one that was drawn on the turned picture stays as it is
    np.testing.assert_array_equal(fitted_mask(item(shown).mask, shown.shape, picture), shown)


def test_a_turned_mask_of_a_picture_without_exif_is_refused(item, tmp_path):
    picture = tmp_path / "plain.png"
    Image.fromarray(np.zeros((60, 40), np.uint8)).save(picture)
    with pytest.raises(ImageError, match="it has 60x40 pixels, and its picture 40x60"):
        fitted_mask(item(SHAPE).mask, (60, 40), picture)


def test_masks_in_s3_are_looked_at_alike(item, s3_store, caplog):
    from dfm_mlflow.storage import store

    uri = s3_store.put("masks/bad.png", b"noise")
    bad = Item(item(SHAPE).path, "a", "test", "hole", Mask((store.find(uri),)))
    assert check_masks([bad])[0].mask is None
    assert f"{uri}: The bytes are not a picture" in caplog.text


def test_a_mask_may_be_as_large_as_its_picture(item, caplog):
    """A small limit stands for the 50 megapixels."""
    large = [item(SHAPE)]
    assert check_masks(large, max_pixels=SHAPE.size - 1)[0].mask is None
    assert f"more than the limit of {SHAPE.size - 1}" in caplog.text
    kept = check_masks(large, max_pixels=SHAPE.size)[0].mask
    np.testing.assert_array_equal(read_mask(kept), SHAPE)
