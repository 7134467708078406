import pytest

from dfm_mlflow.config import (
    PRESETS,
    Options,
)
from dfm_mlflow.errors import ConfigError


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_leave_nothing_to_chance(preset):
    resolved = Options.parse({"preset": preset}).resolve()
    left = {k for k, v in resolved.model_dump().items() if v == "auto"}
    # what only the machine and the data know
    # published ones have no copies
    copies = {"augment"} if preset in ("default", "fine", "tokens", "fusion") else set()
    assert left == copies | {
        *("category", "data", "good", "bad", "masks", "bits"),
        *("device", "precision", "registered_model"),
    }
    assert resolved.resolve() == resolved
    level = {"tokens": "0.99", "fusion": "0.99,0.97,0.97"}.get(preset, "0.97")
    assert (resolved.score, resolved.pca_level) == ("fre", level)


def test_what_is_given_wins_over_the_preset():
    resolved = Options.parse({"preset": "anomalib", "pooling": "1", "aggregate": "max"}).resolve()
    assert (resolved.pooling, resolved.aggregate) == ("1", "max")
    wide = Options.parse({"preset": "anomalib", "backbone": "wide_resnet50_2"}).resolve()
    assert wide.pooling == "4"
    assert Options.parse({"score": "nll"}).resolve().aggregate == "sum"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("pca_level", "1.5", r"pca_level='1.5' .* in \(0, 1\]"),
        ("pca_level", "0", "in "),
        ("fpr", "0", "fpr='0'"),
        ("fpr", "often", "number in"),
        ("aggregate", "top:0", "top:q"),
        ("image_size", "big", "HxW"),
        ("category", "../secret", "category"),
        ("category", "a,,b", "category"),
        ("seed", "-1", "whole number"),
        ("weights", "model.bin", "safetensors"),
        ("bits", "11", "auto, 8, 10, 12, 14 or 16"),
        ("max_megapixels", "49", "50 to 1000"),
        ("float_range", "0..1", "LOW:HIGH"),
        ("colour", "red", "no option 'colour'"),
    ],
)
def test_bad_values_get_one_sentence(option, value, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Options.parse({option: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"score": "nll", "aggregate": "max"}, "needs a map"),
        ({"group_by": "("}, "regular expression"),
        ({"image_size": "15"}, "outside 16 to 4096"),
        ({"image_size": "200", "tile": "256"}, "does not cut"),
        ({"image_size": "520", "tile": "256"}, "multiples of 32"),
        ({"retest": "0.005"}, "not above fpr"),
        ({"max_megapixels": "70"}, "max_megapixels=70 needs tile"),
        ({"float_range": "1:0"}, "float_range=1:0 does not rise"),
    ],
)
def test_what_is_not_there_is_refused_not_ignored(options, words):
    with pytest.raises(ConfigError, match=words):
        Options.parse(options).resolve()


def test_model_name_follows_the_categories():
    assert Options.parse({"category": "a,b"}).model_name == "dfm-a-b"
    assert Options.parse({"category": "v2.1 left"}).model_name == "dfm-v2-1 left"
    assert Options.parse({"registered_model": "none"}).model_name is None
    assert Options.parse({"image_size": "128x256"}).size == (128, 256)


def test_pixels_are_said_as_numbers():
    plain = Options.parse({})
    assert (plain.max_pixels, plain.stated_bits, plain.real_range) == (50_000_000, None, None)
    given = {"max_megapixels": "70", "tile": "512", "image_size": "4096x1024", "bits": "12"}
    large = Options.parse(given | {"float_range": "-1:2.5e3"})
    assert (large.max_pixels, large.stated_bits) == (70_000_000, 12)
    assert large.real_range == (-1.0, 2500.0)


@pytest.mark.parametrize("preset", ["default", "fine", "anomalib", "tokens"])
@pytest.mark.parametrize("backbone", ["vit_b_16", "timm:vit_small_patch14_dinov2.lvd142m"])
def test_presets_give_way_to_tokens_for_a_transformer(preset, backbone):
    resolved = Options.parse({"preset": preset, "backbone": backbone}).resolve()
    assert (resolved.subspace, resolved.layers) == ("cell", "depth:0.5-0.8")
    assert (resolved.image_size, resolved.blur, resolved.aggregate) == ("448", "3", "top:0.01")
    beside = Options.parse({"preset": preset, "backbone": f"{backbone}+resnet18"}).resolve()
    assert beside.rows_are == ("cell", *["picture"] * 5)
    assert beside.levels_of(6) == (0.99, *[0.97] * 5)
    assert beside.of_maps("aggregate", 6) == ("top:0.01", *["top:0.05"] * 5)
    assert Options.parse({"backbone": "resnet18"}).resolve().subspace == "picture"


def test_kinds_of_rows_are_joined_like_scales():
    given = {"backbone": "vit_b_16", "subspace": "cell+picture", "pooling": "1"}
    resolved = Options.parse(given).resolve()
    assert resolved.feature_maps == (("depth:0.5-0.8", 1), ("depth:0.5-0.8", 1))
    assert resolved.rows_are == ("cell", "picture")
    assert (resolved.fewest_pictures, resolved.blur_cells) == (1, 3)
    assert Options.parse({}).resolve().fewest_pictures == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"subspace": "cell,picture,cell"}, "subspace=cell,picture,cell has entries for 3 layers"),
        ({"subspace": "cell+picture"}, "join different numbers of maps"),
        ({"pca_level": "0.9,0.8,0.7"}, "pca_level=0.9,0.8,0.7 has entries for 3 layers"),
        ({"tile": "200", "image_size": "512"}, "multiple of 128 up to 1024: give 128 or 256"),
        ({"backbone": "vit_b_16", "tile": "640", "image_size": "512"}, "tile=640 is larger"),
        ({"backbone": "vit_b_16", "layers": "depth:0.5"}, "layers='depth:0.5' is not valid"),
    ],
)
def test_combinations_of_layers_that_mean_nothing(given, words):
    with pytest.raises(ConfigError, match=words):
        Options.parse(given)


def test_presets_and_combinations_are_read_by_name():
    from dfm_mlflow.config.combination import BY_LAYER
    from dfm_mlflow.config.presets import is_transformer

    assert set(BY_LAYER) <= set(Options.model_fields)
    known = ("vit_b_16", "timm:vit_small_patch16_dinov3", "timm:eva02_tiny_patch14_224")
    assert all(map(is_transformer, (*known, "resnet18+vit_b_16")))
    others = ("resnet18", "timm:vitamin_small_224", "timm:swin_tiny_patch4_window7_224")
    assert not any(map(is_transformer, others))
