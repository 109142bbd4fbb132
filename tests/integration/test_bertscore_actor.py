"""BERTScore's encoder in a real Ray actor."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import ray

from mrpo.choices import AnswerKind, EncoderPlacement
from mrpo.config import AnswerConfig, BertScoreConfig, RewardConfig
from mrpo.errors import ConfigError, NonFiniteError
from mrpo.remote_similarity import remote_similarity
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


def test_an_actor_that_dies_comes_back(config: BertScoreConfig, similarity: Similarity) -> None:
    before = asyncio.run(similarity(PAIRS))
    (name,) = encoders_of(config)
    ray.kill(ray.get_actor(name), no_restart=False)
    assert asyncio.run(similarity(PAIRS)) == pytest.approx(before, abs=1e-6)


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
