# MRPO for machines without a GPU: docker build -f docker/cpu.Dockerfile -t mrpo:cpu .
# About 8 GB unpacked, estimated: 7.4 of packages (installed they were measured so), 0.6 of system. torch is the ordinary
# CUDA build here too (torchvision has no other for this version), and its libraries are most of it.
FROM python:3.11.14-slim-bookworm

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# g++ and the ninja of the requirements: DeepSpeed compiles its shared-memory operation at the first start.
# libnuma: vLLM. wget, procps: probes and hooks of KubeRay. ssh, rsync: the head of `ray up` reaches its workers from its
# container. Debian keeps only the newest build of a package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home mrpo \
    && mkdir -p /work /tmp/ray \
    && chown mrpo: /work /tmp/ray

ENV PATH=/opt/mrpo/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    VLLM_NO_USAGE_STATS=1 \
    RAY_JOB_STOP_WAIT_TIME_S=120

# A layer of its own: it changes with the pins and not with the source.
RUN --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=cache,target=/root/.cache \
    python -m venv /opt/mrpo \
    && python -m pip install --quiet --no-cache-dir --requirement /requirements/tools.txt \
    && uv pip install --python /opt/mrpo/bin/python --link-mode copy --compile-bytecode --no-deps \
        --requirement /requirements/cpu.txt

# Installed, not only there: vLLM's processes find the weight transfer by the package's entry point.
COPY . /tmp/source
RUN uv pip install --no-cache --python /opt/mrpo/bin/python --compile-bytecode --no-deps --no-build-isolation \
        /tmp/source \
    && rm -rf /tmp/source

WORKDIR /work
USER 1000:1000
CMD ["python", "-m", "mrpo.train"]
