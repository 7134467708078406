import base64
import csv
import io
import re

import numpy as np
import pytest
from PIL import Image

from dfm_mlflow.report.review import Shot, _picture, review_page, shoot
from dfm_mlflow.scores.to_review import FLAGGED, RETEST, TRAINING, Case

from ..browser import CHROMIUM, chromium
from ..conftest import texture
from ..detectors import fit, pictures

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def shots(salt=0, n=5, name="<script>alert(1)</script>.png"):
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        buffer = io.BytesIO()
        Image.fromarray(texture(rng)).save(buffer, "JPEG")
        layer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 4), 90, np.uint8)).save(layer, "WEBP")
        why = (RETEST, FLAGGED, TRAINING)[min(i, 2)]
        case = Case(f"/p/{i}/{name}", why, "stripes", 1.5 + i, 0.01, "", f"{salt:060x}{i:04x}")
        texts = [_base64(b) for b in (buffer, layer, buffer)]
        found.append(Shot(case, *texts, own_scale=i == 1))
    return found


def _base64(buffer):
    return base64.b64encode(buffer.getvalue()).decode()


def page_of(found, **more):
    given = {"model": "models:/dfm-stripes/1", "who": "ann", "defects": ["hole"], "said": {}}
    given |= {"categories": ("stripes",), "verdicts": "verdicts.csv"}
    return review_page(found, **given | more)


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright", reason="the browser's driver is not installed")
    with chromium(accept_downloads=True) as opened:
        yield opened


@pytest.fixture
def opened(browser, tmp_path):
    pages = []

    def show(text):
        path = tmp_path / f"review{len(pages)}.html"
        path.write_text(text, encoding="utf-8")
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        asked = []
        page.on("request", lambda r: asked.append(r.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        assert all(u.startswith(("file:", "data:")) for u in asked)
        pages.append(page)
        return page

    yield show
    for page in pages:
        page.close(run_before_unload=False)


def downloaded(page, by):
    with page.expect_download() as found:
        by()
    assert found.value.suggested_filename == "verdicts.csv"
    with open(found.value.path(), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.integration
@needs_browser
def test_by_keyboard(opened):
    page = opened(page_of(shots()))
    count = page.locator("#count")
    assert count.inner_text() == "picture 1 of 5, 0 judged"
    assert page.locator("#why").inner_text() == "to be looked at again"
    assert "score 1.500, p-value 0.0100" in page.locator("#numbers").inner_text()
    assert page.locator("#path").inner_text() == "/p/0/<script>alert(1)</script>.png"
    page.wait_for_selector("html[data-shown=yes]")
    for image in ("#picture", "#layer"):
        assert page.locator(image).evaluate("i => i.decode().then(() => i.naturalWidth)") > 0
    page.keyboard.press("g")
    assert count.inner_text() == "picture 2 of 5, 1 judged"
    assert page.locator("#scale").is_visible()
    page.keyboard.press("b")
    page.keyboard.type('big, "bad" hole')  # g, b and u are letters here
    page.keyboard.press("Enter")
    assert count.inner_text() == "picture 3 of 5, 2 judged"
    page.keyboard.press("u")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#unsure").get_attribute("aria-pressed") == "true"
    page.keyboard.press("m")
    assert not page.locator("#layer").is_visible()
    page.keyboard.press("g")  # another mind
    page.keyboard.press("n")
    assert count.inner_text() == "picture 5 of 5, 3 judged"
    rows = downloaded(page, lambda: page.keyboard.press("d"))
    said = [(r["sha256"][-1], r["verdict"], r["defect"], r["who"]) for r in rows]
    assert said == [
        ("0", "good", "", "ann"),
        ("1", "bad", 'big, "bad" hole', "ann"),
        ("2", "good", "", "ann"),
    ]
    assert {r["model"] for r in rows} == {"models:/dfm-stripes/1"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", r["when"]) for r in rows)
    assert rows[1]["path"] == "/p/1/<script>alert(1)</script>.png"


@pytest.mark.integration
@needs_browser
def test_by_mouse_and_a_reload_keeps_what_was_said(opened):
    page = opened(page_of(shots(1), who="ann"))
    page.locator("#who").fill("bob")
    page.wait_for_selector("html[data-shown=yes]")  # a picture that comes moves the buttons
    page.locator("#strip button").nth(3).click()
    page.locator("#bad").click()
    page.locator("#defect").fill("hole")
    page.locator("#good").click()  # leaves the field, and changes the mind about it
    page.locator("#strip button").nth(4).click()
    page.locator("#unsure").click()
    page.on("dialog", lambda dialog: dialog.accept())
    page.reload()
    page.wait_for_selector("html[data-ready=yes]")
    assert "2 judged" in page.locator("#count").inner_text()
    assert page.locator("#strip .good").count() == 1
    rows = downloaded(page, page.locator("#download").click)
    assert [(r["sha256"][-1], r["verdict"], r["who"]) for r in rows] == [
        ("3", "good", "bob"),
        ("4", "unsure", "bob"),
    ]


@pytest.mark.integration
@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_what_was_said_before_is_shown_and_nothing_is_wider_than_the_window(opened, width):
    page = opened(page_of(shots(width), said={f"{width:060x}0000": ("bad", "hole")}))
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#count").inner_text() == "picture 2 of 5, 1 judged"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#defect").input_value() == "hole"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("g")
    rows = downloaded(page, lambda: page.keyboard.press("d"))
    assert [r["sha256"][-1] for r in rows] == ["1"]  # what is known is not said twice


def test_pictures_of_noise_stay_within_their_share():
    noise = np.random.default_rng(0).integers(0, 256, (900, 960, 3), dtype=np.uint8)
    budget = 42 * 10**6 // 500
    data = _picture(noise, budget)
    assert 0.4 * budget < len(data) <= budget
    page = 500 * (len(data) + 8_000) * 4 / 3
    assert page < 64 * 10**6


def test_maps_are_drawn_and_what_is_not_the_picture_that_was_scored_is_left_out(tmp_path, caplog):
    detector = fit({"stripes": pictures(8)})
    paths = []
    for i, picture in enumerate(pictures(3, seed=5)):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(picture)
    (tmp_path / "text.png").write_text("no picture")
    cases = [Case(str(p), FLAGGED, "stripes", 1.0, 0.1) for p in paths]
    cases[1] = Case(str(paths[1]), FLAGGED, "stripes", 1.0, 0.1, "", "f" * 64)
    cases.append(Case(str(tmp_path / "gone.png"), FLAGGED, "stripes", 1.0, 0.1))
    cases.append(Case(str(tmp_path / "text.png"), FLAGGED, "stripes", 1.0, 0.1))
    found = shoot(detector, cases)
    assert [shot.case.path for shot in found] == [str(paths[0]), str(paths[2])]
    assert "3 of 5 pictures are not on the page" in caplog.text
    assert all(re.fullmatch("[0-9a-f]{64}", shot.case.sha256) for shot in found)
    with Image.open(io.BytesIO(base64.b64decode(found[0].layer))) as layer:
        assert layer.mode == "RGBA"
    with Image.open(io.BytesIO(base64.b64decode(found[0].picture))) as picture:
        assert picture.size == (64, 64)
