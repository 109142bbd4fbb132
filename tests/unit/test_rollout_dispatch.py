"""Who gets which requests, and what is done again."""

from __future__ import annotations

import random

from mrpo.types import RolloutRequest
from rollout.dispatch import Dispatch


def request(prompt: int, sample: int) -> RolloutRequest:
    return RolloutRequest(
        prompt_id=f"p{prompt}",
        sample_index=sample,
        question="?",
        image="/image.png",
        seed=100 * prompt + sample,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=4,
    )


def requests(prompts: int, samples: int) -> list[RolloutRequest]:
    return [request(prompt, sample) for sample in range(samples) for prompt in range(prompts)]


def keys(share: list[RolloutRequest]) -> list[str]:
    return [item.key for item in share]


def test_a_prompts_samples_stay_on_one_engine_and_all_are_dealt_out() -> None:
    dispatch = Dispatch(requests(5, 4), max_owned=100)
    shares = dispatch.assign(["a", "b"])
    assert sorted(keys(shares["a"] + shares["b"])) == sorted(keys(requests(5, 4)))
    assert not {r.prompt_id for r in shares["a"]} & {r.prompt_id for r in shares["b"]}
    assert [len(share) for share in shares.values()] == [12, 8]
    assert (dispatch.owned("a"), dispatch.owned("b"), dispatch.num_waiting) == (12, 8, 0)


def test_an_engine_holds_no_more_than_it_may_and_one_that_joins_gets_the_rest() -> None:
    dispatch = Dispatch(requests(6, 2), max_owned=4)
    assert [len(share) for share in dispatch.assign(["a", "b"]).values()] == [4, 4]
    assert dispatch.num_waiting == 4
    assert dispatch.assign(["a", "b"]) == {}
    assert keys(dispatch.assign(["a", "b", "c"])["c"]) == ["p4#0", "p4#1", "p5#0", "p5#1"]


def test_what_a_lost_engine_had_not_finished_is_done_by_others_first_and_only_once() -> None:
    dispatch = Dispatch(requests(4, 2), max_owned=4)
    dispatch.assign(["a"])
    assert dispatch.finish("a", "p0#1")
    assert dispatch.give_back("a") == 3
    assert not dispatch.finish("a", "p0#0"), "what the lost engine still says is nobody's"
    assert keys(dispatch.assign(["b"])["b"]) == ["p0#0", "p1#0", "p1#1", "p2#0", "p2#1"]
    assert dispatch.finish("b", "p0#0")
    assert not dispatch.finish("b", "p0#0")
    assert not dispatch.finish("b", "p0#1"), "it was finished before the engine was lost"


def test_without_an_engine_everything_waits() -> None:
    dispatch = Dispatch(requests(2, 2), max_owned=4)
    assert dispatch.assign([]) == {}
    assert (dispatch.remaining, dispatch.num_waiting) == (4, 4)


def test_whatever_is_lost_each_request_is_finished_exactly_once() -> None:
    for seed in range(30):
        draw = random.Random(seed)
        asked = requests(draw.randint(1, 9), draw.randint(1, 5))
        dispatch = Dispatch(asked, max_owned=draw.randint(1, 8))
        finished: list[str] = []
        sent: dict[str, list[str]] = {}
        life = 0
        while dispatch.remaining:
            engines = [f"{name}.{life}" for name in "abc"]
            for engine, share in dispatch.assign(engines).items():
                sent.setdefault(engine, []).extend(keys(share))
            for engine in engines:
                for key in sent.get(engine, [])[: draw.randint(0, 3)]:
                    if dispatch.finish(engine, key):
                        finished.append(key)
            if draw.random() < 0.3:
                for engine in engines:
                    dispatch.give_back(engine)
                life += 1
        assert sorted(finished) == sorted(keys(asked))
