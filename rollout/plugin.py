"""vLLM's entry point `vllm.general_plugins`: vLLM calls `register` in each of its processes."""

from __future__ import annotations

import os

from mrpo.orphans import die_with_parent
from rollout.spec import DIES_WITH_PARENT

SHM_BACKEND = "shm"


def register() -> None:
    """Make the `shm` weight transfer and InternVL's custom layout known; vLLM calls this more than once a process.

    Processes that vLLM starts for an engine of ours, and no others, end with the process that started them.
    """
    if DIES_WITH_PARENT in os.environ:
        die_with_parent()

    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from rollout import internvl_chat_config

    internvl_chat_config.register()
    if SHM_BACKEND not in WeightTransferEngineFactory._registry:  # it has no public question for this
        WeightTransferEngineFactory.register_engine(SHM_BACKEND, "rollout.weight_receiver", "ShmWeightTransferEngine")
