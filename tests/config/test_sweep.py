from dfm_mlflow.config import (
    Options,
    SweepOptions,
)


def test_a_grid_becomes_every_combination_of_its_values():
    given = {"categories": "a,b", "grid": "layers=layer2|layer2,layer3;pca_level=0.9,0.97;"}
    options = SweepOptions.parse(given)
    assert options.category_names == ("a", "b")
    assert options.configurations() == [
        {"layers": layers, "pca_level": level}
        for layers in ("layer2", "layer2,layer3")
        for level in ("0.9", "0.97")
    ]
    child = options.options("b", options.configurations()[2])
    assert child == Options.parse({"category": "b", "layers": "layer2,layer3", "pca_level": "0.9"})
    plain = SweepOptions.parse({"category": "c"})
    assert (plain.category_names, plain.configurations()) == (("c",), [{}])
