import json

import pytest

from dfm_mlflow.config import PromoteOptions
from dfm_mlflow.errors import DataError
from dfm_mlflow.registry.aliases import version_of
from dfm_mlflow.registry.candidate import load_candidate
from dfm_mlflow.registry.comparison_gates import COMPARISON, THRESHOLD
from dfm_mlflow.registry.rivals import best_ever, load_rivals, score_all


def held(registry, version, **figures):
    key = "dfm.promotion.production.figures"
    registry.client.set_model_version_tag(registry.name, str(version), key, json.dumps(figures))


def test_the_best_ever_are_known_by_the_figures_of_their_promotions(registry):
    registry.add("good", "twin", "good", "twin", "good")
    assert best_ever(registry.client, registry.name, "production", ()) == {}
    held(registry, 1, image_auroc=0.9, recall=0.7)
    held(registry, 2, image_auroc=0.95, recall=0.6)
    held(registry, 3, image_auroc=0.95)
    registry.client.set_model_version_tag(
        registry.name, "4", "dfm.promotion.production.figures", "no JSON"
    )
    ask = (registry.client, registry.name, "production")
    assert best_ever(*ask, ("5",)) == {"2": [COMPARISON], "1": [THRESHOLD]}
    assert best_ever(*ask, ("2", "5")) == {"1": [THRESHOLD]}  # it is compared with anyway
    held(registry, 3, image_auroc=0.99, recall=0.9)
    assert best_ever(*ask, ("5",)) == {"3": [COMPARISON, THRESHOLD]}
    assert best_ever(registry.client, registry.name, "staging", ()) == {}


def test_rivals_are_the_holder_and_then_the_best(registry):
    registry.add("good", "twin", "good")
    held(registry, 1, image_auroc=1.0, recall=1.0)
    options = PromoteOptions.parse({"model": registry.name, "version": "3", "to": "production"})
    rivals, trouble = load_rivals(registry.client, options, "2")
    assert trouble == ""
    assert [(str(r.candidate.version.version), r.best) for r in rivals] == [
        ("2", False),
        ("1", True),
    ]
    assert load_rivals(registry.client, options, None) == ([], "")
    challenger = load_candidate(registry.client, version_of(registry.client, registry.name, "3"))
    scored, unread = score_all(options, challenger, rivals)
    assert unread == ""
    assert [len(t) for t in scored.tables] == [14] * 3
    assert scored.source == "its own test pictures"


def test_test_pictures_that_are_gone_are_those_that_the_run_recorded(registry, monkeypatch):
    registry.add("good")
    challenger = load_candidate(registry.client, version_of(registry.client, registry.name, "1"))

    def gone(*given, **named):
        raise DataError("They are gone.")

    monkeypatch.setattr("dfm_mlflow.registry.rivals.pictures_to_judge", gone)
    asked = {"model": registry.name, "version": "1", "to": "production"}
    scored, unread = score_all(PromoteOptions.parse(asked), challenger, [])
    assert unread == "They are gone."
    assert (len(scored.tables[0]), scored.catalog) == (14, None)
    with pytest.raises(DataError, match="gone"):  # what the user named
        score_all(PromoteOptions.parse(asked | {"data": "/nowhere"}), challenger, [])
