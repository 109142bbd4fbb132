"""A judge served by vLLM on a GPU that Ray keeps for it; not part of `make test`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from judge.pool import RayJudgePool
from judge.vllm_actors import VllmServers
from judge.vllm_server import VllmSpec
from mrpo.choices import Device, JudgeKind, StructuredReply
from mrpo.config import ClusterConfig, Config, JudgeConfig, ProviderConfig, VllmJudgeConfig
from mrpo.judge_model import own_judge
from mrpo.placement import placement_of
from mrpo.ray_placement import reserved
from mrpo.types import JudgeRequest, Verdicts
from tests.integration.judge_toys import toy_judge

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none here"),
]


def asked(num_steps: int) -> JudgeRequest:
    return JudgeRequest(
        key=f"{num_steps}", image="", question="Which side?", answer="left", rationale="Left.", steps=["x"] * num_steps
    )


def test_every_reply_parses_and_the_gpu_is_the_servers_alone(tmp_path: Path) -> None:
    judge = JudgeConfig(
        kind=JudgeKind.VLLM,
        vllm=VllmJudgeConfig(model=toy_judge(tmp_path / "toy"), max_model_len=4096, gpu_memory_utilization=0.3),
        provider=ProviderConfig(structured=StructuredReply.STRUCTURED_OUTPUTS, image_first=True),
        max_completion_tokens=1024,
        send_image=False,
    )
    config = replace(Config(), cluster=ClusterConfig(device=Device.GPU), judge=judge)

    async def scenario() -> list[Verdicts]:
        async with reserved(placement_of(config, learner=False, engines=False, judge=True)) as seats:
            own = own_judge(judge)
            spec = VllmSpec(
                name="judge-0",
                model=str(own.folder),
                served_name=own.served_name,
                settings=judge.vllm,
                on_gpu=True,
                log_file=str(tmp_path / "judge-0.log"),
            )
            servers = VllmServers([spec], seats.judges, local=True)
            try:
                await servers.start()
                pool = RayJudgePool(servers.judge_config(judge))
                await pool.start()
                found = await asyncio.gather(*(pool.judge(asked(count)) for count in range(1, 11)))
                pool.close()
            finally:
                await servers.close()
        return [item.outcome for item in found if isinstance(item.outcome, Verdicts)]

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        rulings = asyncio.run(scenario())
    finally:
        ray.shutdown()
    assert [len(ruling.valid) for ruling in rulings] == list(range(1, 11))
