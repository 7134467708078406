import numpy as np
from PIL import Image

from dfm_mlflow.tuning import sheet
from dfm_mlflow.tuning.sheet import write_sheet
from dfm_mlflow.tuning.synthetic import KINDS, SIZES, STRENGTHS, Plan


def test_each_example_has_its_place_and_a_frame_around_its_defect(tmp_path):
    columns = [(size, strength) for size in SIZES for strength in STRENGTHS]
    picture = np.full((300, 300, 3), 90, np.uint8)
    mask = np.zeros((300, 300), bool)
    mask[100:200, 50:250] = True
    kinds = list(KINDS)
    plans = [Plan(kinds[0], *columns[-1]), Plan(kinds[-1], *columns[0])]
    write_sheet(tmp_path / "sheet.png", [(plan, picture, mask) for plan in plans])
    with Image.open(tmp_path / "sheet.png") as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    side, left, top = sheet._TILE, sheet._MARGIN, sheet._HEAD
    assert drawn.shape == (top + side * len(kinds), left + side * len(columns), 3)
    filled = [
        [
            (abs(drawn[top + side * i + side // 2, left + side * j + side // 2] - 90) < 3).all()
            for j in range(len(columns))
        ]
        for i in range(len(kinds))
    ]
    assert {(i, j) for i, row in enumerate(filled) for j, there in enumerate(row) if there} == {
        (0, len(columns) - 1),
        (len(kinds) - 1, 0),
    }
    # the frame is blue, around the mask and nowhere inside it
    tile = drawn[top : top + side, left + side * (len(columns) - 1) :][2:148, 2:148]
    blue = tile[:, :, 2] - tile[:, :, 0] > 60
    rows, across = np.flatnonzero(blue.any(1)), np.flatnonzero(blue.any(0))
    scale = 146 / 300
    assert 40 * scale < across[0] < 50 * scale < 250 * scale < across[-1] < 260 * scale
    assert 90 * scale < rows[0] < 100 * scale < 200 * scale < rows[-1] < 210 * scale
    inner = blue[int(104 * scale) : int(196 * scale), int(54 * scale) : int(246 * scale)]
    assert not inner.any()
    np.testing.assert_array_equal(picture, 90)  # it draws on a copy


def test_an_empty_mask_has_no_frame():
    picture = np.full((20, 30, 3), 7, np.uint8)
    found = np.asarray(sheet._framed(picture, np.zeros((20, 30), bool)))
    np.testing.assert_array_equal(found, picture)
