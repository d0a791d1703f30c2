# demoBERT and everything it needs: for the CPU, or, with --build-arg DEVICE=gpu, for NVIDIA GPUs.
# scripts/build.sh builds it, scripts/launch.sh runs it.
ARG DEVICE=cpu

FROM debian:bookworm-slim AS cpu
ENV REQUIREMENTS="-r requirements.txt -r requirements-notebook.txt -r requirements-cpp.txt"

# CUDA's compiler is needed to install PyCUDA, and to build infer_c. TensorRT 8.6 has wheels for this Ubuntu's Python,
# 3.10, but none for the next one's. TensorFlow reads the checkpoints of download_model.sh.
FROM nvidia/cuda:12.9.1-devel-ubuntu22.04 AS gpu
# Which TensorRT: 10.x has the plugins and the native layers; "==8.6.1" and ">=11" are the other generations.
ARG TENSORRT="<11"
# It becomes an argument of pip's: versions only.
RUN case "${TENSORRT}" in *[!0-9abrcpost.,\<\>=!~*]*) echo "TENSORRT is not a version: ${TENSORRT}" >&2; exit 2 ;; esac
ENV REQUIREMENTS="-r requirements.txt -r requirements-notebook.txt -r requirements-cpp.txt -r requirements-gpu.txt \
    tensorrt${TENSORRT} tensorflow-cpu"

# hadolint ignore=DL3006
FROM ${DEVICE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# The distribution's own versions: pinned ones leave its archive with the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        build-essential ca-certificates curl python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:${PATH} PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /workspace/demobert
COPY requirements*.txt ./
# Unquoted on purpose: REQUIREMENTS is a list of arguments. The versions are in the files that it names.
# hadolint ignore=DL3013,SC2086
RUN set -f; python3 -m venv /opt/venv \
    && pip install ${REQUIREMENTS}

# No root at run time; scripts/launch.sh takes the caller's own ids instead, so that the engines are the caller's.
RUN groupadd --non-unique --gid 1000 demobert \
    && useradd --non-unique --uid 1000 --gid 1000 --create-home demobert
COPY --chown=1000:1000 . .
# WORKDIR made the folder as root; engines and predictions are written into it.
RUN chown 1000:1000 .
USER 1000:1000
EXPOSE 8888
CMD ["bash"]
