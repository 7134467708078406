"""The depth of training pictures, from files to a model that knows it."""

import json

import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.artifact.save_load import load_detector, save_detector
from dfm_mlflow.config import Options
from dfm_mlflow.core.metrics import auroc
from dfm_mlflow.data.item import Item
from dfm_mlflow.detector.anomaly_detector import AnomalyDetector
from dfm_mlflow.errors import FitError, ImageError
from dfm_mlflow.images.depth import BYTES, Depth
from dfm_mlflow.network.builder import build_extractor
from dfm_mlflow.network.cache import FeatureCache
from dfm_mlflow.network.depths import extract_settled, guessed

from ..conftest import texture

GIVEN = {
    "category": "part",
    "backbone": "resnet18",
    "weights": "random",
    "image_size": "64",
    "layers": "layer1",
    "pooling": "2",
    "cache": "false",
}


def words(bits, shift=0, defect=False, seed=0, n=1):
    """Pictures of a camera of so many bits, in 16-bit words."""
    rng = np.random.default_rng(seed)
    pictures = (texture(rng, defect=defect)[:, :, 0].astype(float) for _ in range(n))
    return [(p / 255 * (2**bits - 1)).round().astype(np.uint16) << shift for p in pictures]


def write(folder, pictures, kind="png"):
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:03d}.{kind}" for i in range(len(pictures))]
    for path, values in zip(paths, pictures, strict=True):
        Image.fromarray(values).save(path)
    return paths


def built(paths, **more):
    options = Options.parse(GIVEN | more).resolve()
    items = [Item(path, "part", "train", "good") for path in paths]
    extractor, weights, options = build_extractor(options, items)
    return extractor, weights, options


def fitted(paths, **more):
    extractor, weights, options = built(paths, **more)
    known, extraction = extract_settled(extractor, paths, options.stated_bits)
    labels = ["part"] * len(extraction.kept)
    return AnomalyDetector.fit(options, known, extraction, labels, weights)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    return write(tmp_path_factory.mktemp("twelve"), words(12, n=24))


@pytest.fixture(scope="module")
def detector(twelve):
    return fitted(twelve)


@pytest.mark.parametrize(
    ("bits", "shift"), [(10, 0), (12, 0), (14, 0), (12, 4), (10, 6), (16, 0), (8, 0)]
)
def test_any_depth_ranks_as_8_bits_do(bits, shift, tmp_path):
    """And is said in words; 12-bit data that were read as 16-bit gave other scores."""
    rng = np.random.default_rng(0)
    plain = fitted(write(tmp_path / "bytes", [texture(rng) for _ in range(24)]))
    found = fitted(write(tmp_path / "words", words(bits, shift, n=24)))
    depth = found.extractor.decoder.depth
    assert (depth.bits, depth.shift) == (bits, shift)
    assert f"{bits}-bit data" in depth.sentence()
    scores = {}
    for name, one, of in (
        ("bytes", plain, lambda d: [texture(np.random.default_rng(9), defect=d)]),
        ("words", found, lambda d: words(bits, shift, defect=d, seed=9)),
    ):
        files = [write(tmp_path / f"{name}{d}", of(d))[0] for d in (False, True)]
        scores[name] = one.score(files)["anomaly_score"].to_numpy()
    # rounded once from more bits, not twice, a value may be off by one level of 256
    np.testing.assert_allclose(scores["words"], scores["bytes"], rtol=0.05)
    assert auroc(np.array([False, True]), scores["words"]) == 1


def test_a_model_keeps_its_depth_and_refuses_another_by_row(detector, tmp_path):
    save_detector(detector, tmp_path / "model")
    record = json.loads((tmp_path / "model/detector.json").read_text())
    assert record["depth"]["bits"] == 12
    loaded = load_detector(tmp_path / "model")
    assert loaded.extractor.decoder == detector.extractor.decoder
    same, dark = words(12, seed=5)[0], words(12, seed=5)[0] >> 2
    pictures = [same, same << 4, dark, (same >> 4).astype(np.uint8)]
    files = write(tmp_path / "new", pictures)
    table = loaded.score(files, on_error="report")
    assert table["error"].isna().tolist() == [True, False, False, True]
    assert "holds 12-bit data in the upper bits (largest value" in table["error"][1]
    assert "10-bit data" in table["error"][2]
    assert all("12-bit data" in why for why in table["error"][1:3])
    assert table["is_anomaly"].isna().tolist() == [False, True, True, False]
    assert table["anomaly_score"][3] == pytest.approx(table["anomaly_score"][0], rel=0.02)
    with pytest.raises(ImageError, match=r"Row 1: The picture holds 12-bit data in the upper"):
        loaded.score(files)


def test_a_model_of_8_bits_refuses_12_bits_in_words(tmp_path):
    rng = np.random.default_rng(0)
    plain = fitted(write(tmp_path / "bytes", [texture(rng) for _ in range(8)]))
    assert plain.extractor.decoder.depth == BYTES
    files = write(tmp_path / "new", [*words(12, seed=5), *words(16, seed=5), *words(12, 4, seed=5)])
    table = plain.score(files, on_error="report")
    assert table["error"].isna().tolist() == [False, True, True]
    assert "holds 12-bit data" in table["error"][0]
    np.testing.assert_allclose(table["anomaly_score"][1], table["anomaly_score"][2], rtol=0.02)


def test_bits_settles_it(twelve, tmp_path):
    stated = fitted(twelve, bits="16")
    assert stated.extractor.decoder.depth == Depth(16, 0, 0)
    files = write(tmp_path / "new", [words(12, seed=5)[0] >> 4, words(16, seed=5)[0]])
    assert stated.score(files, on_error="report")["error"].isna().all()
    # one picture of another depth than was stated is left out, and the rest is read as stated
    paths = write(tmp_path / "mixed", [*words(10, n=23), *words(12)])
    extractor, _, options = built(paths, bits="10")
    known, extraction = extract_settled(extractor, paths, options.stated_bits)
    assert known.decoder.depth == Depth(10, 0, 0)
    assert list(extraction.errors) == [23]
    assert "knows 10-bit data of 0 to 1023" in extraction.errors[23]


def test_all_pictures_are_looked_at_and_read_again_only_where_a_few_were_wrong(tmp_path, caplog):
    caplog.set_level("INFO")
    dim = words(10, n=39)  # a few of them look like those of a 10-bit camera
    paths = write(tmp_path / "dim", [*dim, *words(12)])
    extractor, _, _ = built(paths)
    assert extractor.decoder.depth.bits == 10
    assert not extractor.decoder.strict
    runs = []
    known, extraction = extract_settled(counting(extractor, runs), paths)
    assert runs == [40, 40]
    assert known.decoder.depth.bits == 12
    assert "The pictures are read again: The pictures hold 12-bit data" in caplog.text
    again = known.extract(paths).features[0]
    np.testing.assert_array_equal(extraction.features[0].numpy(), again.numpy())
    runs.clear()
    extractor, _, _ = built(write(tmp_path / "all", words(12, n=40)))
    extract_settled(counting(extractor, runs), sorted((tmp_path / "all").iterdir()))
    assert runs == [40]


def counting(extractor, runs):
    inner = extractor.extract

    def extract(sources, **more):
        runs.append(len(sources))
        return inner(sources, **more)

    extractor.extract = extract  # copies of it count, too
    with_depth = extractor.with_depth
    extractor.with_depth = lambda *given, **named: counting_copy(with_depth(*given, **named), runs)
    return extractor


def counting_copy(copied, runs):
    del copied.extract, copied.with_depth
    return counting(copied, runs)


def test_features_of_another_depth_are_not_fitted(tmp_path):
    paths = write(tmp_path / "dim", [*words(10, n=39), *words(12)])
    extractor, weights, options = built(paths)
    extraction = extractor.extract(paths)
    with pytest.raises(FitError, match="hold 12-bit data .*use extract_settled"):
        AnomalyDetector.fit(options, extractor, extraction, ["part"] * 40, weights)


def test_pictures_of_8_and_16_bits_together_are_told(tmp_path, caplog):
    rng = np.random.default_rng(0)
    paths = write(tmp_path, [*words(12, n=4), *[texture(rng) for _ in range(4)]])
    fitted(paths)
    assert "4 of 8 training pictures have values of 16 bits, the others of 8" in caplog.text


def test_the_cache_knows_depths_apart_and_what_it_kept(twelve, tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    extractor, _, _ = built(twelve)
    extractor.cache = cache
    first = extractor.with_depth(Depth(12, 0, 4000))
    other = extractor.with_depth(Depth(16))
    expected = first.extract(twelve[:3])
    assert len(list(cache.folder.iterdir())) == 3
    kept = first.extract(twelve[:3])
    assert kept.words == expected.words
    assert (kept.features[0] == expected.features[0]).all()
    assert (other.extract(twelve[:3]).features[0] != expected.features[0]).any()
    # the same conversion, and a picture that this model refuses, out of the cache as well
    stricter = extractor.with_depth(Depth(12, 0, 65535)).extract(twelve[:3])
    assert sorted(stricter.errors) == [0, 1, 2]


def test_a_guess_is_one_look_where_values_have_8_bits(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    paths = write(tmp_path / "bytes", [texture(rng) for _ in range(20)])
    extractor, _, _ = built(paths)
    seen = []
    real = type(paths[0]).read_bytes
    monkeypatch.setattr(type(paths[0]), "read_bytes", lambda path: seen.append(path) or real(path))
    assert guessed(extractor.decoder, paths).depth == BYTES
    assert len(seen) == 1
    (paths[0]).write_bytes(b"no picture")
    assert guessed(extractor.decoder, paths).depth == BYTES
    seen.clear()
    assert guessed(extractor.decoder, write(tmp_path / "w", words(14, n=60))).depth.bits == 14
    assert len(set(seen)) == len(seen) == 17


def test_floating_point_pictures_need_a_range(tmp_path):
    rng = np.random.default_rng(0)
    reals = [texture(rng)[:, :, 0].astype(np.float32) / 255 for _ in range(8)]
    paths = write(tmp_path / "reals", reals, "tiff")
    assert fitted(paths, float_range="0:1").score(paths[:1])["error"].isna().all()
    extractor, _, _ = built(paths)
    errors = extractor.extract(paths).errors
    assert len(errors) == 8
    assert "float_range=LOW:HIGH" in errors[0]
