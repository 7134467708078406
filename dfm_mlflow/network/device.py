"""Which device and which arithmetic."""

import os

import torch

from dfm_mlflow.errors import DeviceError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(requested: str | None) -> torch.device:
    """Give the requested device, else ``MLFLOW_DEFAULT_PREDICTION_DEVICE``, else CUDA, else CPU."""
    if requested in (None, "auto"):
        requested = os.environ.get("MLFLOW_DEFAULT_PREDICTION_DEVICE")
    if not requested:
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(requested)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device={requested!r} is not known: give cpu, cuda or cuda:N.")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            raise DeviceError(
                f"device={requested} is requested and this machine has {count} CUDA devices: "
                "give device=cpu, or install a driver and a CUDA build of torch."
            )
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
    return device


def half_precision(device: torch.device) -> str | None:
    """Name the half precision that a `device` computes natively, or None."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    capable: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    native = any(capable.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bf16" if native and torch.backends.mkldnn.is_available() else None


def choose_precision(requested: str, device: torch.device) -> str:
    """Take fp32 for ``auto``, and refuse what the device cannot do."""
    precision = "fp32" if requested == "auto" else requested
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("precision=fp16 needs a CUDA device: give bf16 or fp32 on a CPU.")
    return precision
