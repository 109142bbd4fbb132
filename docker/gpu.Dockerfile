# MRPO for NVIDIA GPUs: docker build -f docker/gpu.Dockerfile -t mrpo:gpu . The driver must support CUDA 13 (580 or newer).
# About 17 GB unpacked, estimated: 9.2 of packages (installed they were measured so), the rest compiler and headers.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# The compiler of the base stays: DeepSpeed, vLLM and Triton build kernels at the first start. libnuma: vLLM.
# wget, procps: probes and hooks of KubeRay. ssh, rsync: the head of `ray up` reaches its workers from its container.
# Ubuntu keeps only the newest build of a package. Its user 1000 gives way to ours.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        g++ libnuma1 openssh-client procps python3 python3-dev python3-venv rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && { userdel --remove ubuntu || true; } \
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
    python3 -m venv /opt/mrpo \
    && python -m pip install --quiet --no-cache-dir --requirement /requirements/tools.txt \
    && uv pip install --python /opt/mrpo/bin/python --link-mode copy --compile-bytecode --no-deps \
        --requirement /requirements/gpu.txt

# Installed, not only there: vLLM's processes find the weight transfer by the package's entry point.
COPY . /tmp/source
RUN uv pip install --no-cache --python /opt/mrpo/bin/python --compile-bytecode --no-deps --no-build-isolation \
        /tmp/source \
    && rm -rf /tmp/source

WORKDIR /work
USER 1000:1000
CMD ["python", "-m", "mrpo.train"]
