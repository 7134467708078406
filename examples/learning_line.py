"""A line that learns: serve with a log, review, update, promote, and see whether it gets better.

    python examples/learning_line.py --data FOLDER [--weights FILE] [--good 36] [--dirt 4]

FOLDER is a category in MVTec's layout (``train/good``, ``test/good``, ``test/<defect>``). The line
starts with 40 pictures, 4 of which are defective and nobody knows. Then each day pictures of the
line go through a real server that keeps them; somebody reviews what was kept and the unusual
training pictures (here the names of the folders say what a person would see), and the model is
updated and promoted. In the end it is compared with one trained on the same good pictures, sorted
by somebody who makes no mistake. Every step is a command, in a folder with a store of its own.

What differs from the defaults, and why:

- ``keep=all``: a set that grows only by what was flagged has more hard good pictures than the line
  has, and its threshold is too high.
- ``augment=none``: an update keeps what ``auto`` decided on the first 40 pictures, and the clean
  model would decide again on its own; so both are told, and it is quicker.
- ``fpr=0.05``: 40 pictures cannot promise 1 %.
- ``min_recall`` of the gate: it is judged on the few defects of the line so far, of which a model
  of some 80 pictures may find few, trained on clean data or not.
"""

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import pandas as pd
from served import served

from dfm_mlflow import client

NAME = "dfm-line"


class Line:
    """Pictures of a product, of which the folders know whether they are good."""

    def __init__(self, data: Path, work: Path, options: argparse.Namespace):
        self.work, self.options = work, options
        shuffle = random.Random(options.seed).shuffle
        good = sorted([*data.glob("train/good/*"), *data.glob("test/good/*")])
        bad = sorted(p for p in data.glob("test/*/*") if p.parent.name != "good")
        shuffle(good)
        shuffle(bad)  # of all kinds
        self.truth = {digest(p): p.parent.name for p in [*good, *bad]}
        n_good, n_bad = options.good, options.dirt
        self.start = [*good[:n_good], *bad[:n_bad]]
        self.days = []
        for _ in range(2):
            day = [*good[n_good:][: options.day_good], *bad[n_bad:][: options.day_bad]]
            n_good, n_bad = n_good + options.day_good, n_bad + options.day_bad
            shuffle(day)
            self.days.append(day)
        self.seen_good = good[:n_good]
        self.held_out = [*good[n_good:][: options.test], *bad[n_bad:][: options.test]]
        if min(len(good) - n_good, len(bad) - n_bad) < options.test:
            sys.exit(f"{data} has too few pictures for --test {options.test}: give smaller days.")


def main() -> None:
    """Train on dirt, let the line learn for two days, and print what became of it."""
    options = arguments()
    work = Path(options.work or "learning-line").absolute()
    if work.exists():
        sys.exit(f"{work} is there already: remove it, or give --work.")
    work.mkdir(parents=True)
    line = Line(Path(options.data).absolute(), work, options)
    os.chdir(work)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work / 'mlflow.db'}"
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    copy(line.start, work / "start")
    test = work / "test"
    for path in line.held_out:
        copy([path], test / "test" / path.parent.name)
    train(options, work / "start", NAME)
    dfm("promote", f"models:/{NAME}/1", "--alias=production")
    name = f"day 0: {options.dirt} defective ones among {len(line.start)}"
    rows = [measured(name, f"models:/{NAME}/1", test)]
    for day, pictures in enumerate(line.days, 1):
        uri, log = f"models:/{NAME}@production", work / f"log{day}"
        watch(uri, pictures, log, options.keep)
        verdicts = judge(uri, log, line.truth, work / f"verdicts{day}.csv")
        dfm("update", uri, "--verdicts", verdicts, *gates(options))
        last = f"models:/{NAME}/{version_of('production')}"
        rows.append(measured(f"day {day}: {said(verdicts)}", last, test))
    copy(line.seen_good, work / "clean")
    train(options, work / "clean", "dfm-clean")
    rows.append(measured("trained on clean pictures", "models:/dfm-clean/1", test))
    print(dfm("describe", NAME, "--history"))
    print(f"{options.data}: on {len(line.held_out)} pictures that nobody learned from\n")
    print(table(rows))
    print(f"\n{end_of(rows, last, 'models:/dfm-clean/1')}")


def table(rows: list[dict[str, object]]) -> str:
    """Write the models below one another."""
    lines = ["| model | trained on | recall | false alarms | AUROC |", "|---|---|---|---|---|"]
    cells = "| {name} | {n_train} | {recall:.3f} | {false_alarms:.3f} | {auroc:.3f} |"
    return "\n".join([*lines, *(cells.format(**row) for row in rows)])


def end_of(rows: list[dict[str, object]], last: str, clean: str) -> str:
    """Hold the last model of the line against the clean one."""
    *_, mine, other = rows
    sets = [trained_on(uri) for uri in (last, clean)]
    apart = len(sets[0] ^ sets[1])
    same = "the same" if len({statistics(uri) for uri in (last, clean)}) == 1 else "other"
    return (
        f"recall {mine['recall'] - other['recall']:+.3f}, "
        f"false alarms {mine['false_alarms'] - other['false_alarms']:+.3f} against clean data; "
        f"{apart} pictures are in one training set only, and the statistics are {same} bytes"
    )


def trained_on(uri: str) -> set[str]:
    """SHA-256 of the pictures that a version was fitted to."""
    run_id = mlflow.MlflowClient().get_model_version(*uri.split("/")[1:]).run_id
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="training.csv")
    rows = pd.read_csv(path, keep_default_na=False)
    return set(rows[(rows["split"] == "train") & (rows["excluded"] == "")]["sha256"])


def statistics(uri: str) -> str:
    """SHA-256 of what a version was fitted to be."""
    return digest(Path(mlflow.artifacts.download_artifacts(uri), "dfm/statistics.safetensors"))


def arguments() -> argparse.Namespace:
    """What may be chosen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a category in MVTec's layout")
    parser.add_argument("--work", help="new folder for everything; by default learning-line")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--image-size", default="auto")
    parser.add_argument("--fpr", default="0.05")
    parser.add_argument("--augment", default="none")
    parser.add_argument("--keep", default="all", help="all, or flagged: what the server keeps")
    parser.add_argument("--min-recall", default="0.1", help="that the gate asks for")
    parser.add_argument("--good", type=int, default=36, help="good pictures to start with")
    parser.add_argument("--dirt", type=int, default=4, help="defective ones among them")
    parser.add_argument("--day-good", type=int, default=40)
    parser.add_argument("--day-bad", type=int, default=10)
    parser.add_argument("--test", type=int, default=100, help="good, and defective, to test on")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(options: argparse.Namespace, data: Path, name: str) -> None:
    """Fit the first version of a model to a flat folder."""
    given = {
        "data": data,
        "category": "line",
        "weights": options.weights,
        "image-size": options.image_size,
        "fpr": options.fpr,
        "augment": options.augment,
        "registered-model": name,
    }
    dfm("train", *(f"--{key}={value}" for key, value in given.items()))


def gates(options: argparse.Namespace) -> list[str]:
    """Promote an update where it passes gates that a line of two days can pass."""
    reason = "--reason=two days and few defects so far"
    return ["--promote=production", f"--min-recall={options.min_recall}", reason]


def version_of(alias: str) -> str:
    """Say which version the line uses."""
    return str(mlflow.MlflowClient().get_model_version_by_alias(NAME, alias).version)


def watch(uri: str, pictures: list[Path], log: Path, keep: str) -> None:
    """Send a day's pictures to a server that keeps a log."""
    os.environ |= {"DFM_LOG_TO": str(log), "DFM_KEEP": keep}
    try:
        with served(uri) as url:
            client.score(url, [str(p) for p in pictures])
    finally:
        del os.environ["DFM_LOG_TO"], os.environ["DFM_KEEP"]
    n_kept = len(set(map(digest, pictures))) if keep == "all" else 0
    deadline = time.monotonic() + 60  # the last rows are written while the server ends
    while n_logged(log) < len(pictures) or len(list(log.glob("kept/*/*"))) < n_kept:
        if time.monotonic() > deadline:
            sys.exit(f"The server did not log all of {len(pictures)} pictures to {log}.")
        time.sleep(0.5)


def n_logged(log: Path) -> int:
    """Count the rows of a server's log."""
    return sum(len(pd.read_parquet(part)) for part in log.rglob("*.parquet"))


def judge(uri: str, log: Path, truth: dict[str, str], verdicts: Path) -> Path:
    """Open the review page as a browser would, and say of each picture what its folder says."""
    command = [sys.executable, "-m", "dfm_mlflow", "review", str(log), "--model", uri, "--serve"]
    print("$ dfm-mlflow", *command[3:], "--verdicts", verdicts, flush=True)
    messages = verdicts.with_suffix(".log")
    with open(messages, "w") as file:
        page = subprocess.Popen(
            [*command, "--verdicts", str(verdicts), "--who", "the folders"],
            stdout=file,
            stderr=file,
        )
        try:
            address = address_in(messages, page)
            with urllib.request.urlopen(address) as answer:
                text = answer.read().decode()
            state = json.loads(text.partition('id="state">')[2].partition("</script>")[0])
            for picture in state["pictures"]:
                label = truth[picture["sha256"]]
                verdict = {"sha256": picture["sha256"], "who": "the folders"}
                verdict |= (
                    {"verdict": "good"} if label == "good" else {"verdict": "bad", "defect": label}
                )
                request = urllib.request.Request(
                    f"{address}verdicts",
                    json.dumps(verdict).encode(),
                    {"Content-Type": "application/json", "X-Review-Token": state["token"]},
                )
                urllib.request.urlopen(request).close()
        finally:
            page.terminate()  # a shell's background jobs ignore Ctrl-C, and so do theirs
            page.wait(30)
    return verdicts


def address_in(log: Path, page: subprocess.Popen, seconds: float = 300) -> str:
    """Wait for the address that a command names in its log."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and page.poll() is None:
        if "The page is at " in (text := log.read_text()):
            return text.partition("The page is at ")[2].split()[0]
        time.sleep(0.2)
    sys.exit(f"The review does not start: {log.read_text()[-2000:]}")


def measured(name: str, uri: str, test: Path) -> dict[str, object]:
    """Evaluate a version on pictures that nobody learned from."""
    printed = dfm("evaluate", uri, "--data", test, "--category", "line", "--json")
    run = mlflow.get_run(json.loads(printed.strip().splitlines()[-1])["run_id"])
    metrics, client_ = run.data.metrics, mlflow.MlflowClient()
    version = client_.get_model_version(*uri.removeprefix("models:/").split("/"))
    return {
        "name": name,
        "n_train": version.tags["dfm.n_train"],
        "recall": metrics["recall"],
        "false_alarms": metrics["false_positive_rate"],
        "auroc": metrics["image_auroc"],
    }


def said(verdicts: Path) -> str:
    """Count what was said."""
    table = pd.read_csv(io.StringIO(verdicts.read_text()))
    counts = table["verdict"].value_counts()
    return f"{counts.get('good', 0)} called good, {counts.get('bad', 0)} bad"


def copy(paths: list[Path], folder: Path) -> None:
    """Copy pictures under names that say nothing of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copy(path, folder / f"{digest(path)[:12]}{path.suffix}")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def dfm(*arguments: object) -> str:
    """Run a command of dfm-mlflow, and stop where it fails; gives what it printed."""
    print("$ dfm-mlflow", *arguments, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "dfm_mlflow", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return done.stdout


if __name__ == "__main__":
    main()
