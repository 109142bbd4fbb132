"""Plans of kills, and how long a run may take to get over each."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from mrpo.faults import Fault, FaultKind
from tests.integration.chaos_plan import DELAY_S, GAP, Kill, Victim, plan_kills
from tests.integration.chaos_recovery import Killed, judge_recoveries, note_progress, open_faults


@pytest.mark.parametrize("seed", range(10))
def test_thirty_steps_meet_every_kind_a_few_steps_apart(seed: int) -> None:
    kills = plan_kills(seed, 30)
    assert {kill.victim for kill in kills} == set(Victim)
    steps = [0, *(kill.step for kill in kills)]
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    assert min(gaps) >= GAP[0] and max(gaps) <= GAP[1]
    assert steps[-1] <= 28
    assert all(0 <= kill.pick < 1 and 0 <= kill.delay_s <= DELAY_S for kill in kills)


def test_a_seed_names_one_plan() -> None:
    assert plan_kills(3, 30) == plan_kills(3, 30)
    assert len({tuple(plan_kills(seed, 30)) for seed in range(10)}) == 10


def killed(victim: Victim, at_s: float, step: int, *, with_actors: tuple[str, ...] = ("LearnerActor",)) -> Killed:
    """A kill of something called "x"."""
    kill = Kill(step=step, delay_s=0.0, victim=victim, pick=0.0)
    return Killed(kill=kill, name="x", at_s=at_s, step=step, actors=list(with_actors), bearers=["x"], whole_step_s=5.0)


def fault(kind: FaultKind, at_s: float, recovery_s: float | None) -> Fault:
    """Of "x"."""
    return Fault(kind=kind, who="x", detail="", at_s=at_s, recovery_s=recovery_s)


def test_a_recovery_counts_from_the_kill_and_is_the_last_kills_before_it() -> None:
    kills = [killed(Victim.LEARNER_RANK, 100.0, 3), killed(Victim.JUDGE_ACTOR, 200.0, 6)]
    faults = [fault(FaultKind.LEARNER_LOST, 110.0, 49.0), fault(FaultKind.JUDGE_ACTOR_LOST, 201.0, 1.0)]
    assert judge_recoveries(kills, faults, ended_s=400.0, patience=1.0) == []
    assert kills[0].faults == {"learner_lost x": 59.0}
    assert kills[1].faults == {"judge_actor_lost x": 2.0}


def test_slow_recoveries_and_silent_losses_are_seen() -> None:
    kills = [killed(Victim.LEARNER_RANK, 100.0, 3), killed(Victim.JUDGE_ACTOR, 200.0, 6)]
    found = judge_recoveries(kills, [fault(FaultKind.LEARNER_LOST, 110.0, 51.0)], ended_s=400.0, patience=1.0)
    assert found == [
        "learner_rank x killed at step 3: learner_lost x took 61 s, at most 60 s",
        "judge_actor x killed at step 6: no fault is on record",
    ]
    assert judge_recoveries(kills[:1], [fault(FaultKind.LEARNER_LOST, 110.0, None)], ended_s=400.0, patience=1.0) == [
        "learner_rank x killed at step 3: learner_lost x not within 300 s, at most 60 s"
    ]


def test_what_is_killed_again_while_it_starts_goes_on_with_its_fault() -> None:
    kills = [killed(Victim.ENGINE, 100.0, 3), killed(Victim.ENGINE, 120.0, 6)]
    kills[1].name = "x.2"
    assert judge_recoveries(kills, [fault(FaultKind.ENGINE_LOST, 101.0, 70.0)], ended_s=400.0, patience=1.0) == []
    assert kills[1].faults == {"engine_lost x": 51.0}
    kills[1].bearers, kills[1].faults = ["y"], {}
    assert len(judge_recoveries(kills, [fault(FaultKind.ENGINE_LOST, 101.0, 70.0)], ended_s=400.0, patience=1.0)) == 1


def test_a_node_is_noticed_late_and_what_was_starting_on_it_has_its_fault_already() -> None:
    node = killed(Victim.NODE, 100.0, 25, with_actors=("RolloutWorker",))
    node.bearers = ["engines-b", "engine-0"]
    kills = [node, killed(Victim.LEARNER_RANK, 107.0, 28)]
    faults = [
        replace(fault(FaultKind.ENGINE_LOST, 62.0, None), who="engine-0.2"),
        fault(FaultKind.LEARNER_LOST, 109.0, 11.0),
        replace(fault(FaultKind.NODE_LOST, 117.0, 0.0), who="engines-b 192.0.2.2 (b9113f3f)"),
    ]
    assert judge_recoveries(kills, faults, ended_s=140.0, patience=1.0) == []
    assert node.faults == {"engine_lost engine-0.2": None, "node_lost engines-b 192.0.2.2 (b9113f3f)": 17.0}
    assert kills[1].faults == {"learner_lost x": 13.0}


def test_what_a_kill_brings_about_elsewhere_has_its_time_too() -> None:
    kills = [killed(Victim.LEARNER_RANK, 100.0, 3)]
    faults = [
        fault(FaultKind.LEARNER_LOST, 101.0, 9.0),
        replace(fault(FaultKind.ENGINE_LOST, 102.0, 121.0), who="engine-1"),
    ]
    found = judge_recoveries(kills, faults, ended_s=400.0, patience=1.0)
    assert found == ["engine_lost engine-1 took 121 s, at most 120 s"]


def test_who_has_not_recovered_goes_by_the_first_name() -> None:
    faults = [fault(FaultKind.ENGINE_LOST, 1.0, None), fault(FaultKind.JUDGE_ACTOR_LOST, 2.0, 3.0)]
    faults[0].who = "engine-1.3"
    assert open_faults(faults) == {"engine-1"}


def test_what_is_lost_shortly_before_the_end_need_not_come_back() -> None:
    one = [killed(Victim.ENGINE, 350.0, 3, with_actors=("RolloutWorker",))]
    assert judge_recoveries(one, [fault(FaultKind.ENGINE_LOST, 351.0, None)], ended_s=400.0, patience=1.0) == []
    assert len(judge_recoveries(one, [fault(FaultKind.ENGINE_LOST, 351.0, None)], ended_s=471.0, patience=1.0)) == 1


def test_a_node_with_an_engine_has_an_engines_time() -> None:
    faults = [fault(FaultKind.ENGINE_LOST, 101.0, 100.0)]
    with_engine = killed(Victim.NODE, 100.0, 3, with_actors=("RolloutWorker", "JudgeWorker"))
    assert judge_recoveries([with_engine], faults, ended_s=400.0, patience=1.0) == []
    assert len(judge_recoveries([killed(Victim.NODE, 100.0, 3)], faults, ended_s=400.0, patience=1.0)) == 1
    empty = killed(Victim.NODE, 100.0, 3, with_actors=())
    assert judge_recoveries([empty], [], ended_s=400.0, patience=1.0) == [], "nothing of the run was on it"


def test_progress_is_a_step_made_wholly_after_the_kill() -> None:
    one = killed(Victim.ENGINE, 100.0, 3)
    one.whole_step_s = None
    note_progress([one], 4)
    assert one.whole_step_s is None
    note_progress([one], 5)
    assert one.whole_step_s is not None
