"""Images, compose, Kubernetes, `ray up` and SLURM files: checked with the tools made for each, commands included.

No engine, cluster or scheduler runs any of them here.
"""

from __future__ import annotations

import json
import re
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from mrpo.compose import compose_config
from tests.integration.launch_files import DOCKER, checked, comment_commands, overrides_of, read, secrets_in
from tests.locations import REPOSITORY

IMAGES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE = ("compose.yaml", "compose.gpu.yaml")
PINNED = re.compile(r".+:v?\d+\.\d+\.\d+[\w.-]*$")
OURS = re.compile(r"mrpo:(cpu|gpu)$")
KUBERNETES = "1.34"


def instructions(image: Path) -> list[tuple[str, str]]:
    """Instruction and arguments, continuation lines joined."""
    text = re.sub(r"^#.*\n", "", image.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def require_start(command: Sequence[str]) -> dict[str, Any]:
    """The options of a `ray start`, as Ray's own command line reads them."""
    assert list(command[:2]) == ["ray", "start"], command
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all of Ray's libraries come with its command line
        from ray.scripts import scripts
    options: dict[str, Any] = scripts.start.make_context("start", list(command[2:])).params
    return options


def require_run(command: str | list[str]) -> None:
    compose_config(overrides_of(shlex.split(command) if isinstance(command, str) else command))


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_an_image_passes_its_linter(image: Path) -> None:
    assert checked("hadolint", "--failure-threshold=style", str(image)) == ""


def test_the_linter_finds_faults(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp\n")
    assert "DL3006" in checked("hadolint", "--failure-threshold=style", str(tmp_path / "Dockerfile"))


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_an_image_is_pinned_holds_no_secret_and_runs_as_somebody(image: Path) -> None:
    found = instructions(image)
    bases = [arguments for name, arguments in found if name == "FROM"]
    assert bases
    assert all(PINNED.match(base) for base in bases)
    assert [arguments for name, arguments in found if name == "USER"][-1] == "1000:1000"  # a number: Kubernetes asks
    assert not [arguments for name, arguments in found if name in ("ENV", "ARG") and re.search("KEY|TOKEN", arguments)]
    order = [name if name != "RUN" else arguments for name, arguments in found]
    requirements = next(i for i, text in enumerate(order) if "/requirements/" in text)
    assert requirements < order.index("COPY")  # a change of source leaves the packages' layer


def test_both_images_differ_in_base_and_packages_alone() -> None:
    cpu, gpu = (
        [item for item in instructions(DOCKER / f"{device}.Dockerfile") if item[0] not in ("FROM", "RUN")]
        for device in ("cpu", "gpu")
    )
    assert cpu == gpu
    assert {"ENV", "COPY", "WORKDIR", "USER", "CMD"} <= {name for name, _ in cpu}


def test_an_image_is_built_from_what_is_there_and_from_nothing_else() -> None:
    first, *kept = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()[1:]
    assert first == "*"
    names = [line[1:] for line in kept if line.startswith("!")]
    assert all((REPOSITORY / name).exists() for name in names)
    assert {"mrpo", "judge", "rollout", "learner", "conf", "pyproject.toml", "requirements"} <= set(names)


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_follow_the_schema(name: str) -> None:
    assert checked("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(DOCKER / name)) == ""


def test_compose_names_what_is_there() -> None:
    tree = read("compose.yaml")
    for service in tree["services"].values():
        assert set(service.get("depends_on", ())) <= tree["services"].keys()
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in tree["volumes"], source
        assert PINNED.match(service["image"]) or OURS.match(service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))  # the dashboard runs code
    assert read("compose.gpu.yaml")["services"].keys() <= tree["services"].keys()
    for service in [*tree["services"].values(), *read("compose.gpu.yaml")["services"].values()]:
        if "build" in service:
            assert (REPOSITORY / service["build"]["dockerfile"]).exists()


def test_compose_starts_ray_with_options_it_has_and_keeps_engines_and_ranks_together() -> None:
    services = read("compose.yaml")["services"]
    head, worker = (require_start(services[name]["command"]) for name in ("head", "worker"))
    assert head["head"]
    assert head["num_cpus"] == 0
    assert head["block"]
    assert worker["block"]
    assert worker["address"] == f"head:{head['port']}"
    submit = next(command for command in comment_commands("compose.yaml") if command[0] == "make")
    wanted = compose_config(overrides_of(submit)).rollout.resources
    assert wanted
    assert all(json.loads(worker["resources"])[name] >= amount for name, amount in wanted.items())


def test_kuberay_gets_a_run_it_understands() -> None:
    job = read("kuberay/rayjob.yaml")
    schema = json.loads((REPOSITORY / "tests" / "schemas" / "rayjob-v1.json").read_text(encoding="utf-8"))
    jsonschema.validate(job, strict(schema))
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"]
        options = [f"--{name}={value}" for name, value in group["rayStartParams"].items()]
        require_start(["ray", "start", *options])
    assert cluster["rayVersion"] == ray.__version__
    storage = read("kuberay/storage.yaml")
    kubernetes_validate.validate(storage, KUBERNETES, strict=True)
    claims = [volume["persistentVolumeClaim"]["claimName"] for group in groups for volume in volumes(group)]
    assert set(claims) == {storage["metadata"]["name"]}


def volumes(group: Any) -> list[Any]:
    return [volume for volume in group["template"]["spec"]["volumes"] if "persistentVolumeClaim" in volume]


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused, as `kubectl apply` does by default."""
    if isinstance(schema, dict):
        closed = {key: strict(value) for key, value in schema.items()}
        if isinstance(closed.get("properties"), dict) and closed.get("type") == "object":
            closed.setdefault("additionalProperties", False)
        return closed
    return [strict(item) for item in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize(
    ("old", "new"),
    [("backoffLimit: 3", "backoffLimit: ten"), ("backoffLimit: 3", "backOffLimit: 3"), ("groupName", "name")],
)
def test_the_schema_finds_faults(old: str, new: str) -> None:
    schema = json.loads((REPOSITORY / "tests" / "schemas" / "rayjob-v1.json").read_text(encoding="utf-8"))
    text = (DOCKER / "kuberay" / "rayjob.yaml").read_text(encoding="utf-8")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text.replace(old, new)), strict(schema))


def test_a_run_on_kubernetes_composes_and_fits_its_cluster() -> None:
    job = read("kuberay/rayjob.yaml")
    config = compose_config(overrides_of(shlex.split(job["spec"]["entrypoint"])))
    assert config.resume == "auto"  # a cluster built again goes on
    assert config.run_name == job["metadata"]["name"]  # and with no other run
    assert job["spec"]["ttlSecondsAfterFinished"] <= 300  # the nodes' GPUs are idle and taken so long
    assert job["spec"]["backoffLimit"] <= 3  # an error that is the user's to mend is tried again too
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    told_s = int(re.findall(r"seq (\d+)", head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])[0])
    assert config.checkpoint.grace_s < told_s < head["terminationGracePeriodSeconds"]
    assert config.cluster.address == "auto"
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert (workers["replicas"], gpus) == (config.cluster.num_nodes, config.cluster.gpus_per_node)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for folder in (config.runs_dir, config.cache_dir, config.data.root, config.model.path):
        assert any(str(folder).startswith(f"{mount}/") for mount in mounts), folder


def test_ray_up_gets_a_cluster_it_understands() -> None:
    cluster = prepare_config(read("ray-cluster.yaml"))
    validate_config(cluster)
    for command in [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]:
        if command != "ray stop":
            require_start(shlex.split(command))
    docker = cluster["docker"]["run_options"]
    (keys,) = [item.partition("=")[2] for item in docker if item.startswith("--env-file=")]
    mounts = [item.partition("=")[2].split(":")[0] for item in docker if item.startswith("--volume=")]
    assert mounts
    assert not any(Path(keys).is_relative_to(mount) for mount in mounts), "no container sees the file of keys"
    for image in IMAGES:  # what Ray's autoscaler, inside of the head's container, calls to reach a worker
        (installed,) = re.findall(r"apt-get install ([^&]*)", " ".join(words for _, words in instructions(image)))
        assert {"openssh-client", "rsync"} <= set(installed.split()), image
    with pytest.raises(Exception, match="additional"):
        validate_config(prepare_config({**read("ray-cluster.yaml"), "worker_count": 2}))


def test_secrets_come_from_outside() -> None:
    files = [*COMPOSE, "kuberay/rayjob.yaml", "kuberay/storage.yaml", "ray-cluster.yaml"]
    found = [entry for name in files for entry in secrets_in(read(name))]
    assert {path.rsplit("/", 1)[1] for path, _ in found} >= {"MRPO_JUDGE_API_KEY", "GF_SECURITY_ADMIN_PASSWORD"}
    assert all(value is None or str(value).startswith("${") for _, value in found), found
    (head,) = read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert [next(iter(source)) for source in head["envFrom"]] == ["secretRef"]
    assert "env" not in head


@pytest.mark.parametrize(
    "name", ["compose.yaml", "compose.gpu.yaml", "ray-cluster.yaml", "slurm.sh"], ids=lambda name: name
)
def test_the_commands_that_a_file_shows_compose(name: str) -> None:
    runs = [
        command
        for command in comment_commands(name)
        if command[:2] == ["make", "submit"] or (command[:1] == ["sbatch"] and command[-1] != "…")
    ]
    assert runs
    for command in runs:
        require_run(command)


def test_the_slurm_script_passes_its_linter_and_asks_for_what_sbatch_knows() -> None:
    script = DOCKER / "slurm.sh"
    assert checked("shellcheck", "--severity=style", str(script)) == ""
    options = re.findall(r"^#SBATCH --([a-z-]+)", script.read_text(encoding="utf-8"), re.MULTILINE)
    known = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "exclusive", "mem", "time", "requeue", "signal"}
    assert {"nodes", "requeue", "signal", "gpus-per-node"} <= set(options) <= known | {"open-mode", "output"}
