import itertools
import threading
import warnings
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest

from dfm_mlflow.errors import PromotionError
from dfm_mlflow.registry.aliases import STAGES, Move, make_move, rollback

PREFIX = "dfm.promotion.production."


def move(registry, alias, before, version):
    tags = {f"dfm.promotion.{alias}.previous": str(before or "none")}
    plan = Move.plan(registry.name, alias, before and str(before), str(version))
    make_move(registry.client, plan, {plan.version: tags})
    return plan


class Turns:
    """Lets threads act one at a time, in a given order; who is done gives up its turns."""

    def __init__(self, order):
        self._order, self._done, self._changed = list(order), set(), threading.Condition()

    def _next(self):
        while self._order and self._order[0] in self._done:
            self._order.pop(0)
        return self._order[0] if self._order else None

    def act(self, me, action):
        with self._changed:
            assert self._changed.wait_for(lambda: self._next() in (me, None), timeout=20)
            if self._order:
                self._order.pop(0)
            result = action()
            self._changed.notify_all()
            return result

    def leave(self, me):
        with self._changed:
            self._done.add(me)
            self._changed.notify_all()


class Server:
    """A registry in memory; every call is one turn."""

    def __init__(self, turns):
        self.turns, self.aliases, self.tags, self.told = turns, {}, {}, {}

    def client(self, me):
        def act(action):
            return self.turns.act(me, action)

        def read(name):
            return act(lambda: SimpleNamespace(aliases=dict(self.aliases), tags=dict(self.tags)))

        return SimpleNamespace(
            get_registered_model=read,
            set_registered_model_tag=lambda n, key, value: act(
                lambda: self.tags.update({key: value})
            ),
            set_registered_model_alias=lambda n, alias, version: act(
                lambda: self.aliases.update({alias: version})
            ),
            set_model_version_tag=lambda *_: None,
            transition_model_version_stage=lambda *_, **__: None,
        )

    def promote(self, me):
        try:
            make_move(self.client(me), Move("m", "production", None, str(me), f"id{me}"), {})
            self.told[me] = "won"
        except PromotionError as error:
            self.told[me] = "refused" if "nothing was moved" in str(error) else "contested"
        finally:
            self.turns.leave(me)


def outcome(order, n):
    server = Server(Turns(order))
    threads = [threading.Thread(target=server.promote, args=(me,)) for me in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(server.told) == n
    return server


def orders():
    """Every order of the 5 calls of two promotions, and some of three."""
    for mine in itertools.combinations(range(10), 5):
        yield [int(i not in mine) for i in range(10)], 2
    rng = np.random.default_rng(0)
    for _ in range(300):
        yield rng.permutation(np.repeat([0, 1, 2], 5)).tolist(), 3


def test_in_no_order_do_two_promotions_both_win():
    seen = set()
    for order, n in orders():
        server = outcome(order, n)
        told = server.told
        seen.add(tuple(sorted(told.values())))
        winners = [me for me, what in told.items() if what == "won"]
        assert len(winners) <= 1, order
        holder = int(server.aliases["production"])
        assert told[holder] != "refused", order  # who is told that nothing moved moved nothing
        if winners and holder != winners[0]:
            assert told[holder] == "contested", order  # somebody knows, and says so
    assert {("refused", "won"), ("contested", "won"), ("contested", "refused")} <= seen


def test_one_after_the_other_the_second_is_refused():
    assert outcome([0] * 5 + [1] * 5, 2).told == {0: "won", 1: "refused"}


def test_stages_follow_without_a_warning(registry):
    registry.add("good", "twin")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        move(registry, "staging", None, 2)
        assert registry.version(2).current_stage == STAGES["staging"]
        move(registry, "production", None, 2)
        assert registry.version(2).current_stage == STAGES["production"]
        move(registry, "staging", 2, 1)
        move(registry, "canary", None, 1)
        assert registry.version(1).current_stage == STAGES["staging"]
        move(registry, "staging", 1, 2)  # in production, and stays there
    assert registry.version(2).current_stage == STAGES["production"]
    assert registry.aliases == {"staging": 2, "production": 2, "canary": 1}


def refuse(*_, **__):
    raise mlflow.MlflowException("not here", error_code=mlflow.exceptions.ENDPOINT_NOT_FOUND)


def test_a_server_without_stages_is_enough(registry, caplog):
    registry.add("good")
    registry.client.transition_model_version_stage = refuse
    move(registry, "production", None, 1)
    assert registry.aliases == {"production": 1}
    assert "sets no stage (ENDPOINT_NOT_FOUND)" in caplog.text


def test_a_server_that_refuses_is_quoted_in_a_sentence(registry):
    registry.add("good", "twin")
    registry.client.set_registered_model_alias = refuse
    with pytest.raises(PromotionError, match="it points to no version still; check permissions"):
        move(registry, "production", None, 1)
    registry.client.set_model_version_tag = refuse
    with pytest.raises(
        PromotionError, match=r"refuses to tag .*ENDPOINT_NOT_FOUND.* nothing was moved"
    ):
        move(registry, "production", None, 1)


def test_rollback_goes_back_step_by_step_on_the_record(registry):
    registry.add("good", "twin", "good")
    for before, version in ((None, 1), (1, 2), (2, 3)):
        move(registry, "production", before, version)
    assert rollback(registry.name, "production", "flags everything").version == "2"
    assert registry.aliases == {"production": 2}
    stages = [registry.version(v).current_stage for v in (1, 2, 3)]
    assert stages == ["Archived", "Production", "Archived"]
    for version in (2, 3):
        tags = registry.tags(version, "dfm.rollback.production.")
        assert (tags["from"], tags["to"], tags["reason"]) == ("3", "2", "flags everything")
        assert tags["by"]
        assert tags["at"].endswith("+00:00")
    assert rollback(registry.name, "production").version == "1"
    with pytest.raises(PromotionError, match="Nothing is known to have held production"):
        rollback(registry.name, "production")
    assert registry.aliases == {"production": 1}


def test_rollback_to_nothing_gets_a_sentence(registry):
    registry.add("good", "twin")
    with pytest.raises(PromotionError, match="No version of .* holds production"):
        rollback(registry.name, "production")
    with pytest.raises(PromotionError, match="registered model dfm-none cannot be read"):
        rollback("dfm-none", "production")
    registry.point("production", 1)  # by hand: nobody wrote what was before
    with pytest.raises(PromotionError, match="promote the version that should hold it"):
        rollback(registry.name, "production")
    move(registry, "production", 1, 2)
    registry.client.delete_model_version(registry.name, "1")
    with pytest.raises(PromotionError, match="Version 1 .* and it is gone"):
        rollback(registry.name, "production")
    assert registry.aliases == {"production": 2}
