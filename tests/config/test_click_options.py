import click
from click.testing import CliRunner

from dfm_mlflow.config import CompareOptions, UpdateOptions
from dfm_mlflow.config.click_options import options_of, with_experiment


def test_a_command_has_the_options_of_a_model():
    @click.command()
    @with_experiment
    @options_of(UpdateOptions, argument="model")
    def update(experiment, **values):
        click.echo(f"{experiment} {UpdateOptions.parse(values).copy_to} {values['model']}")

    done = CliRunner().invoke(update, ["m", "--verdicts", "v.csv", "--copy-to", "kept"])
    assert done.output == "auto kept m\n"
    text = CliRunner().invoke(update, ["--help"]).output
    assert all(
        f"--{n.replace('_', '-')} " in text for n in UpdateOptions.model_fields if n != "model"
    )
    assert CliRunner().invoke(update, []).exit_code == 2


def test_an_argument_may_be_many():
    @click.command()
    @options_of(CompareOptions, argument="runs")
    def compare(**values):
        click.echo(",".join(CompareOptions.parse(values).runs))

    assert CliRunner().invoke(compare, ["a", "b"]).output == "a,b\n"
