"""The process this is, among all of a cluster."""

from __future__ import annotations

import os

from mrpo.stacks import answer_stack_requests


def process_place() -> tuple[str, int]:
    """Ray's id of the node and the pid; asked inside an actor, whose stacks can be had from then on."""
    import ray

    answer_stack_requests()
    return str(ray.get_runtime_context().get_node_id()), os.getpid()
