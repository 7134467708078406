import re
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib import font_manager
from PIL import Image

from dfm_mlflow.report import charts as module
from dfm_mlflow.report.charts import Charts

NAME = "\u7f3a\u9677 \u30ad\u30ba \uacb0\ud568"  # Chinese, Japanese and Korean


def line(figure):
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1])
    axes.set_title("<b>$x$ & 'y'")


def test_a_chart_is_a_picture_and_a_drawing_of_the_page_s_colour(tmp_path):
    svg = Charts(tmp_path).draw("one", (3, 2), line)
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (360, 240)
        assert image.getpixel((0, 0))[:3] == (255, 255, 255)
    root = ElementTree.fromstring(svg)
    assert {"width", "height"}.isdisjoint(root.keys())  # as wide as its place
    assert "currentColor" in svg
    assert "".join(root.itertext()).count("<b>$x$ & 'y'") == 1  # neither markup nor mathematics


def test_a_chart_names_no_font_of_the_machine_that_drew_it(tmp_path):
    svg = Charts(tmp_path).draw("one", (3, 2), line)
    assert "system-ui" in svg
    assert "DejaVu" not in svg


def test_charts_are_the_same_each_time_and_apart_from_each_other(tmp_path):
    charts = Charts(tmp_path)
    one, again, other = (charts.draw(n, (3, 2), line) for n in ("one", "one", "other"))
    assert one == again
    identifiers = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (one, other)]
    assert identifiers[0].isdisjoint(identifiers[1])
    for svg, known in zip((one, other), identifiers, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= known


def titled(figure):
    figure.subplots().set_ylabel(NAME, rotation=0, ha="right")


@pytest.fixture
def no_wide_font(monkeypatch):
    monkeypatch.setattr(module, "wide_fonts", lambda: ())
    module._say_no_font.cache_clear()
    yield
    module._say_no_font.cache_clear()


def test_wide_names_are_text_with_room_for_any_reader_s_font(tmp_path, no_wide_font, caplog):
    svg = Charts(tmp_path).draw("one", (3, 2), titled)
    assert "".join(ElementTree.fromstring(svg).itertext()).count(NAME) == 1
    assert "install one such as fonts-noto-cjk" in caplog.text
    Charts(tmp_path).draw("two", (3, 2), titled)
    assert caplog.text.count("fonts-noto-cjk") == 1  # said once

    def left_end(name):  # of the axes: the name stands before it
        found = {}

        def paint(figure):
            figure.subplots().set_ylabel(name, rotation=0, ha="right")
            found["figure"] = figure

        Charts(tmp_path).draw("any", (3, 2), paint)
        return found["figure"].axes[0].get_position().x0 * 3 * 72

    em = 9  # points of the charts' text: a wide character is one em
    wide, none = "\u7f3a" * 6, ""
    assert left_end(wide) - left_end(none) > 5.5 * em


def test_a_font_that_is_found_draws_wide_names(tmp_path, monkeypatch):
    """Any font will do: here the one that is always there, under the name of another."""
    entry = font_manager.FontEntry(
        fname=font_manager.findfont("DejaVu Sans"), name="Noto Sans CJK JP"
    )
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [entry])
    module.wide_fonts.cache_clear()
    try:
        assert module.wide_fonts() == ("Noto Sans CJK JP",)
    finally:
        module.wide_fonts.cache_clear()
