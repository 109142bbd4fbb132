"""A learner rank as a Ray actor: a thin shell that makes the rank in its own process and passes calls on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from learner.distributed import threads_of_rank
from learner.receivers import Receivers
from learner.spec import LearnerSpec
from mrpo.choices import WeightTransfer
from mrpo.stacks import answer_stack_requests
from mrpo.types import LearnStats, ScoreSample, SftSample, TrainSample

ANSWER_SHARE = 0.5  # of the time for a whole transfer, until an engine that does not answer is left behind


class LearnerActor:
    """One rank. Heavy imports wait for `start`, when the environment is the rank's own."""

    def __init__(self, spec: LearnerSpec, rank: int) -> None:
        answer_stack_requests()
        self._spec = spec
        self._rank_number = rank
        self._rank: Any = None
        self._sender: Any = None
        self._met: tuple[str, ...] | None = None  # the engines that the sender knows
        self._supervision: Any = None
        self._tracing: Any = None
        self._background: Any = None  # `learner.background_write.BackgroundWrite`, from `start` on

    def __repr__(self) -> str:
        """The name under which Ray's dashboard and logs show it."""
        return f"learner-{self._rank_number}"

    def rendezvous(self) -> tuple[str, int]:
        """Address and free port of this rank's host, where the group may meet."""
        import ray

        from learner.distributed import free_port

        return ray.util.get_node_ip_address(), free_port()

    def where(self) -> tuple[str, int]:
        """Ray's id of the machine this rank is on, and its process id there."""
        import ray

        return str(ray.get_runtime_context().get_node_id()), os.getpid()

    def start(self, address: str, port: int, nodes: Sequence[str]) -> None:
        """Join the group and build the rank; returns when all ranks have.

        Args:
            address: of rank 0's host.
            port: there.
            nodes: the machine of every rank.
        """
        num_threads = threads_of_rank(self._spec.learner, ranks_on_node=nodes.count(nodes[self._rank_number]))
        os.environ["OMP_NUM_THREADS"] = str(num_threads)  # Ray has set it to the actor's CPUs; torch reads it below
        from transformers.utils import logging as transformers_logging

        from learner.background_write import BackgroundWrite
        from learner.distributed import join_group
        from learner.rank import build_rank

        transformers_logging.disable_progress_bar()
        world_size = self._spec.learner.num_ranks
        device = join_group(
            rank=self._rank_number, world_size=world_size, address=address, port=port, device=self._spec.device
        )
        with self._leaving_gpu_memory():
            self._rank = build_rank(
                self._spec, rank=self._rank_number, world_size=world_size, device=device, num_threads=num_threads
            )
        self._background = BackgroundWrite()

    def _meet(self, receivers: Receivers) -> None:
        """Make a sender for a set of engines; the former's group, where it had one, held others."""
        from learner.weight_sync import RayWeightSyncClient, make_sender

        if self._sender is not None:
            self._sender.close()
        learner, lora = self._spec.learner, self._spec.lora
        client = RayWeightSyncClient(
            receivers.engines,
            ranks_per_engine=receivers.ranks_per_engine,
            answer_timeout_s=learner.publish_timeout_s * ANSWER_SHARE,
            together=receivers.transfer == WeightTransfer.NCCL and not lora.sends_adapter,
        )
        if lora.sends_adapter:
            from learner.adapter_sender import AdapterSender

            self._sender = AdapterSender(client, self._rank)
        else:
            self._sender = make_sender(
                receivers.transfer,
                client,
                self._rank.source,
                bucket_mib=learner.bucket_mib,
                is_sender=self._rank_number == 0,
            )
        self._sender.connect()

    def step(self, samples: Sequence[TrainSample], progress: float) -> LearnStats:
        """See `learner.step.train_step`."""
        from learner.step import train_step

        with self._leaving_gpu_memory():
            return train_step(self._rank, samples, progress=progress)

    def score(self, samples: Sequence[ScoreSample]) -> dict[int, list[float]]:
        """See `learner.step.score`."""
        from learner.step import score

        with self._leaving_gpu_memory():
            return score(self._rank, samples)

    def warm_start(self, examples: Sequence[SftSample], num_steps: int, batch_size: int, lr: float, seed: int) -> Any:
        """See `learner.sft.Supervision.warm_start`."""
        with self._leaving_gpu_memory():
            return self._supervised().warm_start(examples, num_steps=num_steps, batch_size=batch_size, lr=lr, seed=seed)

    def sft_step(self, examples: Sequence[SftSample], num_steps: int, lr: float, warmup_share: float) -> LearnStats:
        """See `learner.sft.Supervision.step`."""
        stats: LearnStats = self._supervised().step(examples, num_steps=num_steps, lr=lr, warmup_share=warmup_share)
        return stats

    def sft_loss(self, examples: Sequence[SftSample]) -> tuple[float, int]:
        """See `learner.sft.Supervision.loss`."""
        total: tuple[float, int] = self._supervised().loss(examples)
        return total

    def _supervised(self) -> Any:
        """Made once: it remembers how images are written into prompts."""
        from learner.sft import Supervision

        if self._supervision is None:
            self._supervision = Supervision(self._rank)
        return self._supervision

    def publish(self, receivers: Receivers) -> Any:
        """Send the weights; see `learner.weight_sync`."""
        from learner.agreement import together

        with self._leaving_gpu_memory():
            if receivers.ids != self._met:
                self._met = None  # until the new ones are met
                # A rank that went on to send would gather weights with nobody.
                together(self._spec.learner.num_ranks, partial(self._meet, receivers))
                self._met = receivers.ids
            try:
                return self._sender.send()
            except BaseException:
                self._met = None  # whatever engines have of a transfer that broke, the next one begins afresh
                raise

    def save(self, folder: str) -> None:
        """See `learner.checkpoint.save`."""
        from learner.checkpoint import save

        with self._leaving_gpu_memory():
            save(self._rank, Path(folder))

    def checkpoint_bytes(self) -> int:
        """See `learner.disk.checkpoint_bytes`."""
        from learner.disk import checkpoint_bytes

        return checkpoint_bytes(self._rank)

    def snapshot(self, wait_s: float) -> None:
        """See `learner.background_write.BackgroundWrite.take`."""
        with self._leaving_gpu_memory():
            self._background.take(self._rank, wait_s=wait_s)

    def write(self, folder: str) -> None:
        """See `learner.background_write.BackgroundWrite.write`; of rank 0 alone."""
        self._background.write(Path(folder))

    def load(self, folder: str) -> None:
        """See `learner.checkpoint.load`."""
        from learner.checkpoint import load

        with self._leaving_gpu_memory():
            load(self._rank, Path(folder))

    def start_trace(self, stacks: bool) -> None:
        """See `learner.tracing.Tracing.start`."""
        from learner.tracing import Tracing

        if self._tracing is None:
            self._tracing = Tracing()
        self._tracing.start(stacks=stacks)

    def stop_trace(self) -> bytes:
        """See `learner.tracing.Tracing.stop`."""
        trace: bytes = self._tracing.stop()
        return trace

    def close(self) -> None:
        """Give back shared memory and leave the group."""
        from torch import distributed as dist

        if self._sender is not None:
            self._sender.close()
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def _leaving_gpu_memory(self) -> Iterator[None]:
        """Free what PyTorch keeps for later: an engine on the same GPU wakes, or is awake, and cannot use it."""
        try:
            yield
        finally:
            if self._spec.shares_gpu:
                import torch

                torch.cuda.empty_cache()
