"""What the record says of an engine that is lost again and again. Ray's part is a stand-in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from mrpo.config import Config
from mrpo.faults import FAULTS_FILE, FaultKind, FaultLog, read_faults
from mrpo.stacks import ActorProcess, Stacks
from rollout.engine_slot import EngineSlot
from rollout.spec import engine_specs
from rollout.worker import WorkerInfo


def handle() -> Any:
    call = SimpleNamespace(remote=object)
    return SimpleNamespace(placed=call, ready=call, watch=call, progress=call)


@pytest.mark.asyncio
async def test_every_loss_is_a_fault_with_its_stack_and_all_end_when_the_engine_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def record_stacks(processes: Sequence[ActorProcess], **others: Any) -> dict[str, Stacks]:
        return {item.name: Stacks(text="", state="is stopped (state T)") for item in processes}

    async def on_node(*arguments: Any) -> list[int]:
        return []

    def make(spec: Any, name: str) -> Any:
        assert name not in names
        names.append(name)
        return handle()

    monkeypatch.setattr("rollout.engine_slot.record_stacks", record_stacks)
    monkeypatch.setattr("rollout.engine_slot.on_node", on_node)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    names: list[str] = []
    log = FaultLog(tmp_path / FAULTS_FILE)
    slot = EngineSlot(engine_specs(Config(), "/model", "qwen2_5_vl", log_dir=None)[0], make, log)

    slot.start()
    slot._info = WorkerInfo(name="engine-0", node_id="n", pid=1, processes=(), start_s=0.0)
    slot.lose(FaultKind.ENGINE_STUCK, "no step")
    assert slot._burial is not None
    await slot._burial
    (stuck,) = read_faults(tmp_path)
    assert stuck.detail == "no step; engine-0 is stopped (state T)", "what a run that ends now leaves behind"
    slot.start()
    slot.lose(FaultKind.ENGINE_LOST, "killed as it started")
    await slot._burial
    assert [(fault.kind, fault.who, fault.recovery_s) for fault in read_faults(tmp_path)] == [
        (FaultKind.ENGINE_STUCK, "engine-0", None),
        (FaultKind.ENGINE_LOST, "engine-0.2", None),
    ]
    slot.start()
    slot.serve()
    assert all(fault.recovery_s is not None for fault in read_faults(tmp_path))
    metrics = log.take_metrics()
    assert (metrics["faults/engine_stuck"], metrics["faults/engine_lost"]) == (1.0, 1.0)
