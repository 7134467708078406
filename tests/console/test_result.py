import click
import pandas as pd
from click.testing import CliRunner

from dfm_mlflow.console.result import (
    next_steps,
    report_file,
    score_lines,
    tell,
    where_to_look,
    with_json,
    wrapped,
)
from dfm_mlflow.console.verb import Verb


def scores(n, **more):
    table = pd.DataFrame(
        {
            "path": [f"/a/long/folder/of/pictures/of/today/IMG_{i:04d}.jpg" for i in range(n)],
            "anomaly_score": [float(i) for i in range(n)],
            "p_value": [(n - i) / n for i in range(n)],
            "is_anomaly": pd.Series([i > n - 3 for i in range(n)], dtype="boolean"),
            "predicted_class": ["caps"] * n,
            "error": [None] * n,
        }
    )
    return table.assign(**more)


def test_a_table_fits_the_terminal_and_shows_the_most_anomalous():
    lines = score_lines(scores(30), width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[1].split() == ["0.0333", "29", "yes", lines[1].split()[-1]]
    assert lines[1].endswith("IMG_0029.jpg")
    assert lines[-1] == "... and 10 more."
    assert len(lines) == 22
    few = score_lines(scores(3), width=200).splitlines()
    assert len(few) == 4
    assert few[-1].endswith("/a/long/folder/of/pictures/of/today/IMG_0000.jpg")


def test_nulls_of_any_kind_are_no_errors():
    table = scores(2, error=pd.Series([None, None], dtype="str"), decision=[float("nan"), "retest"])
    lines = score_lines(table, width=100).splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["retest", "yes"]


def test_what_cannot_be_read_and_several_classes_stand_in_the_table():
    table = scores(3, predicted_class=["a", "b", None], error=[None, None, "empty"])
    table.loc[2, ["anomaly_score", "p_value"]] = float("nan")
    table.loc[2, "is_anomaly"] = pd.NA
    lines = score_lines(table, width=100).splitlines()
    assert "unreadable" in lines[-1]
    assert lines[0].split() == ["p-value", "score", "anomalous", "class", "image"]


def test_prose_is_wrapped_and_nothing_else():
    long = "word " * 40 + "end."
    assert max(map(len, wrapped(long).splitlines())) <= 100
    assert wrapped(long).split() == long.split()
    table = "a  b\n" + "x" * 120
    assert wrapped(table) == table
    last = "3 images; wrote " + "/a folder" * 20
    assert wrapped(last) == last
    assert max(map(len, wrapped("A  " + "run " * 40, every=True).splitlines())) <= 100
    assert wrapped("") == ""


def test_the_result_is_for_people_or_for_scripts():
    @click.command(cls=Verb)
    @with_json
    def verb():
        tell("a sentence.", {"run_id": "1"}, "Next\n  look")

    run = CliRunner().invoke
    assert run(verb, []).stdout == "a sentence.\n\nNext\n  look\n"
    assert run(verb, ["--json"]).stdout == '{"run_id": "1"}\n'
    assert run(verb, ["-q"]).stdout == "a sentence.\n"


def test_next_names_what_is_there(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.html").write_text("")
    assert report_file(tmp_path.as_uri()) == str(tmp_path / "report/report.html")
    assert report_file("s3://bucket/1/artifacts") is None
    assert where_to_look("http://host:5000/", "1", "r") == "http://host:5000/#/experiments/1/runs/r"
    assert "mlflow ui --backend-store-uri sqlite:///a.db" in where_to_look(
        "sqlite:///a.db", "1", "r"
    )
    steps = next_steps("models:/dfm-caps/3", None, "ui")
    assert "dfm-mlflow promote models:/dfm-caps/3 --alias production" in steps
    assert "promote" not in next_steps("models:/m-0123", None, "ui")
