import numpy as np
import pytest

from dfm_mlflow.spark.quantiles import lower_counts, quantile_of_counts, upper_counts


def of_parts(q, parts):
    return quantile_of_counts(
        q, sum(upper_counts(p) for p in parts), lambda h: sum(lower_counts(p, h) for p in parts)
    )


@pytest.mark.parametrize("q", [0, 0.001, 0.5, 0.999, 1])
@pytest.mark.parametrize("n", [1, 2, 1000])
def test_counts_give_the_quantile_of_all_values(q, n):
    values = np.random.default_rng(n).lognormal(3, 2, n).astype(np.float32)
    values[::3] = values[0]  # ties
    expected = np.quantile(values.astype(np.float64), q)
    assert of_parts(q, np.array_split(values, 4)) == pytest.approx(expected, rel=1e-12)


def test_no_values_give_zero():
    assert of_parts(0.5, [np.zeros(0, np.float32)]) == 0.0
