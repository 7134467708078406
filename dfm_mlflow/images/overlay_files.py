"""Pictures with their anomaly maps drawn over them, as files below a folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from dfm_mlflow.errors import ConfigError
from dfm_mlflow.images.overlay import PNG_LEVEL, overlay
from dfm_mlflow.storage.whole_file import whole_file

_MARK = {"Software": "dfm-mlflow"}  # in every file, so that no other is ever replaced


class OverlayFolder:
    """A folder of overlays of pictures."""

    def __init__(self, address: str, sources: Sequence[Any], searched: Sequence[str] = ()):
        if "://" in address:
            raise ConfigError(f"overlays={address} is not a local folder: give one.")
        self._folder = Path(address).expanduser().absolute()
        names = [_parts(source) for source in sources]
        self._depth = _common(names)
        mine = self._folder.parts
        places = {_parts(root) for root in searched} | {name[:-1] for name in names}
        if any(mine[: len(place)] == place for place in places):
            raise ConfigError(
                f"overlays={address} lies among the pictures, and its files would be taken for "
                "some: give a folder elsewhere."
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"overlays={address} cannot be made ({error.strerror}): give another folder."
            ) from None

    def write(self, source: Any, picture: bytes | np.ndarray, anomaly_map: str) -> Path:
        """Draw one."""
        path = self._folder.joinpath(*_parts(source)[self._depth :])
        path = path.with_name(path.name + ".png")
        if path.exists() and not _is_ours(path):
            raise ConfigError(
                f"{path} exists and was not written as an overlay: give another folder."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        info = PngImagePlugin.PngInfo()
        for key, text in _MARK.items():
            info.add_text(key, text)
        with whole_file(path) as draft, draft.open("wb") as file:
            image = Image.fromarray(overlay(picture, anomaly_map))
            image.save(file, format="PNG", pnginfo=info, compress_level=PNG_LEVEL)
        return path


def _parts(source: Any) -> tuple[str, ...]:
    text = str(source)
    return tuple(text.split("/")) if "://" in text else Path(os.path.abspath(text)).parts


def _common(names: Sequence[tuple[str, ...]]) -> int:
    """How many of the folders above them all pictures share."""
    if not names:
        return 0
    low, high = min(names), max(names)
    most = min(len(name) for name in names) - 1
    same = (i for i in range(most) if low[i] != high[i])
    return next(same, most)


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return all(image.info.get(key) == text for key, text in _MARK.items())
    except OSError:
        return False
