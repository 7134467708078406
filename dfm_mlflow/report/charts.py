"""Drawing: as PNG files, and as SVG that takes the colour of its page."""

import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

# Of text and axes: near black on a white PNG, the page's own colour in SVG.
INK = "#1f2933"
RIGHT, WRONG, PLAIN = "#3b82c4", "#e8710a", "#8a94a3"  # told apart on white and on black
_STYLE: dict[Any, Any] = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a defect may be called $x$
    "svg.fonttype": "none",
    "svg.hashsalt": "dfm",
}
# Fonts with Chinese, Japanese and Korean characters, by the names that systems know them under.
_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans CJK TC"),
    *("Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "Source Han Sans SC", "WenQuanYi Zen Hei"),
    *("WenQuanYi Micro Hei", "Droid Sans Fallback", "IPAexGothic", "TakaoGothic", "NanumGothic"),
    *("UnDotum", "Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "Malgun Gothic"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
)
_EM = "\u2003"  # as wide as a Chinese character, and in the font that is always there

_logger = logging.getLogger(__name__)


class Charts:
    """Draws figures into a folder, and keeps each as SVG for the page."""

    def __init__(self, folder: Path):
        self._folder = folder

    def draw(
        self,
        name: str,
        size: tuple[float, float],
        paint: Callable[[Figure], Any],
        png: bool = True,
    ) -> str:
        """Draw one figure: ``<name>.png`` is written, SVG for inside a page comes back."""
        fonts = {"font.sans-serif": ["DejaVu Sans", *wide_fonts()]}
        with mpl.rc_context(_STYLE | fonts), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # said once, in words
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            paint(figure)
            with _room_for_wide(figure):
                figure.draw_without_rendering()  # lays it out, once for both files
            figure.set_layout_engine("none")
            if png:
                figure.savefig(self._folder / f"{name}.png", dpi=120)
            buffer = io.StringIO()
            plain = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(buffer, format="svg", transparent=True, metadata=plain)
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
        # it takes the width of its place; a name of the font would be the drawing machine's
        svg = re.sub(r'<svg ([^>]*?)(?:width|height)="[\d.]+pt"', r"<svg \1", svg, count=1)
        svg = re.sub(r'<svg ([^>]*?)(?:width|height)="[\d.]+pt"', r"<svg \1", svg, count=1)
        svg = re.sub(r"(font: [^'\";]*?px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
        svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)  # by 3.11
        # millionths of a point are a third of the bytes
        svg = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d)\d+", r"\1", d[0]), svg)
        # identifiers of one drawing must not meet those of another on the same page
        return re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", svg)


@cache
def wide_fonts() -> tuple[str, ...]:
    """Names of the fonts of this machine that have Chinese, Japanese or Korean characters."""
    there = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in _FONTS if name in there)


@contextmanager
def _room_for_wide(figure: Figure) -> Iterator[None]:
    """Lay a figure out with room for wide characters that no font of this machine has.

    In SVG they are text, which the reader's browser draws in its own fonts.
    """
    texts = [t for t in figure.findobj(Text) if isinstance(t, Text) and _is_wide(t.get_text())]
    if not texts or wide_fonts():
        yield
        return
    _say_no_font(texts[0].get_text())
    before = [text.get_text() for text in texts]
    for text in texts:
        text.set_text("".join(_EM if _is_wide(c) else c for c in text.get_text()))
    yield
    for text, words in zip(texts, before, strict=True):
        text.set_text(words)


@cache
def _say_no_font(example: str) -> None:
    _logger.warning(
        "No font of this machine has the characters of %r: charts as PNG show boxes, and the "
        "report shows them where the reader's browser has a font; install one such as "
        "fonts-noto-cjk.",
        example,
    )


def _is_wide(text: str) -> bool:
    return any(unicodedata.east_asian_width(c) in "WF" for c in text)
