"""A map drawn over its picture."""

import numpy as np

from dfm_mlflow.detector.maps import USUAL


def overlay(image: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Lay a map over its picture: calm below what good pictures show, yellow to red above it.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
    level : ndarray of shape (H, W), uint8
        From :func:`to_level`.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
    """
    above = np.clip((level.astype(np.float32) - USUAL * 0.8) / (255 - USUAL * 0.8), 0, 1)[..., None]
    colour = np.concatenate(
        [np.full_like(above, 255), 220 * (1 - above), np.full_like(above, 30)], axis=-1
    )
    opacity = 0.65 * np.sqrt(above)
    blend: np.ndarray = (image * (1 - opacity) + colour * opacity).round().astype(np.uint8)
    return blend
