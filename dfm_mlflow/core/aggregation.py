"""From residuals to anomaly maps, and from maps to one number an image.

Written against the array API: NumPy arrays and torch tensors alike, on their own device.
"""

from typing import Any

from array_api_compat import array_namespace

from dfm_mlflow.errors import ConfigError


def residual_map(residual: Any, n_channels: int) -> Any:
    """Sum the squared residual over channels: ``M[p] = sum_c e[c, p]^2``.

    Shapes: residual (n, C * P); gives (n, P): the FRE map; its sum is the FRE (Ndiour et al., arXiv
    2203.10422).
    """
    xp = array_namespace(residual)
    return xp.sum(xp.reshape(residual**2, (residual.shape[0], n_channels, -1)), axis=1)


def aggregate(maps: Any, how: str) -> Any:
    """Reduce each map to one number.

    how: ``sum``, ``max``, or ``top:q``: the mean of the largest share q in (0, 1] of positions, at
      least one of them.

    Shapes: maps (n, h, w) or (n, P); gives (n,).
    """
    xp = array_namespace(maps)
    flat = xp.reshape(maps, (maps.shape[0], -1))
    if how == "sum":
        return xp.sum(flat, axis=1)
    if how == "max":
        return xp.max(flat, axis=1)
    if how.startswith("top:"):
        count = max(1, round(float(how.removeprefix("top:")) * flat.shape[1]))
        return xp.mean(xp.sort(flat, axis=1, descending=True)[:, :count], axis=1)
    raise ConfigError(f"aggregate={how!r} is not known: give sum, max or top:q.")
