"""One sheet of synthetic defects, for a person to judge whether they look like anything real."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dfm_mlflow.tuning.synthetic import KINDS, SIZES, STRENGTHS, Plan

_TILE, _MARGIN, _HEAD = 150, 90, 20
_FRAME = (0, 130, 255)


def write_sheet(path: Path, examples: Sequence[tuple[Plan, np.ndarray, np.ndarray]]) -> None:
    """Draw one example of each kind, size and strength: a row a kind, a frame around the defect."""
    columns = list(itertools.product(SIZES, STRENGTHS))
    width, height = _MARGIN + _TILE * len(columns), _HEAD + _TILE * len(KINDS)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for j, (size, strength) in enumerate(columns):
        draw.text((_MARGIN + _TILE * j + 6, 4), f"{size}, {strength}", fill="black")
    for i, kind in enumerate(KINDS):
        draw.text((6, _HEAD + _TILE * i + _TILE // 2), kind.replace("_", " "), fill="black")
    for plan, picture, mask in examples:
        place = list(KINDS).index(plan.kind), columns.index((plan.size, plan.strength))
        tile = _framed(picture, mask)
        tile.thumbnail((_TILE - 4, _TILE - 4))
        sheet.paste(tile, (_MARGIN + _TILE * place[1] + 2, _HEAD + _TILE * place[0] + 2))
    sheet.save(path)


def _framed(picture: np.ndarray, mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows):
        gap, line = max(picture.shape[:2]) // 50, max(1, max(picture.shape[:2]) // 200)
        box = [columns[0] - gap, rows[0] - gap, columns[-1] + gap, rows[-1] + gap]
        ImageDraw.Draw(image).rectangle([int(b) for b in box], outline=_FRAME, width=line)
    return image
