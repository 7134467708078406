from pathlib import Path

import pytest

from dfm_mlflow.report.pages import PAGES

TEMPLATES = sorted(p.name for p in Path(PAGES.loader.searchpath[0]).glob("*.j2"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_compiled_once(name):
    assert PAGES.get_template(name) is PAGES.get_template(name)


def test_what_a_page_is_given_is_text_not_markup():
    assert PAGES.from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"
