"""Who may import whom (see CONTRIBUTING.md): checked on the modules that really get loaded, in a fresh process."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import mrpo

ROOTS = {
    "mrpo.train",
    "mrpo.parts",
    "mrpo.judge_parts",
    "mrpo.ray_placement",
    "mrpo.ray_nodes",
    "mrpo.cluster_check",
    "mrpo.compose",
}  # composition roots and what only they use
ROOT_PACKAGES = ("mrpo.ablation", "mrpo.submit")  # the one expands Hydra's sweeps, the other talks to a cluster
HEAVY = ("ray", "vllm", "deepspeed", "httpx", "hydra", "wandb", "judge", "rollout", "learner")
CORE = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(mrpo.__path__, "mrpo.")
    if name not in ROOTS and not name.startswith(ROOT_PACKAGES) and not name.endswith("__main__")
)


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in memory after a statement, in a process of its own."""
    code = f"{statement}\nimport sys\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_the_core_loads_no_engine_no_network_and_no_other_package() -> None:
    loaded = loaded_after("\n".join(f"import {name}" for name in CORE))
    assert loaded.isdisjoint(HEAVY), loaded & set(HEAVY)


def test_the_package_itself_imports_nothing() -> None:
    assert loaded_after("import mrpo").isdisjoint({*HEAVY, "torch", "numpy", "pydantic"})


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("judge.pool", {"rollout", "learner", "vllm", "deepspeed", "torch"}),
        ("rollout.pool", {"judge", "learner", "deepspeed"}),
        ("learner.group", {"judge", "rollout", "vllm"}),
    ],
)
def test_judge_rollout_and_learner_do_not_know_each_other(module: str, others: set[str]) -> None:
    loaded = loaded_after(f"import {module}")
    assert loaded.isdisjoint(others), loaded & others
