"""`python -m tests.gpu.engine_sleep <folder>`: an engine's memory and greedy text before, during and after its sleep.

A process of its own, because vLLM reads its environment when it is imported. Prints JSON in its last line.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mrpo.choices import Device, Placement, WeightTransfer
from mrpo.config import ClusterConfig, Config, RolloutConfig
from mrpo.errors import WeightSyncError
from mrpo.phantom.toy_models import build_toy_model
from mrpo.types import RolloutRequest
from rollout.spec import engine_environment, engine_specs
from tests.integration.learner_world import CORPUS

FAMILY = "qwen2_5_vl"
CONFIG = Config(
    cluster=ClusterConfig(device=Device.GPU, placement=Placement.COLOCATED, weight_transfer=WeightTransfer.IPC),
    rollout=RolloutConfig(gpu_memory_utilization=0.3, max_num_seqs=8, max_model_len=256),
)


def main(folder: Path) -> dict[str, Any]:
    """What a test compares."""
    build_toy_model(FAMILY, folder / "model", corpus=CORPUS, seed=1)
    image = folder / "scan.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (84, 84, 3), dtype=np.uint8)).save(image)
    (spec,) = engine_specs(CONFIG, str(folder / "model"), FAMILY, log_dir=None)
    os.environ.update(engine_environment(spec))
    import torch

    from rollout.engine import Engine

    engine = Engine(spec)
    free: dict[str, int] = {}

    def measure(moment: str) -> None:
        free[moment], _ = torch.cuda.mem_get_info()

    before = greedy(engine, str(image))
    measure("awake")
    engine.sleep()
    measure("asleep")
    refused = ""
    try:
        greedy(engine, str(image))
    except WeightSyncError as error:
        refused = str(error)
    engine.wake_up()
    measure("with weights")
    engine.set_policy_version(1)
    measure("awake again")
    after = greedy(engine, str(image))
    engine.close()
    _, total = torch.cuda.mem_get_info()
    return {"free": free, "total": total, "before": before, "after": after, "refused": refused}


def greedy(engine: Any, image: str) -> list[int]:
    """Token ids of one completion."""
    request = RolloutRequest(
        prompt_id="q0", sample_index=0, question="Where is the finding?", image=image, seed=0,
        temperature=0.0, top_p=1.0, max_new_tokens=32,
    )  # fmt: skip
    found: list[int] = []
    engine.sample(request, lambda completion: found.extend(completion.completion_token_ids))
    while engine.busy:
        engine.step()
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
