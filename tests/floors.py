"""A training on real pictures with real weights, as the README's table has it."""

from dfm_mlflow.config import Options
from dfm_mlflow.jobs.train import train


def floor(real_data, preset, category, data):
    weights = str(real_data / "weights/resnet18_stem_to_layer3.safetensors")
    given = {
        "category": category,
        "data": data,
        "preset": preset,
        "weights": weights,
        "backbone": "resnet18",
        "registered_model": "none",
    }
    return train(Options.parse(given))
