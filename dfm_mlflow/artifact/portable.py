"""Whether a model can become one ONNX graph, by its record alone: no torch."""

from dfm_mlflow.artifact.record import Record

HALF = ("bf16", "fp16")


def why_not(tile: int | None, precision: str) -> str | None:
    """Say what of a model's options stands against ONNX; None where nothing does."""
    if tile:
        return (
            f"a model with tile={tile} makes as many passes as a picture has tiles, and cannot be "
            "one ONNX graph; train with tile=none and a smaller image_size."
        )
    if precision in HALF:
        return (
            f"it was calibrated in {precision}, and its p-values would not hold in the fp32 of "
            "ONNX; give --images with good pictures that it was never fitted to, or train with "
            "precision=fp32."
        )
    return None


def obstacle_of(record: Record) -> str | None:
    """Say what a model's `record` has against ONNX; None where nothing is known."""
    tile = record.options.get("tile", "none")
    return why_not(None if tile == "none" else int(tile), record.precision)
