"""Runs side by side; most of them are scored here, without a network."""

import tempfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from dfm_mlflow.cli import cli
from dfm_mlflow.config import CompareOptions
from dfm_mlflow.core.comparison import compare_auroc
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.jobs.compare import compare

pytestmark = pytest.mark.integration  # whole jobs, one after the other

N_GOOD, N_BAD = 100, 60


def scored(strength, seed, noise=0.5, common=0):
    """Scores of one test set by a detector that sees defects as strongly as said."""
    truth = np.arange(N_GOOD + N_BAD) >= N_GOOD
    of_picture = np.random.default_rng([0, common]).normal(size=len(truth))
    own = np.random.default_rng([1, seed]).normal(size=len(truth))
    return of_picture + noise * own + strength * truth


def table(scores, root="/data", content=True):
    truth = np.arange(len(scores)) >= N_GOOD
    found = pd.DataFrame(
        {
            "path": [
                f"{root}/cap/test/{'hole' if t else 'good'}/{i:03d}.png"
                for i, t in enumerate(truth)
            ],
            "category": "cap",
            "label": np.where(truth, "hole", "good"),
            "defective": truth,
            "anomaly_score": scores,
            "error": pd.Series([None] * len(scores), dtype="string"),
        }
    )
    return found.assign(sha256=[f"{i:064x}" for i in range(len(scores))]) if content else found


def log(name, scores, params=None, metrics=None):
    with mlflow.start_run(run_name=name) as run, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.parquet"
        scores.to_parquet(path, index=False)
        mlflow.log_artifact(str(path))
        mlflow.log_params(params or {})
        mlflow.log_metrics(metrics or {})
    return run.info.run_id


def ask(*runs, **more):
    return compare(CompareOptions.parse({"runs": runs, **more}))


def test_a_real_difference_is_named_with_the_interval_of_the_gate(store):
    weak, strong = scored(1.0, 1), scored(2.5, 2)
    a = log("cap-old", table(weak), {"resolved_backbone": "resnet18", "resolved_fpr": "0.01"})
    b = log(
        "cap-new",
        table(strong),
        {"resolved_backbone": "resnet50", "resolved_fpr": "0.01"},
        {"image_auroc": 0.9},
    )
    result = ask(a, b)
    (found,) = result.comparisons
    truth = np.arange(len(weak)) >= N_GOOD
    assert found == compare_auroc(truth, strong, weak, confidence=0.975, n_resamples=10_000)
    assert found.lower > 0
    assert result.sentences[0] == (
        "160 test pictures are shared, 100 good and 60 defective (by content, of 160 of A, 160 of "
        "B)."
    )
    assert result.sentences[1] == (
        f"B (cap-new) is better than A (cap-old) by {found.difference:.3f} AUROC "
        f"[{found.lower:.3f}, {found.upper:.3f}]."
    )
    back = ask(b, a)
    assert back.sentences[1].startswith(
        f"B (cap-old) is worse than A (cap-new) by {found.difference:.3f} AUROC ["
    )
    assert back.comparisons[0].upper < 0
    facts = result.table
    assert list(facts.loc["resolved_backbone"]) == ["resnet18", "resnet50"]
    assert "resolved_fpr" not in facts.index  # the same
    assert list(facts.loc["image_auroc"]) == ["", "0.9000"]
    assert facts.loc["minus A", "B"] == f"{found.difference:+.4f}"


def test_noise_is_not_called_progress(store):
    """Equal detectors: of 40 pairs few are told apart, though every one has some difference."""
    a = log("first", table(scored(1.5, 0)))
    told = 0
    for seed in range(1, 41):
        found = compare_auroc(
            np.arange(N_GOOD + N_BAD) >= N_GOOD,
            scored(1.5, 2 * seed, common=seed),
            scored(1.5, 2 * seed + 1, common=seed),
            confidence=0.975,
            n_resamples=2000,
        )
        told += found.lower > 0 or found.upper < 0
    assert told <= 6  # 2 are expected, and 7 or more in 1 of 300 sets
    b = log("second", table(scored(1.5, 99)))
    sentence = ask(a, b).sentences[1]
    assert sentence.startswith(
        "No difference between B (second) and A (first) can be told from noise with 160 pictures"
    )


def test_several_runs_share_the_doubt(store):
    """Bonferroni: what is told of two runs alone may be noise among ten."""
    ids = [log(f"run {i}", table(scored(1.5 + 0.1 * i, i))) for i in range(4)]
    alone = ask(ids[0], ids[3]).comparisons[0]
    among = ask(*ids).comparisons[2]
    assert among.confidence == pytest.approx(1 - 0.05 / 6)
    assert among.lower <= alone.lower <= alone.upper <= among.upper
    assert among.difference == alone.difference
    assert list(ask(*ids).table.columns) == ["A", "B", "C", "D"]


def test_pictures_are_matched_wherever_they_lie(store):
    one, other = scored(1.0, 1), scored(2.0, 2)
    expected = ask(log("a", table(one)), log("b", table(other))).comparisons
    moved = table(other, root="s3://bucket/elsewhere").sample(frac=1, random_state=0)
    assert ask("a", log("c", moved)).comparisons == expected
    by_name = ask(log("d", table(one, content=False)), log("e", moved))
    assert by_name.comparisons == expected
    assert "(by label and name, of 160 of A, 160 of B)" in by_name.sentences[0]


def test_only_shared_pictures_count(store):
    one, other = table(scored(1.0, 1)), table(scored(2.0, 2))
    grown = pd.concat([other, table(np.ones(1)).assign(sha256="new", path="/data/new.png")])
    fewer = grown[grown["sha256"] != one["sha256"][3]].copy()
    fewer.loc[fewer["sha256"] == one["sha256"][7], "defective"] = True
    fewer.loc[fewer["sha256"] == one["sha256"][9], ["error", "anomaly_score"]] = ["broken", None]
    result = ask(log("a", one), log("b", fewer))
    assert result.sentences[0] == (
        "157 test pictures are shared, 97 good and 60 defective (by content, of 160 of A, 159 of "
        "B; 1 more are good in one run and defective in another)."
    )
    kept = one.drop(index=[3, 7, 9])
    assert result.comparisons[0] == compare_auroc(
        kept["defective"].to_numpy(),
        other.drop(index=[3, 7, 9])["anomaly_score"].to_numpy(),
        kept["anomaly_score"].to_numpy(),
        confidence=0.975,
        n_resamples=10_000,
    )


def test_a_picture_that_occurs_twice_is_two(store):
    twice = pd.concat([table(scored(1.0, 1))] * 2)
    assert ask(log("a", twice), log("b", twice)).comparisons[0].n_good == 2 * N_GOOD


def test_names_are_as_long_as_they_must_be(store):
    """Two folders hold pictures of the same names."""
    one = table(scored(1.0, 1), content=False)
    one["path"] = [f"/x/{'left' if i % 2 else 'right'}/{i // 2:03d}.png" for i in range(len(one))]
    other = one.assign(path=one["path"].str.replace("/x/", "/y/"))
    assert ask(log("a", one), log("b", other)).comparisons[0].n_good == N_GOOD


def test_too_few_in_common_are_refused(store):
    a = log("a", table(scored(1.0, 1)))
    apart = table(scored(1.0, 2)).assign(sha256=[f"x{i}" for i in range(N_GOOD + N_BAD)])
    with pytest.raises(DataError, match="0 test pictures are shared.*at least 5 of each"):
        ask(a, log("b", apart))
    few = table(scored(1.0, 3)).iloc[: N_GOOD + 4]
    b = log("c", few)
    with pytest.raises(DataError, match="100 good and 4 defective.*at least 5 of each are needed"):
        ask(a, b)
    assert ask(a, b, min_images="4").comparisons[0].n_defective == 4


def test_the_command_prints_and_writes_the_table(store, tmp_path):
    a = log("cap-old", table(scored(1.0, 1)), {"resolved_layers": "stride:8|stride:16"})
    b = log("cap-new", table(scored(2.5, 2)), {"resolved_layers": "stride:16"})
    for name in ("table.csv", "table.md"):
        done = CliRunner().invoke(cli, ["compare", "cap-old", b, "--output", name])
        assert done.exit_code == 0, done.output
        assert f"A  cap-old  {a}\n" in done.output
        assert "is better than A (cap-old)" in done.output
    assert max(map(len, done.stdout.splitlines())) < 160
    read = pd.read_csv("table.csv", index_col="fact", dtype=str)
    assert list(read.loc["run id"]) == [a, b]
    page = Path("table.md").read_text()
    assert r"| resolved_layers | stride:8\|stride:16 | stride:16 |" in page
    assert "- B (cap-new) is better than A (cap-old)" in page
    assert sorted(p.name for p in tmp_path.iterdir() if "table" in p.name) == [
        "table.csv",
        "table.md",
    ]
    for output in ("table.txt", "nowhere/table.csv"):
        with pytest.raises(ConfigError, match="output="):
            ask(a, b, output=output)


def test_trained_models_are_compared_by_their_aliases(registry):
    registry.add("good", "large")
    registry.point("production", 1)
    result = ask(f"models:/{registry.name}@production", f"models:/{registry.name}/2")
    assert [r.run.info.run_id for r in result.runs] == [
        registry.zoo.runs[kind].run_id for kind in ("good", "large")
    ]
    assert "14 test pictures are shared, 8 good and 6 defective (by content" in result.sentences[0]
    assert result.table.loc["resolved_image_size"].tolist() == ["64", "160"]
    assert f"models:/{registry.name}@production" in result.summary()
    areas = [registry.zoo.runs[kind].metrics["image_auroc"] for kind in ("good", "large")]
    (found,) = result.comparisons
    assert [found.champion, found.challenger] == pytest.approx(areas)
