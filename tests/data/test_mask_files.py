import pytest

from dfm_mlflow.data.catalog import load_catalog
from dfm_mlflow.data.folder import Naming

from ..trees import masks, plant

TRAIN = "train/good/{0..3}.png"
CONVENTIONS = {
    "mvtec": (
        [TRAIN, "test/hole/{0..1}.png", "ground_truth/hole/{0..1}_mask.png"],
        {},
        {f"test/hole/{i}.png": f"ground_truth/hole/{i}_mask.png" for i in (0, 1)},
    ),
    "same name, any ending, any case": (
        [TRAIN, "test/Hole/a.PNG", "test/Hole/b.jpg", "Ground_Truth/hole/A.bmp"],
        {},
        {"test/Hole/a.PNG": "Ground_Truth/hole/A.bmp"},
    ),
    "_MASK in any case": (
        [TRAIN, "test/hole/a.jpg", "ground_truth/hole/a_MASK.TIF"],
        {},
        {"test/hole/a.jpg": "ground_truth/hole/a_MASK.TIF"},
    ),
    "loco": (
        [
            TRAIN,
            "test/logical_anomalies/{0..1}.png",
            "test/structural_anomalies/0.png",
            "ground_truth/logical_anomalies/0/{0..1}.png",
            "ground_truth/logical_anomalies/1/0.png",
            "ground_truth/structural_anomalies/0/0.png",
        ],
        {},
        {
            "test/logical_anomalies/0.png": "|".join(
                f"ground_truth/logical_anomalies/0/{i}.png" for i in (0, 1)
            ),
            "test/logical_anomalies/1.png": "ground_truth/logical_anomalies/1/0.png",
            "test/structural_anomalies/0.png": "ground_truth/structural_anomalies/0/0.png",
        },
    ),
    "visa": (
        [
            "Data/Images/Normal/{0..9}.JPG",
            "Data/Images/Anomaly/0.JPG",
            "Data/Masks/Anomaly/0.png",
        ],
        {},
        {"Data/Images/Anomaly/0.JPG": "Data/Masks/Anomaly/0.png"},
    ),
    "one folder of masks": (
        ["good/{0..9}.png", "bad/a.png", "bad/b.png", "masks/a.png", "masks/b.png"],
        {},
        {"bad/a.png": "masks/a.png", "bad/b.png": "masks/b.png"},
    ),
    "beside the picture": (
        ["good/{0..9}.png", "bad/a.png", "bad/a_mask.png"],
        {},
        {"bad/a.png": "bad/a_mask.png"},
    ),
    "cameras": (
        [
            TRAIN,
            "test/hole/cam1/0.png",
            "test/hole/cam2/0.png",
            "ground_truth/hole/cam2/0_mask.png",
        ],
        {},
        {"test/hole/cam2/0.png": "ground_truth/hole/cam2/0_mask.png"},
    ),
    "named": (
        [TRAIN, "test/hole/a.png", "drawn/a.png"],
        {"masks": "drawn"},
        {"test/hole/a.png": "drawn/a.png"},
    ),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_masks_are_found_by_convention(tmp_path, name):
    files, options, expected = CONVENTIONS[name]
    root = plant(tmp_path / "a", *files)
    catalog = load_catalog(str(root), ["a"], naming=Naming.of(**options))
    assert masks(catalog, root) == expected
    assert catalog.account.unused == {}


def test_masks_in_s3_are_found_alike(tmp_path, s3_store):
    files, _, expected = CONVENTIONS["loco"]
    uri = s3_store.upload(plant(tmp_path / "a", *files), "a")
    assert masks(load_catalog(uri, ["a"]), uri) == expected


def test_masks_of_another_name_are_said_to_match_nothing(tmp_path, caplog):
    root = plant(tmp_path / "a", TRAIN, "test/hole/{0..11}.png", "ground_truth/hole/x{0..11}.png")
    catalog = load_catalog(str(root), ["a"])
    assert masks(catalog, root) == {}
    assert "12 of 12 masks (such as ground_truth/hole/x0.png) match no picture" in caplog.text
    assert "name each as its picture, or give masks=" in caplog.text
    assert catalog.account.n_unused == 12


def test_a_mask_that_could_be_of_two_pictures_is_of_none(tmp_path):
    root = plant(tmp_path / "a", TRAIN, "test/hole/0.png", "test/dent/0.png", "masks/0.png")
    catalog = load_catalog(str(root), ["a"])
    assert masks(catalog, root) == {}
    assert catalog.account.unused == {
        "of 1 masks (such as masks/0.png) match no picture: name each as its picture, or give "
        "masks=": 1
    }


def test_a_mask_of_another_label_is_not_taken(tmp_path):
    root = plant(tmp_path / "a", TRAIN, "test/hole/0.png", "test/dent/1.png", "masks/dent/0.png")
    assert masks(load_catalog(str(root), ["a"]), root) == {}


def test_a_name_that_ends_with_mask_is_a_picture_where_no_other_stands_beside_it(tmp_path):
    root = plant(tmp_path / "a", "face_mask.png", "gas_mask.png")
    assert len(load_catalog(str(root), ["a"]).train) == 2
