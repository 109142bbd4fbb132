"""Raw log-probs of whole prompts under vLLM's own support for InternVL's custom layout, in a process of its own.

`python -m tests.integration.custom_layout_scores <folder> <requests.json> <out.json>`; our plugin's config class makes
the layout reachable. A request is [text, image or null]; an answer holds the prompt's token ids and the log-prob of
every one but the first.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


def main(folder: str, requests: Path, out: Path) -> None:
    """Score all requests and write the answers."""
    os.environ.update(ENVIRONMENT)
    from PIL import Image
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=folder,
        dtype="float32",
        trust_remote_code=False,
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=4,
        max_num_batched_tokens=2048,
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        limit_mm_per_prompt={"image": 1, "video": 0},
        mm_processor_cache_gb=0,
        skip_mm_profiling=True,
        distributed_executor_backend="uni",
    )
    prompts: list[dict[str, Any]] = []
    for text, image in json.loads(requests.read_text()):
        data = {} if image is None else {"multi_modal_data": {"image": Image.open(image).convert("RGB")}}
        prompts.append({"prompt": text, **data})
    settings = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    answers = []
    for output in llm.generate(prompts, settings, use_tqdm=False):
        ids = output.prompt_token_ids
        values = [row[token].logprob for token, row in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
        answers.append({"ids": ids, "logprobs": values, "model": type(llm.llm_engine.model_config.hf_config).__name__})
    out.write_text(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
