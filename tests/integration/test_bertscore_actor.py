"""BERTScore's encoder in a real Ray actor."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from mrpo.choices import AnswerKind, EncoderPlacement
from mrpo.config import AnswerConfig, BertScoreConfig, RewardConfig
from mrpo.errors import ConfigError, MRPOError, NonFiniteError
from mrpo.faults import Fault, FaultKind, FaultLog, read_faults
from mrpo.remote_similarity import BATCHES_PER_PART, _RemoteEncoder, remote_similarity
from mrpo.rewards import build_answer_scorer
from mrpo.rewards.bertscore import BertScoreEncoder
from mrpo.rewards.scorer import Similarity
from tests.tiny_encoder import NUM_LAYERS, WORDS, write_tiny_encoder

pytestmark = pytest.mark.usefixtures("ray_session")
PAIRS = [("small mass", "liver mass"), ("lung " * 200, "lung"), ("\u200b", "lung"), ("the nodule", "large nodule")]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BertScoreConfig:
    folder = write_tiny_encoder(tmp_path_factory.mktemp("encoder"))
    return BertScoreConfig(model=folder, num_layers=NUM_LAYERS, placement=EncoderPlacement.ACTOR)


@pytest.fixture(scope="module")
def similarity(ray_session: None, config: BertScoreConfig) -> Similarity:
    return asyncio.run(remote_similarity(config))


def encoders_of(config: BertScoreConfig) -> list[str]:
    return [name for name in ray.util.list_named_actors() if str(config.model) in name]


def test_an_actor_scores_like_the_encoder_in_this_process(config: BertScoreConfig, similarity: Similarity) -> None:
    f1 = asyncio.run(similarity(PAIRS))
    assert f1 == pytest.approx(BertScoreEncoder(config).f1(PAIRS), abs=1e-6)
    assert f1[2] == 0.0
    num_pairs = 2 * BATCHES_PER_PART * config.batch_size + 1  # three parts, put together in their order
    assert asyncio.run(similarity([PAIRS[n % 4] for n in range(num_pairs)])) == pytest.approx(
        [f1[n % 4] for n in range(num_pairs)], abs=1e-6
    )
    reward = RewardConfig(answer=AnswerConfig(kind=AnswerKind.MIXED, bertscore=config))
    scores = asyncio.run(build_answer_scorer(reward, similarity).score(PAIRS))
    # Of "the nodule" and "large nodule" one word of two is shared: ROUGE-1 F1 and BLEU-1 are 1/2 each.
    assert scores[3] == pytest.approx(0.25 * 0.5 + 0.25 * 0.5 + 0.5 * f1[3], abs=1e-6)


def test_who_asks_for_the_same_encoder_shares_it(config: BertScoreConfig, similarity: Similarity) -> None:
    async def body() -> list[list[float]]:
        others = await asyncio.gather(*(remote_similarity(config) for _ in range(3)))
        return await asyncio.gather(*(each(PAIRS) for each in (similarity, *others)))

    assert len({tuple(scores) for scores in asyncio.run(body())}) == 1
    assert len(encoders_of(config)) == 1


def test_an_actor_that_dies_comes_back(config: BertScoreConfig, similarity: Similarity, tmp_path: Path) -> None:
    before = asyncio.run(similarity(PAIRS))
    (name,) = encoders_of(config)
    actor = ray.get_actor(name)
    encoder = _RemoteEncoder(actor, name, 200.0, FaultLog(tmp_path / "faults.jsonl"), None)

    async def body() -> tuple[list[float], list[float]]:
        await encoder.ask("load")
        assert encoder._process is not None
        process = psutil.Process(encoder._process.pid)
        process.kill()
        process.wait(60)
        seen = await encoder.ask("f1", PAIRS)
        encoder._process = replace(encoder._process, pid=process.pid)  # as if another had died while nobody asked
        return seen, await encoder.ask("f1", PAIRS)

    for scores in asyncio.run(body()):
        assert scores == pytest.approx(before, abs=1e-6)
    faults = read_faults(tmp_path)
    assert [(fault.kind, fault.who) for fault in faults] == [(FaultKind.SCORER_LOST, name)] * 2
    assert all(fault.recovery_s is not None for fault in faults)


def test_an_actor_that_is_stuck_is_named_with_its_stack_killed_and_asked_again(
    config: BertScoreConfig, similarity: Similarity, tmp_path: Path
) -> None:
    before = asyncio.run(similarity(PAIRS))
    (name,) = encoders_of(config)

    class Patient(FaultLog):
        def begin(self, kind: FaultKind, who: str, detail: str = "") -> Fault:
            encoder._timeout_s = 200.0  # the new process loads on a machine that may be busy
            return super().begin(kind, who, detail)

    encoder = _RemoteEncoder(ray.get_actor(name), name, 200.0, Patient(tmp_path / "faults.jsonl"), tmp_path)

    async def body() -> list[float]:
        await encoder.ask("load")
        assert encoder._process is not None
        os.kill(encoder._process.pid, signal.SIGSTOP)
        encoder._timeout_s = 1.0
        scores: list[float] = await encoder.ask("f1", PAIRS)
        return scores

    assert asyncio.run(body()) == pytest.approx(before, abs=1e-6)
    (fault,) = read_faults(tmp_path)
    assert (fault.kind, fault.who) == (FaultKind.SCORER_LOST, name)
    assert fault.recovery_s is not None
    told = "it did not answer within watchdog.score_s=1 s and was killed (is stopped (state T)"
    assert fault.detail.startswith(told)
    (stacks,) = tmp_path.glob("stacks-bertscore-*.txt")
    assert name in stacks.read_text()


def test_an_actor_that_is_stuck_twice_ends_the_wait_with_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Silent:
        """An actor, and a method of it, that never answers."""

        def __getattr__(self, _: str) -> Silent:
            return self

        def options(self, **_: int) -> Silent:
            return self

        def remote(self) -> asyncio.Future[None]:
            return asyncio.get_running_loop().create_future()

    killed: list[object] = []
    monkeypatch.setattr(ray, "kill", lambda actor, **_: killed.append(actor))
    encoder = _RemoteEncoder(Silent(), "bertscore/e", 0.05, FaultLog(tmp_path / "faults.jsonl"), None)
    with pytest.raises(MRPOError, match=r"^the actor bertscore/e was started again and lost again: .*score_s=0\.05 s"):
        asyncio.run(encoder.ask("load"))
    assert len(killed) == 2
    assert [fault.recovery_s for fault in read_faults(tmp_path)] == [None]


def test_an_encoder_that_is_missing_on_the_actor_s_node(tmp_path: Path) -> None:
    missing = BertScoreConfig(model=str(tmp_path / "no_such_encoder"), placement=EncoderPlacement.ACTOR)
    with pytest.raises(ConfigError, match=r"reward\.answer\.bertscore\.model=.*no_such_encoder.* cannot be loaded on"):
        asyncio.run(remote_similarity(missing))


def test_a_fault_while_scoring_arrives_as_it_was_raised(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(write_tiny_encoder(tmp_path))
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][WORDS.index("small")] = torch.nan  # no word of the trial at loading
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = BertScoreConfig(model=str(folder), num_layers=NUM_LAYERS, placement=EncoderPlacement.ACTOR)

    async def body() -> None:
        similarity = await remote_similarity(config)
        with pytest.raises(NonFiniteError, match=r"^reward\.answer\.bertscore\.model=.*small mass"):
            await similarity([("small mass", "mass")])

    asyncio.run(body())
