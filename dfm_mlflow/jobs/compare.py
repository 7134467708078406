"""Runs side by side, and whether their AUROC differ by more than noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from dfm_mlflow.config import CompareOptions
from dfm_mlflow.core.comparison import Comparison, compare_auroc
from dfm_mlflow.errors import ConfigError, DataError
from dfm_mlflow.registry.runs import find_run, read_scores
from dfm_mlflow.storage.whole_file import whole_file

_PARAMETERS = ("weights_id", "dfm_mlflow_version", "torch_version", "torchvision_version")
# No timings: features from the cache, and what else the machine did, are no part of a model.
_METRICS = (
    "image_auroc",
    "image_auroc_fre",
    "image_auroc_nll",
    "image_average_precision",
    "image_f1",
    "precision",
    "recall",
    "false_positive_rate",
    "false_negative_rate",
    "pixel_auroc",
    "pixel_aupro",
    "effective_fpr",
    "n_train",
    "n_test",
    "model_megabytes",
)


@dataclass(frozen=True)
class Compared:
    """One run of a comparison."""

    letter: str  # short for it in tables
    asked: str  # as the user called it
    run: Run
    # Its labelled test pictures that could be read: ``key`` (the same for the same picture in every
    # run), ``path``, ``defective``, ``anomaly_score``.
    scores: pd.DataFrame

    @property
    def name(self) -> str:
        """Letter and name of the run."""
        return f"{self.letter} ({self.run.info.run_name})"


@dataclass(frozen=True)
class CompareResult:
    """What a comparison found."""

    runs: list[Compared]  # the first is what the others are compared with
    table: pd.DataFrame  # one row a fact, one column a run; what is unknown is empty
    # Of each other run with the first, on the pictures that all share.
    comparisons: list[Comparison]
    sentences: list[str]  # how many pictures are shared, and what can be told from noise

    def summary(self) -> str:
        """Write everything for people."""
        width = max(len(r.run.info.run_name) for r in self.runs)
        lines = [
            f"{r.letter}  {r.run.info.run_name:{width}s}  {r.run.info.run_id}"
            f"{'' if r.asked in (r.run.info.run_id, r.run.info.run_name) else f'  {r.asked}'}"
            for r in self.runs
        ]
        return "\n".join([*lines, "", _aligned(self.table), "", *self.sentences])


def compare(options: CompareOptions) -> CompareResult:
    """Compare runs with the first of them.

    Their test pictures are matched by content (by label and name for runs of older versions), so
    that the data may lie elsewhere or have grown; what one run lacks, or has under another label,
    is left out. All intervals hold at once with the asked confidence (Bonferroni).
    """
    if options.output != "none" and not Path(options.output).absolute().parent.is_dir():
        raise ConfigError(
            f"output={options.output} lies in a folder that is not there: make it first."
        )
    runs = _runs(options)
    shared, sentence = _shared(runs, options.min_images)
    comparisons = _comparisons(shared, runs, options.confidence)
    sentences = [sentence]
    sentences += [_verdict(runs[0], r, c) for r, c in zip(runs[1:], comparisons, strict=True)]
    sentences.append(
        f"Intervals: paired bootstrap, {comparisons[0].n_resamples} resamples, "
        f"{'all at once ' if len(runs) > 2 else ''}at {options.confidence:.0%}."
    )
    result = CompareResult(runs, _table(runs, comparisons), comparisons, sentences)
    _write(result, options.output)
    return result


def _runs(options: CompareOptions) -> list[Compared]:
    """Find the runs with the scores of their test pictures; none twice."""
    client = MlflowClient()
    found = [find_run(client, asked) for asked in options.runs]
    ids = [run.info.run_id for run in found]
    for i, run_id in enumerate(ids):
        if run_id in ids[:i]:
            raise ConfigError(
                f"{options.runs[i]} is the run {run_id}, which was named already: give others."
            )
    tables = _keyed([read_scores(run) for run in found])
    return [
        Compared(_letter(i), asked, run, table)
        for i, (asked, run, table) in enumerate(zip(options.runs, found, tables, strict=True))
    ]


def _comparisons(
    shared: pd.DataFrame, runs: Sequence[Compared], confidence: float
) -> list[Comparison]:
    """Compare the AUROC of each other run with the first; all intervals hold at once."""
    # as many intervals as there are other runs, two bounds each
    bound = 1 - (1 - confidence) / (2 * (len(runs) - 1))
    first, *others = (shared[f"score_{r.letter}"].to_numpy(float) for r in runs)
    return [
        compare_auroc(
            shared["defective"].to_numpy(bool),
            other,
            first,
            strata=shared["category"].tolist(),
            confidence=bound,
            n_resamples=max(10_000, math.ceil(20 / (1 - bound))),
        )
        for other in others
    ]


def _keyed(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Give every picture a key: its content where all runs know it, else category, label, name."""
    known = all("sha256" in t for t in tables)
    keys = [t["sha256"] for t in tables] if known else _names(tables)
    # A picture that occurs twice is two pictures, here and there.
    return [
        t.assign(key=k + "#" + k.groupby(k).cumcount().astype(str))
        for t, k in zip(tables, keys, strict=True)
    ]


def _names(tables: Sequence[pd.DataFrame]) -> list[pd.Series]:
    """Category, label, and as little of the end of the path as tells pictures apart."""
    parts: list[pd.Series] = [t["path"].str.replace("\\", "/").str.split("/") for t in tables]
    deepest = max(int(p.str.len().max()) for p in parts)
    for depth in range(1, deepest + 1):
        keys = [
            t["category"] + "/" + t["label"] + "/" + p.str[-depth:].str.join("/")
            for t, p in zip(tables, parts, strict=True)
        ]
        if all(k.is_unique for k in keys):
            break
    return keys


def _shared(runs: Sequence[Compared], least: int) -> tuple[pd.DataFrame, str]:
    """Join the scores of the pictures that all runs have, and say how many they are."""
    joined = None
    for run in runs:
        columns = {"anomaly_score": f"score_{run.letter}", "defective": f"truth_{run.letter}"}
        mine = run.scores[["key", *columns]].rename(columns=columns)
        joined = mine if joined is None else joined.merge(mine, on="key", validate="1:1")
    assert joined is not None
    truths = joined[[f"truth_{r.letter}" for r in runs]].astype(bool)
    agreed = truths.eq(truths.iloc[:, 0], axis=0).all(axis=1)
    category = runs[0].scores.set_index("key")["category"]
    shared = joined[agreed].assign(
        defective=truths.iloc[:, 0], category=joined["key"].map(category)
    )
    n_bad = int(shared["defective"].sum())
    n_good = len(shared) - n_bad
    counts = ", ".join(f"{len(r.scores)} of {r.letter}" for r in runs)
    matched = "content" if all("sha256" in r.scores for r in runs) else "label and name"
    disputed = int((~agreed).sum())
    sentence = (
        f"{len(shared)} test pictures are shared, {n_good} good and {n_bad} defective (by "
        f"{matched}, of {counts}"
        f"{f'; {disputed} more are good in one run and defective in another' if disputed else ''})"
    )
    if min(n_good, n_bad) < least:
        raise DataError(
            f"{sentence}, and at least {least} of each are needed: evaluate the models on one set "
            "of pictures with dfm-mlflow evaluate, and compare those runs."
        )
    return shared, sentence + "."


def _verdict(first: Compared, other: Compared, found: Comparison) -> str:
    if found.lower > 0:
        return (
            f"{other.name} is better than {first.name} by {found.difference:.3f} AUROC "
            f"[{found.lower:.3f}, {found.upper:.3f}]."
        )
    if found.upper < 0:
        return (
            f"{other.name} is worse than {first.name} by {-found.difference:.3f} AUROC "
            f"[{-found.upper:.3f}, {-found.lower:.3f}]."
        )
    n = found.n_good + found.n_defective
    return (
        f"No difference between {other.name} and {first.name} can be told from noise with {n} "
        f"pictures: AUROC {found.difference:+.3f} [{found.lower:+.3f}, {found.upper:+.3f}]."
    )


def _table(runs: Sequence[Compared], comparisons: Sequence[Comparison]) -> pd.DataFrame:
    rows: dict[str, list[str]] = {
        "run": [r.run.info.run_name for r in runs],
        "run id": [r.run.info.run_id for r in runs],
        "AUROC, shared": [
            _text(comparisons[0].champion),
            *(_text(c.challenger) for c in comparisons),
        ],
        f"minus {runs[0].letter}": ["", *(f"{c.difference:+.4f}" for c in comparisons)],
        "from": ["", *(f"{c.lower:+.4f}" for c in comparisons)],
        "to": ["", *(f"{c.upper:+.4f}" for c in comparisons)],
    }
    metrics = [r.run.data.metrics for r in runs]
    defects = sorted({name for m in metrics for name in m if name.startswith("image_auroc/")})
    for name in (*_METRICS, *defects):
        if any(name in m for m in metrics):
            rows[name] = [_text(m[name]) if name in m else "" for m in metrics]
    params = [_chosen(r.run.data.params) for r in runs]
    for name in dict.fromkeys(name for p in params for name in p):
        values = [p.get(name, "") for p in params]
        if len(set(values)) > 1:
            rows[name] = values
    letters = [r.letter for r in runs]
    return pd.DataFrame.from_dict(rows, orient="index", columns=letters).rename_axis("fact")


def _chosen(params: Mapping[str, str]) -> dict[str, str]:
    return {
        key: value
        for key, value in params.items()
        if (key.startswith("resolved_") and key != "resolved_registered_model")
        or key in _PARAMETERS
    }


def _text(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def _letter(i: int) -> str:
    n, last = divmod(i, len(ascii_uppercase))
    return (ascii_uppercase[n - 1] if n else "") + ascii_uppercase[last]


def _aligned(table: pd.DataFrame) -> str:
    """Columns of one width each; names and ids stand above, and would make them too wide."""
    narrow = table.drop(index=["run", "run id"])
    return str(narrow.rename_axis(None).to_string(line_width=100))


def _write(result: CompareResult, output: str) -> None:
    if output == "none":
        return
    path = Path(output)
    with whole_file(path) as draft:
        if path.suffix == ".csv":
            result.table.to_csv(draft)
        else:
            draft.write_text(_markdown(result))


def _markdown(result: CompareResult) -> str:
    table = result.table
    rows = zip(table.index, table.to_numpy().tolist(), strict=True)
    cells = [
        ["", *table.columns],
        ["---"] * (1 + len(table.columns)),
        *([name, *row] for name, row in rows),
    ]
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells]
    return "\n".join([*lines, "", *(f"- {s}" for s in result.sentences), ""])
