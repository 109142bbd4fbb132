"""One vLLM engine: requests in, completions out, weights swapped in between. A plain class of one thread.

It steps vLLM's `LLMEngine` itself, which can hold the engine core in this process; `AsyncLLM` always starts another.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.core_client import MPClient
from vllm.v1.engine.llm_engine import LLMEngine

from mrpo.choices import Device
from mrpo.errors import UserError, WeightSyncError
from mrpo.families import Family, family_of
from mrpo.images import processor_settings, read_image
from mrpo.prompts import chat_messages
from mrpo.types import Completion, RolloutRequest, ScoreSample
from rollout.engine_config import engine_config
from rollout.request import build_completion, refuse_mixed
from rollout.spec import EngineSpec
from rollout.token_bans import ADDITIONAL_CONFIG_KEY
from rollout.vocabulary import collapse_image, vocabulary_of

NUM_IMAGES_KEPT = 16  # samples of a prompt follow each other
PROMPT_CACHE_SIZE = 64  # prompts kept ready; a batch's worth, because samples of a prompt arrive together
SLEEP_LEVEL = 1  # weights go to main memory: under adapters they are never sent again


@dataclass(frozen=True, slots=True)
class _Pending:
    """A request inside the engine."""

    request: RolloutRequest | None  # None: a score
    finish: Callable[[RequestOutput], None]


class Engine:
    """Not safe for threads: its owner calls everything from one.

    Construct it in a process whose environment is `engine_environment(spec)`.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._family = family_of(spec.model_type)
        processor = _load_processor(spec.model_folder, self._family)
        images = processor_settings(
            processor.image_processor, self._family, max_pixels=spec.max_pixels, max_tiles=spec.max_tiles
        )
        self._traces = Path(tempfile.mkdtemp(prefix="mrpo-trace-")) if spec.trace_stacks is not None else None
        config = engine_config(spec, images, self._traces)
        vocab_size = config.model_config.get_vocab_size()
        self._vocabulary = vocabulary_of(processor.tokenizer, self._family, vocab_size)
        config.additional_config = {ADDITIONAL_CONFIG_KEY: self._vocabulary.banned}
        self._llm: Any = LLMEngine.from_vllm_config(config, disable_log_stats=True)
        assert self._llm.renderer.mm_processor is not None
        self._processor: Any = self._llm.renderer.mm_processor.info.get_hf_processor()
        self._prompts: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._read = lru_cache(NUM_IMAGES_KEPT)(partial(read_image, max_pixels=spec.max_pixels))
        self._pending: dict[str, _Pending] = {}
        self._ids = itertools.count()
        self._policy_version = 0
        self._updating = False
        self._asleep = False
        self._adapter: LoRARequest | None = None  # every request is run with it
        # Rendering a prompt asks for torch's thread count to be set, and the CPU worker warns each time that it is not.
        logging.getLogger("vllm.v1.worker.cpu_worker").setLevel(logging.ERROR)

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._pending)

    @property
    def updating(self) -> bool:
        """Whether a weight update was begun and not finished."""
        return self._updating

    @property
    def core_is_lost(self) -> bool:
        """Whether vLLM's core, where it is a process of its own, or a worker of it is gone; safe for threads."""
        core = self._llm.engine_core
        return isinstance(core, MPClient) and core.resources.engine_dead

    def sample(self, request: RolloutRequest, done: Callable[[Completion], None]) -> str:
        """Submit one completion and return its id; `done` is called by the `step` in which it ends.

        Raises:
            UserError: the prompt and max_new_tokens exceed max_model_len, or greedy and sampled requests would mix.
            DataError: the image cannot be read.
        """
        if self._pending:
            other = next((item.request for item in self._pending.values() if item.request), None)
            refuse_mixed([request] if other is None else [other, request])
        prompt = self._prompt(request.question, request.image)
        prompt_token_ids = list(prompt["prompt_token_ids"])
        self._check_length(request.key, len(prompt_token_ids) + request.max_new_tokens)
        version, started_s = self._policy_version, time.time()

        def finish(output: RequestOutput) -> None:
            sequence = output.outputs[0]
            done(
                build_completion(
                    request,
                    self._vocabulary,
                    think_tag=self._family.think_tag,
                    step_strategy=self._spec.step_strategy,
                    prompt_token_ids=prompt_token_ids,
                    completion_token_ids=list(sequence.token_ids),
                    rollout_logprobs=_values(sequence.logprobs),
                    policy_version=version,
                    started_s=started_s,
                    ended_s=time.time(),
                )
            )

        params = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_new_tokens,
            seed=request.seed if request.temperature > 0 else None,
            logprobs=0,  # the sampled token's alone
            **self._common_params(),
        )
        return self._submit(prompt, params, _Pending(request, finish))

    def score(self, sample: ScoreSample, done: Callable[[list[float]], None]) -> str:
        """Ask for the raw log-probs [T] of given completion tokens; `done` is called by the `step` that has them.

        Returns:
            The request's id.

        Raises:
            UserError: no image; the prompt does not hold one, or is not what the processor makes of this one.
            DataError: the image cannot be read.
        """
        if sample.image is None:
            raise UserError(
                f"score of {sample.key!r}: it has no image, and engines take prompts with one alone; give it an image, "
                "or ask the learner, which scores text alone too"
            )
        try:
            collapsed = collapse_image(sample.prompt_token_ids, self._vocabulary)
        except ValueError as error:
            raise UserError(
                f"score of {sample.key!r}: {error}; give prompt_token_ids as a completion has them"
            ) from error
        num_scored = len(sample.completion_token_ids)
        token_ids = [*sample.prompt_token_ids, *sample.completion_token_ids]
        prompt = self._render({"prompt_token_ids": [*collapsed, *sample.completion_token_ids]}, sample.image)
        if list(prompt["prompt_token_ids"]) != token_ids:
            raise UserError(
                f"score of {sample.key!r}: prompt_token_ids are not what the processor makes of image "
                f"{sample.image!r}; they must come from the same image, processor and model.max_pixels"
            )
        self._check_length(sample.key, len(token_ids))

        def finish(output: RequestOutput) -> None:
            done(_values(output.prompt_logprobs)[-num_scored:] if num_scored else [])

        # Seeded like every sampled request, so that its row never spoils the seeds of a batch.
        params = SamplingParams(temperature=1.0, seed=0, max_tokens=1, prompt_logprobs=0, **self._common_params())
        return self._submit(prompt, params, _Pending(None, finish))

    def step(self) -> None:
        """Advance every request by one token and report those that ended."""
        for output in self._llm.step():
            assert isinstance(output, RequestOutput)
            if output.finished and (pending := self._pending.pop(output.request_id, None)):
                pending.finish(output)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Drop those of the requests that are still running; they are not reported."""
        running = [request_id for request_id in request_ids if self._pending.pop(request_id, None)]
        self._llm.abort_request(running)

    def sleep(self) -> None:
        """Give the GPUs to the learner: weights go to main memory, the cache of keys and values is dropped.

        Raises:
            WeightSyncError: requests are still running.
        """
        self._refuse_busy("sleep")
        self._llm.sleep(level=SLEEP_LEVEL)
        self._asleep = True

    def wake_up(self) -> None:
        """Bring the weights back, to be updated; the cache follows with `set_policy_version`."""
        if self._asleep:
            self._llm.wake_up(tags=["weights"])

    def set_policy_version(self, version: int) -> None:
        """Forget everything computed with the former weights and stamp what is submitted from here.

        Raises:
            WeightSyncError: requests are still running.
        """
        self._refuse_busy("set_policy_version")
        self._refuse_half_updated()
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        self._llm.reset_encoder_cache()
        if self._spec.device == Device.GPU:
            self._prompts.clear()
        self._policy_version = version

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Meet the sender; once, before the first update."""
        self._llm.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": init_info})

    def start_weight_update(self) -> None:
        """Get ready for buckets.

        Raises:
            WeightSyncError: requests are still running, which would mix two policies, or an update broke off before.
        """
        self._refuse_busy("start_weight_update")
        self._refuse_half_updated()
        self._updating = True
        self._llm.collective_rpc("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one bucket."""
        self._llm.collective_rpc("update_weights", kwargs={"update_info": update_info})

    def finish_weight_update(self) -> None:
        """Run on the new weights from here; `set_policy_version` must follow."""
        self._llm.collective_rpc("finish_weight_update")
        self._updating = False

    def load_adapter(self, files: dict[str, bytes]) -> None:
        """Run on this adapter from here, in place of the former; `set_policy_version` must follow.

        Args:
            files: by name, as PEFT writes them.

        Raises:
            WeightSyncError: requests are still running.
        """
        self._refuse_busy("load_adapter")
        self._updating = True  # until the new one is there
        number = 1
        if self._adapter is not None:
            number += self._adapter.lora_int_id
            self._llm.remove_lora(self._adapter.lora_int_id)
        with tempfile.TemporaryDirectory(prefix="mrpo-adapter-") as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            # vLLM knows an adapter by its number and would take a new one of the same number for the one it has.
            self._adapter = LoRARequest(lora_name=f"policy-{number}", lora_int_id=number, lora_path=folder)
            self._llm.add_lora(self._adapter)
        self._updating = False

    def start_trace(self) -> None:
        """Record what the engine's processes compute from now on; the spec must have said that it would be asked."""
        self._llm.start_profile()

    def stop_trace(self) -> list[bytes]:
        """End the recording; a compressed Chrome trace of each of its processes."""
        assert self._traces is not None
        self._llm.stop_profile()
        paths = sorted(self._traces.glob("*.json.gz"))
        traces = [path.read_bytes() for path in paths]
        for path in paths:
            path.unlink()
        return traces

    def close(self) -> None:
        """End the engine and its processes."""
        if self._traces is not None:
            shutil.rmtree(self._traces, ignore_errors=True)
        self._llm.engine_core.shutdown()
        self._llm.renderer.shutdown()

    def _common_params(self) -> dict[str, Any]:
        return {
            "stop_token_ids": [self._vocabulary.end_of_turn],
            "detokenize": False,  # text is decoded once, from bytes, when a completion ends
            "flat_logprobs": True,
            "output_kind": RequestOutputKind.FINAL_ONLY,
        }

    def _submit(self, prompt: Any, params: SamplingParams, pending: _Pending) -> str:
        self._refuse_half_updated()
        if self._asleep:
            raise WeightSyncError(f"{self._spec.name} sleeps; wake_up and set_policy_version come before requests")
        request_id = str(next(self._ids))
        self._llm.add_request(request_id, prompt, params, lora_request=self._adapter)
        self._pending[request_id] = pending
        return request_id

    def _prompt(self, question: str, image: str) -> Any:
        """A prompt as the engine takes it, read and processed once for all samples of it."""
        key = (question, image)
        prompt = self._prompts.get(key)
        if prompt is None:
            messages = chat_messages(question, self._family, terse=self._spec.terse)
            text = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            prompt = self._render({"prompt": text}, image)
            if self._spec.device == Device.GPU:
                # vLLM's own cache sends an image to the other process once and must see every request.
                return prompt
            self._prompts[key] = prompt
            if len(self._prompts) > PROMPT_CACHE_SIZE:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(key)
        return prompt

    def _render(self, prompt: dict[str, Any], image: str) -> Any:
        pixels = self._read(image)
        return self._llm.renderer.render_cmpl([{**prompt, "multi_modal_data": {"image": pixels}}])[0]

    def _check_length(self, key: str, num_tokens: int) -> None:
        limit = self._spec.rollout.max_model_len
        if num_tokens > limit:
            raise UserError(
                f"{key!r} needs {num_tokens} tokens with its completion, more than rollout.max_model_len={limit}; "
                "raise it, or lower rollout.max_new_tokens or model.max_pixels"
            )

    def _refuse_busy(self, what: str) -> None:
        if self._pending:
            raise WeightSyncError(
                f"{what} on {self._spec.name} while {len(self._pending)} requests are running; finish them first"
            )

    def _refuse_half_updated(self) -> None:
        if self._updating:
            raise WeightSyncError(
                f"{self._spec.name} is inside an unfinished weight update; finish it, or start the "
                "engine anew if it broke"
            )


def _values(logprobs: Any) -> list[float]:
    """One log-prob a position; a prompt's first token has none."""
    assert isinstance(logprobs, FlatLogprobs)
    return list(logprobs.logprobs)


def _load_processor(folder: str, family: Family) -> Any:
    import transformers

    return getattr(transformers, family.processor_class).from_pretrained(folder)
