"""Answers scored together, and BERTScore with a real encoder of toy size."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mrpo.choices import AnswerKind, EncoderPlacement
from mrpo.config import AnswerConfig, BertScoreConfig, RewardConfig
from mrpo.errors import ConfigError, MRPOError, NonFiniteError
from mrpo.rewards import answer, build_answer_reward, build_answer_scorer
from mrpo.rewards.bertscore import BertScoreEncoder, check_encoder
from mrpo.rewards.scorer import Pair, local_similarity, needs_encoder
from tests.tiny_encoder import NUM_LAYERS, NUM_POSITIONS, write_tiny_encoder

MIXED = RewardConfig(answer=AnswerConfig(kind=AnswerKind.MIXED))
TEXTS = ("small mass", "the large nodule", "mass in the liver", "lung", "a nodule of the lung", "unknown words here")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for a hub id must not wait for a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(folder: str) -> BertScoreEncoder:
    return BertScoreEncoder(settings(folder))


def settings(model: str | Path, **changes: Any) -> BertScoreConfig:
    return replace(BertScoreConfig(model=str(model), num_layers=NUM_LAYERS), **changes)


def mixed_config(bertscore: BertScoreConfig) -> RewardConfig:
    return RewardConfig(answer=AnswerConfig(kind=AnswerKind.MIXED, bertscore=bertscore))


def copy_of(folder: str, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))


class CountingSimilarity:
    """An encoder that gives what it is told, and remembers what it was asked."""

    def __init__(self, f1: float) -> None:
        self.f1 = f1
        self.asked: list[list[Pair]] = []

    async def __call__(self, pairs: Sequence[Pair]) -> list[float]:
        self.asked.append(list(pairs))
        return [self.f1] * len(pairs)


# The encoder


def test_f1_is_the_library_s(folder: str, encoder: BertScoreEncoder) -> None:
    from bert_score import BERTScorer

    pairs = [(one, other) for one in TEXTS for other in TEXTS]
    library = BERTScorer(model_type=folder, num_layers=NUM_LAYERS, idf=False, rescale_with_baseline=False, device="cpu")
    f1s = library.score([one for one, _ in pairs], [other for _, other in pairs])[2].tolist()
    assert encoder.f1(pairs) == pytest.approx(f1s, abs=1e-6)
    assert len({round(f1, 4) for f1 in f1s}) > 10  # an encoder that tells texts apart


def test_the_layer_is_the_configured_one(folder: str, encoder: BertScoreEncoder) -> None:
    from bert_score import BERTScorer

    first_layer = BertScoreEncoder(settings(folder, num_layers=1)).f1([("small mass", "liver")])
    assert first_layer == pytest.approx(
        [BERTScorer(model_type=folder, num_layers=1).score(["small mass"], ["liver"])[2].item()]
    )
    assert first_layer != pytest.approx(encoder.f1([("small mass", "liver")]), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_changes_nothing(folder: str, encoder: BertScoreEncoder, batch_size: int) -> None:
    pairs = [(one, other) for one in TEXTS for other in TEXTS] * 2
    in_parts = BertScoreEncoder(settings(folder, batch_size=batch_size)).f1(pairs)
    assert in_parts == pytest.approx(encoder.f1(pairs), abs=1e-6)


def test_long_texts_are_cut_off(encoder: BertScoreEncoder) -> None:
    short, long = " ".join(["lung mass"] * (NUM_POSITIONS // 2)), " ".join(["lung mass"] * 5000)
    cut, whole = encoder.f1([(short, "small mass"), (long, "small mass")])
    assert cut == pytest.approx(whole, abs=1e-6)
    assert 0.0 < whole < 1.0


def test_a_tokenizer_without_a_limit_gets_the_encoder_s(tmp_path: Path, folder: str, encoder: BertScoreEncoder) -> None:
    bare = write_tiny_encoder(tmp_path, with_tokenizer_config=False)
    assert not (Path(bare) / "tokenizer_config.json").exists()
    pairs = [("small mass", "liver mass"), ("lung mass " * 500, "small mass")]
    assert BertScoreEncoder(settings(bare)).f1(pairs) == pytest.approx(encoder.f1(pairs), abs=1e-6)


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "[SEP]", "[CLS] [SEP]"])
def test_a_text_without_tokens_overlaps_with_nothing(
    encoder: BertScoreEncoder, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    scores = encoder.f1([(text, "mass"), ("small mass", "mass"), ("mass", text), (text, text)])
    assert scores[0] == scores[2] == scores[3] == 0.0
    assert scores[1] > 0.0
    assert capfd.readouterr().err == ""  # bert-score would complain of each on the console


def test_nothing_to_compare(encoder: BertScoreEncoder) -> None:
    assert encoder.f1([]) == []


def test_an_encoder_that_breaks_later_is_no_silent_zero(folder: str) -> None:
    broken = BertScoreEncoder(settings(folder))
    broken.load()
    for parameter in broken._scorer._model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    with pytest.raises(NonFiniteError, match=r"reward\.answer\.bertscore\.model=.*small mass"):
        broken.f1([("small mass", "liver")])


def test_threads_may_share_an_encoder(encoder: BertScoreEncoder) -> None:
    pairs = [(one, other) for one in TEXTS for other in TEXTS]
    expected, found = encoder.f1(pairs), []
    threads = [threading.Thread(target=lambda: found.append(encoder.f1(pairs))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


# What is wrong with an encoder is said before anything starts


def test_a_missing_encoder_names_the_setting(tmp_path: Path) -> None:
    pattern = r"reward\.answer\.bertscore\.model=.*no_such_encoder.* cannot be loaded .*folder"
    for config in (settings(tmp_path / "no_such_encoder"), settings("no_such_encoder/at-all")):
        for build in (check_encoder, lambda config: local_similarity(mixed_config(config))):
            with pytest.raises(ConfigError, match=pattern) as raised:
                build(config)
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "model", ["./encoder", "../encoder", "~/no_such_encoder", "models/bert/base", "models/", "{}/none", ".\\encoder"]
)
def test_a_missing_folder_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no such folder: /") as raised:
        check_encoder(settings(model.format(tmp_path)))
    assert "Repo id" not in str(raised.value)


@pytest.mark.parametrize("model", ["no_such_encoder", "no_such_organisation/at-all"])
def test_a_hub_id_is_not_taken_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be loaded") as raised:
        check_encoder(settings(model))
    assert "no such folder" not in str(raised.value)


def test_a_relative_folder_that_is_there(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(folder).parent)
    check_encoder(settings(f"./{Path(folder).name}"))


def test_more_layers_than_there_are(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"reward\.answer\.bertscore\.num_layers=12 .* 2 layers .* at most 2"):
        local_similarity(mixed_config(settings(folder, num_layers=12)))


def test_an_encoder_without_weights(folder: str, tmp_path: Path) -> None:
    bare = copy_of(folder, tmp_path)
    (bare / "model.safetensors").unlink()
    check_encoder(settings(bare))  # looks at no weights
    with pytest.raises(ConfigError, match=r"reward\.answer\.bertscore\.model="):
        local_similarity(mixed_config(settings(bare)))


def test_an_encoder_without_vocabulary(tmp_path: Path) -> None:
    bare = Path(write_tiny_encoder(tmp_path, with_tokenizer_config=False))
    (bare / "vocab.txt").unlink()
    with pytest.raises(ConfigError, match=r"reward\.answer\.bertscore\.model=.*no vocabulary"):
        local_similarity(mixed_config(settings(bare)))


def test_damaged_weights(folder: str, tmp_path: Path) -> None:
    damaged = copy_of(folder, tmp_path)
    (damaged / "model.safetensors").write_bytes(b"these are no weights")
    with pytest.raises(ConfigError, match=r"reward\.answer\.bertscore\.model="):
        local_similarity(mixed_config(settings(damaged)))


def test_weights_that_give_nan(folder: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    poisoned = copy_of(folder, tmp_path)
    weights = load_file(poisoned / "model.safetensors")
    save_file({name: weight * float("nan") for name, weight in weights.items()}, poisoned / "model.safetensors")
    with pytest.raises(ConfigError, match=r"reward\.answer\.bertscore\.model=.*NaN"):
        local_similarity(mixed_config(settings(poisoned)))


def test_a_name_that_bert_score_mistakes_for_a_t5(folder: str, tmp_path: Path) -> None:
    named = Path(folder).rename(Path(folder).parent / "bert5")
    try:
        with pytest.raises(ConfigError, match=r"is of type bert, and bert-score takes it for a T5"):
            check_encoder(settings(named))
    finally:
        named.rename(folder)


# Scoring together


def test_weights_of_the_three_parts(folder: str) -> None:
    from bert_score import BERTScorer

    config = mixed_config(settings(folder))
    # ROUGE-1: precision 1/2, recall 1/3, F1 0.4. BLEU-1: precision 1/2, brevity penalty exp(1 − 3/2) = 0.60653066.
    f1 = BERTScorer(model_type=folder, num_layers=NUM_LAYERS).score(["the mass"], ["large liver mass"])[2].item()
    expected = 0.25 * 0.4 + 0.25 * 0.5 * 0.60653066 + 0.5 * f1
    scorer = build_answer_scorer(config, local_similarity(config))
    assert asyncio.run(scorer.score([("the mass", "large liver mass")])) == pytest.approx([expected], abs=1e-6)
    assert build_answer_reward(config)("the mass", "large liver mass") == pytest.approx(expected, abs=1e-6)


def test_a_batch_is_scored_like_its_pairs(folder: str) -> None:
    config = mixed_config(settings(folder))
    pairs = [
        (one, other) for one in (*TEXTS, "", "left lung", "2", "\u200b") for other in (*TEXTS, "right lung", "two")
    ]
    reward = build_answer_reward(config)
    scorer = build_answer_scorer(config, local_similarity(config))
    assert asyncio.run(scorer.score(pairs)) == pytest.approx([reward(*pair) for pair in pairs], abs=1e-6)


def test_the_encoder_is_asked_once_and_only_for_what_is_open() -> None:
    similarity = CountingSimilarity(f1=0.5)
    scorer = build_answer_scorer(mixed_config(settings("unused")), similarity)
    closed = [("Left lung.", "left lung"), ("left lung", "right lung"), ("", "liver"), ("mass", " "), ("1/2", "0.5")]
    pairs = [("spleen", "liver"), *closed, ("spleen", "liver"), ("spleen", "lung")]
    expected = [0.25, 1.0, 0.0, 0.0, 0.0, 1.0, 0.25, 0.25]
    assert asyncio.run(scorer.score(pairs)) == expected
    assert similarity.asked == [[("spleen", "liver"), ("spleen", "lung")]]
    assert asyncio.run(scorer.score([*pairs, ("heart", "lung")])) == [*expected, 0.25]
    assert similarity.asked[1:] == [[("heart", "lung")]]  # across steps too
    assert asyncio.run(scorer.score(closed)) == expected[1:6]
    assert asyncio.run(scorer.score([])) == []
    assert len(similarity.asked) == 2


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrpo.rewards.scorer.CACHE_SIZE", 2)
    similarity = CountingSimilarity(f1=0.5)
    scorer = build_answer_scorer(mixed_config(settings("unused")), similarity)
    pairs = [(word, "liver") for word in ("heart", "spleen", "lung")]
    assert asyncio.run(scorer.score(pairs)) == [0.25] * 3  # more than are remembered
    asyncio.run(scorer.score(pairs[1:]))
    assert len(similarity.asked) == 1
    asyncio.run(scorer.score(pairs[:1]))
    assert similarity.asked[1:] == [pairs[:1]]


def test_scores_stay_within_0_and_1() -> None:
    for f1 in (0.0, 1.0):
        scorer = build_answer_scorer(mixed_config(settings("unused")), CountingSimilarity(f1))
        scores = asyncio.run(scorer.score([("mass of liver", "liver of mass"), ("spleen", "liver")]))
        assert all(0.0 <= score <= 1.0 for score in scores)


def test_the_event_loop_goes_on_while_answers_are_scored(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the lexical part and the encoder wait here for a flag that only the event loop can set."""
    config = mixed_config(settings(folder))
    lexical, encoded = threading.Event(), threading.Event()
    rate, f1 = answer.Overlap.__call__, BertScoreEncoder.f1

    def slow_rate(self: answer.Overlap, *pair: str) -> answer.Rated:
        assert lexical.wait(timeout=20.0)
        return rate(self, *pair)

    def slow_f1(self: BertScoreEncoder, pairs: Sequence[Pair]) -> list[float]:
        assert encoded.wait(timeout=20.0)
        return f1(self, pairs)

    monkeypatch.setattr(answer.Overlap, "__call__", slow_rate)
    monkeypatch.setattr(BertScoreEncoder, "f1", slow_f1)
    scorer = build_answer_scorer(config, local_similarity(config))

    async def body() -> list[float]:
        task = asyncio.create_task(scorer.score([("spleen", "liver")]))
        for flag in (lexical, encoded):
            await asyncio.sleep(0.01)
            assert not task.done()
            flag.set()
        return await task

    assert 0.0 <= asyncio.run(body())[0] <= 1.0


def test_without_an_encoder_its_weight_moves_loudly_and_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mrpo"):
        scorer = build_answer_scorer(MIXED, local_similarity(MIXED))
        scores = asyncio.run(scorer.score([("left lungs", "left lung mass"), ("a mass", "left mass")]))
        asyncio.run(scorer.score([("liver", "left mass")]))
    assert scores[0] == pytest.approx(0.5 * 0.8 + 0.5 * 0.5 * 0.60653066)
    assert [record.message for record in caplog.records] == [
        "reward.answer.bertscore.model is not set: its weight of 0.5 goes to ROUGE-1 and BLEU-1, half each"
    ]


def test_exact_and_judge_need_no_encoder(caplog: pytest.LogCaptureFixture) -> None:
    for kind in (AnswerKind.EXACT, AnswerKind.JUDGE):
        config = RewardConfig(answer=AnswerConfig(kind=kind, bertscore=settings("no_such_encoder")))
        assert not needs_encoder(config)
        assert local_similarity(config) is None
        assert asyncio.run(build_answer_scorer(config, None).score([])) == []
    assert not caplog.records


def test_exact_scores_by_equality() -> None:
    scorer = build_answer_scorer(RewardConfig(), None)
    assert asyncio.run(scorer.score([("Two", "2"), ("two lesions", "2"), ("", "")])) == [1.0, 0.0, 0.0]


def test_answers_for_a_judge_must_not_come_here() -> None:
    scorer = build_answer_scorer(RewardConfig(answer=AnswerConfig(kind=AnswerKind.JUDGE)), None)
    with pytest.raises(MRPOError, match=r"reward\.answer\.kind=judge"):
        asyncio.run(scorer.score([("left", "left")]))


def test_an_encoder_for_an_actor_is_not_loaded_here() -> None:
    config = mixed_config(settings("no_such_encoder", placement=EncoderPlacement.ACTOR))
    assert needs_encoder(config)
    assert local_similarity(config) is None
