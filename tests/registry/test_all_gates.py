from dfm_mlflow.registry.all_gates import STEPS, Step, run_gates
from dfm_mlflow.registry.gates import Gate


def step(name, *passed, ends=False):
    return Step(lambda case: [Gate(name, one, "") for one in passed], ends)


def test_only_a_refusal_of_a_step_that_ends_leaves_the_others_out():
    passing, refusing = step("a", True, ends=True), step("b", True, False)
    ending, after = step("c", True, False, ends=True), step("d", True)
    nothing = step("none")
    found = run_gates(None, None, None, None, (passing, nothing, refusing, ending, after))
    assert [gate.name for gate in found] == ["a", "b", "b", "c", "c"]
    assert [gate.name for gate in run_gates(None, None, None, None, (refusing, after))][-1] == "d"


def test_what_is_broken_or_scores_otherwise_is_looked_at_no_further():
    assert [one.ends for one in STEPS] == [True, True, False, False, False, False]
