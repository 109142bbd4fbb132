"""A real vLLM engine in a Ray actor, behind the pool: sampling, scoring, weights.

One engine serves every test of a family; families besides the first are a slow proof.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
import ray
from PIL import Image

from mrpo.config import Config, RolloutConfig
from mrpo.errors import DataError, EngineError, UserError, WeightSyncError
from mrpo.families import FAMILIES
from mrpo.host import host_id
from mrpo.phantom.toy_models import build_toy_model
from mrpo.types import Completion, FinishReason, RolloutRequest, ScoreSample
from rollout.pool import VllmRolloutPool
from rollout.spec import engine_specs
from rollout.vocabulary import Vocabulary, vocabulary_of

T = TypeVar("T")

CORPUS = ["The scan shows a liver.", "<think>The organ is the liver. It lies left.</think><answer>left</answer>"] * 3
MAX_NUM_SEQS = 100  # fewer than the requests of the largest call, so that some wait


@dataclass
class Started:
    """A pool of one engine, with what it was made of."""

    model_type: str
    folder: Path
    images: list[str]
    pool: VllmRolloutPool
    vocabulary: Vocabulary
    log_file: Path

    def requests(self, count: int, *, temperature: float = 1.0, max_new_tokens: int = 24) -> list[RolloutRequest]:
        """Four samples of each prompt; prompt k shows image k."""
        return [
            RolloutRequest(
                prompt_id=f"{index // 4}",
                sample_index=index % 4,
                question="Which organ?",
                image=self.images[index // 4 % len(self.images)],
                seed=1000 + index,
                temperature=temperature,
                top_p=1.0,
                max_new_tokens=max_new_tokens,
            )
            for index in range(count)
        ]

    def generate(self, requests: Sequence[RolloutRequest]) -> dict[str, Completion]:
        async def collect() -> dict[str, Completion]:
            return {completion.key: completion async for completion in self.pool.generate(requests)}

        completions = asyncio.run(collect())
        assert completions.keys() == {request.key for request in requests}
        return {request.key: completions[request.key] for request in requests}

    def score(self, completions: Sequence[Completion], *, image: str | None = None) -> list[list[float]]:
        samples = [
            ScoreSample(
                key=completion.key,
                image=image or self.images[int(completion.prompt_id) % len(self.images)],
                prompt_token_ids=completion.prompt_token_ids,
                completion_token_ids=completion.completion_token_ids,
            )
            for completion in completions
        ]
        return asyncio.run(self.pool.score(samples))


@pytest.fixture(
    scope="module",
    params=[
        "qwen2_5_vl",
        pytest.param("qwen3_vl", marks=pytest.mark.slow),
        pytest.param("internvl", marks=pytest.mark.slow),
    ],
)
def engine(
    request: pytest.FixtureRequest, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp(request.param)
    build_toy_model(request.param, root / "model", corpus=CORPUS)
    images = []
    for index, size in enumerate([(84, 84), (84, 84), (300, 200)]):  # the last one is scaled down by the processor
        pixels = np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
        images.append(str(root / f"{index}.png"))
    config = Config(rollout=RolloutConfig(max_num_seqs=MAX_NUM_SEQS, max_model_len=96, stall_timeout_s=60.0))
    pool = asyncio.run(
        VllmRolloutPool.start(engine_specs(config, str(root / "model"), request.param, log_dir=str(root)))
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(root / "model")
    yield Started(
        model_type=request.param,
        folder=root / "model",
        images=images,
        pool=pool,
        vocabulary=vocabulary_of(tokenizer, FAMILIES[request.param], len(tokenizer)),
        log_file=root / "engine-0.log",
    )
    asyncio.run(pool.close())


def test_seeded_samples_do_not_depend_on_what_shares_their_batch(engine: Started) -> None:
    many = engine.generate(engine.requests(48))
    few = engine.generate(engine.requests(5))
    assert {key: many[key].completion_token_ids for key in few} == {
        key: completion.completion_token_ids for key, completion in few.items()
    }
    assert len({tuple(completion.completion_token_ids) for completion in many.values()}) > 40


def test_completions_are_decoded_whole_and_end_by_turn_or_limit(engine: Started) -> None:
    completions = list(engine.generate(engine.requests(48)).values())
    for completion in completions:
        ids = completion.completion_token_ids
        assert (
            completion.text.encode()
            == b"".join(engine.vocabulary.pieces[i] for i in ids).decode(errors="replace").encode()
        )
        assert len(ids) == len(completion.rollout_logprobs) <= 24
        assert ids.count(engine.vocabulary.end_of_turn) == (completion.finish_reason == FinishReason.STOP)
        assert engine.vocabulary.image_token in completion.prompt_token_ids
        assert completion.started_s <= completion.ended_s
    reasons = {completion.finish_reason for completion in completions}
    assert reasons == {FinishReason.STOP, FinishReason.TRUNCATED}


def test_banned_tokens_never_come(engine: Started) -> None:
    completions = engine.generate(engine.requests(160, max_new_tokens=60)).values()
    sampled = [token for completion in completions for token in completion.completion_token_ids]
    # An untrained model likes all tokens about equally, so that unbanned they would come this often:
    expected = len(sampled) * len(engine.vocabulary.banned) / len(engine.vocabulary.pieces)
    assert expected > 50
    assert not set(sampled) & set(engine.vocabulary.banned)


def test_greedy_completions_agree_and_mixing_is_refused(engine: Started) -> None:
    greedy = engine.requests(4, temperature=0.0)
    assert len({tuple(completion.completion_token_ids) for completion in engine.generate(greedy).values()}) == 1
    with pytest.raises(UserError, match="one call"):
        engine.generate([*greedy, *engine.requests(8)[4:]])


def test_scores_are_the_log_probs_of_sampling(engine: Started) -> None:
    completions = list(engine.generate(engine.requests(12)).values())
    for completion, scores in zip(completions, engine.score(completions), strict=True):
        assert scores == pytest.approx(completion.rollout_logprobs, abs=1e-4)


def test_scores_equal_transformers_and_the_image_matters(engine: Started) -> None:
    completions = list(engine.generate(engine.requests(12)).values())
    scores = engine.score(completions)
    reference = transformers_scores(engine, engine.folder, completions)
    for ours, theirs in zip(scores, reference, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    other_image = engine.score(completions[:1], image=engine.images[1])
    assert max(abs(a - b) for a, b in zip(scores[0], other_image[0], strict=True)) > 1e-2


def test_scores_refuse_a_prompt_of_another_image(engine: Started) -> None:
    completion = next(iter(engine.generate(engine.requests(1)).values()))
    ids = completion.prompt_token_ids
    ids.insert(ids.index(engine.vocabulary.image_token), engine.vocabulary.image_token)
    with pytest.raises(UserError, match="are not what the processor makes of image"):
        engine.score([completion])


def test_scores_refuse_a_prompt_without_an_image(engine: Started) -> None:
    completion = next(iter(engine.generate(engine.requests(1)).values()))
    sample = ScoreSample(
        key="q1#0",
        image=None,
        prompt_token_ids=[i for i in completion.prompt_token_ids if i != engine.vocabulary.image_token],
        completion_token_ids=completion.completion_token_ids,
    )
    with pytest.raises(UserError, match=r"score of 'q1#0': it has no image, .*; give it an image, or ask the learner"):
        asyncio.run(engine.pool.score([sample]))
    with pytest.raises(UserError, match=r"score of 'q1#0': a prompt must hold one image, .*; give prompt_token_ids"):
        asyncio.run(engine.pool.score([replace(sample, image=engine.images[0])]))


def test_a_bad_request_is_named_and_harms_no_later_one(engine: Started) -> None:
    good = engine.requests(4)
    with pytest.raises(DataError, match=r"/nowhere/scan\.png"):
        engine.generate([*good, replace(good[0], prompt_id="9", image="/nowhere/scan.png")])
    with pytest.raises(UserError, match=r"'9#0' needs \d+ tokens .* rollout\.max_model_len=96"):
        engine.generate([*good, replace(good[0], prompt_id="9", max_new_tokens=90)])
    engine.generate(good)


def test_new_weights_change_the_policy_and_equal_transformers_with_them(engine: Started, tmp_path: Path) -> None:
    import torch

    generator = torch.Generator().manual_seed(7)
    before = engine.generate(engine.requests(12))
    scores_before = engine.score(list(before.values()))
    with changed_weights(engine, tmp_path, lambda _, w: w + 0.05 * torch.randn(w.shape, generator=generator)) as folder:
        after = engine.generate(engine.requests(12))
        assert {completion.policy_version for completion in after.values()} == {5}
        assert after["0#0"].completion_token_ids != before["0#0"].completion_token_ids
        scores = engine.score(list(before.values()))
        reference = transformers_scores(engine, folder, list(before.values()))
        for old, ours, theirs in zip(scores_before, scores, reference, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-3)
            assert max(abs(a - b) for a, b in zip(ours, old, strict=True)) > 1e-2
    again = engine.generate(engine.requests(12))
    assert {key: c.completion_token_ids for key, c in again.items()} == {
        key: c.completion_token_ids for key, c in before.items()
    }


def test_a_change_of_the_vision_tower_alone_is_seen(engine: Started, tmp_path: Path) -> None:
    """Text weights stay as they are, so that an engine that lost the tower's, or kept features of old images, fails."""
    import torch

    generator = torch.Generator().manual_seed(8)
    changed: set[str] = set()

    def shaken(name: str, weight: Any) -> Any:
        if not re.search(r"\b(visual|vision_tower)\.", name):
            return weight
        changed.add(name)
        return weight + 0.2 * torch.randn(weight.shape, generator=generator)

    completions = list(engine.generate(engine.requests(8)).values())
    before = engine.score(completions)
    with changed_weights(engine, tmp_path, shaken) as folder:
        after = engine.score(completions)
        reference = transformers_scores(engine, folder, completions)
    assert len(changed) > 5
    for old, ours, theirs in zip(before, after, reference, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert max(abs(a - b) for a, b in zip(ours, old, strict=True)) > 1e-2
    assert engine.score(completions) == [pytest.approx(old, abs=1e-5) for old in before]


def test_a_policy_that_prefers_banned_tokens_still_emits_none(engine: Started, tmp_path: Path) -> None:
    """The head's rows of all vision and chat-control tokens are made so long that one is nearly always first."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(engine.folder)
    banned = set(engine.vocabulary.banned)
    family = FAMILIES[engine.model_type]
    tags = {f"<{slash}{name}>" for name in (family.think_tag, "answer") for slash in ("", "/")}
    control = {
        index for token, index in tokenizer.get_added_vocab().items() if token not in {family.end_of_turn, *tags}
    }
    assert tokenizer.convert_tokens_to_ids(family.image_token) in control
    assert control <= banned

    def favouring(name: str, weight: Any) -> Any:
        if not name.endswith(("embed_tokens.weight", "lm_head.weight")):
            return weight
        longer = weight.clone()
        longer[sorted(banned)] *= 100.0
        return longer

    with changed_weights(engine, tmp_path, favouring):
        for temperature in (1.0, 0.0):
            sampled = list(engine.generate(engine.requests(24, temperature=temperature, max_new_tokens=40)).values())
            assert not banned & {token for completion in sampled for token in completion.completion_token_ids}
            raw = [value for completion in sampled for value in completion.rollout_logprobs]
            # Raw log-probs are of the policy before the ban.
            assert sum(value < np.log(0.01) for value in raw) > 0.5 * len(raw), "it does prefer them"


def test_an_update_that_leaves_weights_out_is_refused_and_can_be_completed(engine: Started, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(engine.folder / "model.safetensors")
    last = sorted(weights)[-1]
    (handle,) = engine.pool.handles
    wait(handle.start_weight_update.remote())
    send_bucket(handle, {name: w for name, w in weights.items() if name != last}, tmp_path)
    with pytest.raises(WeightSyncError, match="left out 1 of"):
        wait(handle.finish_weight_update.remote())
    with pytest.raises(WeightSyncError, match="unfinished weight update"):
        engine.generate(engine.requests(1))
    send_bucket(handle, {last: weights[last]}, tmp_path)
    wait(handle.finish_weight_update.remote())
    engine.generate(engine.requests(1))


def test_another_hosts_learner_is_refused(engine: Started) -> None:
    (handle,) = engine.pool.handles
    with pytest.raises(WeightSyncError, match="one host"):
        wait(handle.init_weight_transfer_engine.remote({"host": "elsewhere:0"}))


def test_weights_cannot_change_under_running_requests(engine: Started) -> None:
    (handle,) = engine.pool.handles

    async def interrupt() -> None:
        requests = [*engine.requests(1, max_new_tokens=1), *engine.requests(48, max_new_tokens=60)[1:]]
        stream = engine.pool.generate(requests)
        await anext(aiter(stream))
        with pytest.raises(WeightSyncError, match="requests are running"):
            await as_own_error(handle.start_weight_update.remote())
        assert len([completion async for completion in stream]) == 47

    asyncio.run(interrupt())


def test_output_goes_to_the_log_and_closing_leaves_no_process(engine: Started) -> None:
    """Runs last: it ends the engine."""
    (handle,) = engine.pool.handles
    pid = wait(handle.ready.remote()).pid
    process = psutil.Process(pid)
    assert engine.log_file.exists()
    asyncio.run(engine.pool.close())
    psutil.wait_procs([process], timeout=5)
    assert not psutil.pid_exists(pid)
    with pytest.raises(EngineError):
        engine.generate(engine.requests(1))


def wait(reference: Any) -> Any:
    return asyncio.run(as_own_error(reference))


async def as_own_error(reference: Awaitable[T]) -> T:
    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


@contextmanager
def changed_weights(engine: Started, folder: Path, change: Callable[[str, Any], Any]) -> Iterator[Path]:
    """The engine runs on changed weights, version 5, and a folder holds them as a checkpoint; afterwards on its own."""
    from safetensors.torch import load_file, save_file

    weights = load_file(engine.folder / "model.safetensors")
    changed = {name: change(name, weight) for name, weight in weights.items()}
    shutil.copytree(engine.folder, folder / "changed")
    save_file(changed, folder / "changed" / "model.safetensors", metadata={"format": "pt"})
    (handle,) = engine.pool.handles
    wait(handle.init_weight_transfer_engine.remote({"host": host_id()}))
    try:
        send(handle, changed, folder)
        asyncio.run(engine.pool.set_policy_version(5))
        yield folder / "changed"
    finally:
        send(handle, weights, folder)
        asyncio.run(engine.pool.set_policy_version(0))


def send(handle: Any, weights: dict[str, Any], folder: Path) -> None:
    """A whole update, in two buckets that cut through layers."""
    names = sorted(weights)
    wait(handle.start_weight_update.remote())
    for part in (names[::2], names[1::2]):
        send_bucket(handle, {name: weights[name] for name in part}, folder)
    wait(handle.finish_weight_update.remote())


def send_bucket(handle: Any, weights: dict[str, Any], folder: Path) -> None:
    data = bytearray()
    offsets = []
    for tensor in weights.values():
        offsets.append(len(data))
        data += tensor.contiguous().numpy().tobytes()
    path = Path("/dev/shm") / f"mrpo-test-{folder.name}-{len(data)}"
    path.write_bytes(data)
    try:
        wait(
            handle.update_weights.remote(
                {
                    "path": str(path),
                    "names": list(weights),
                    "dtypes": ["float32"] * len(weights),
                    "shapes": [list(tensor.shape) for tensor in weights.values()],
                    "offsets": offsets,
                    "num_bytes": len(data),
                    "checksum": zlib.crc32(data),
                }
            )
        )
    finally:
        path.unlink()


def transformers_scores(engine: Started, folder: Path, completions: Sequence[Completion]) -> list[list[float]]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    scores = []
    for completion in completions:
        ids = torch.tensor([[*completion.prompt_token_ids, *completion.completion_token_ids]])
        with Image.open(engine.images[int(completion.prompt_id) % len(engine.images)]) as image:
            pixels = processor.image_processor(images=[image.convert("RGB")], return_tensors="pt")
        inputs = {name: pixels[name] for name in FAMILIES[engine.model_type].pixel_inputs}
        if engine.model_type != "internvl":
            inputs["mm_token_type_ids"] = (ids == engine.vocabulary.image_token).int()
        with torch.no_grad():
            logprobs = model(input_ids=ids, **inputs).logits[0].log_softmax(-1)
        first = len(completion.prompt_token_ids) - 1
        scores.append([float(logprobs[first + i, token]) for i, token in enumerate(completion.completion_token_ids)])
    return scores
