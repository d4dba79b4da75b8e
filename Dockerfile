# A slim image with the CUDA 11.8 runtime of torch's own wheel: the host needs an NVIDIA driver and nothing else. Without
# a GPU it uses OpenVINO; for an image that does only that: --build-arg TORCH_VERSION=
ARG BASE_IMAGE=python:3.11-slim
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="HRNet-OCR abdomen" \
      org.opencontainers.image.description="Liver, kidneys, spleen and pancreas in abdominal CT (FLARE2021)" \
      org.opencontainers.image.version="0.10.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# Which torch: none where TORCH_VERSION is empty; an empty TORCH_INDEX_URL takes it from pip's usual index.
ARG TORCH_VERSION=2.7.1+cu118
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cu118

# DROP_ROOT: predict.sh becomes the owner of the mounted output folder. No USER here: which user may write to that folder
# is known only when it runs, and the organisers' command names none.
# PYTHONNOUSERSITE: Apptainer mounts the host's home folder, whose packages would come before the image's.
# NVIDIA_*: what the container toolkit brings in. LAZY: load a CUDA kernel when it is first used, which saves memory.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CUDA_MODULE_LOADING=LAZY \
    PYTHONUNBUFFERED=1 \
    PYTHONNOUSERSITE=1 \
    DROP_ROOT=1

WORKDIR /workspace
# torch is pinned, but the option for its index hides that from the rule.
# hadolint ignore=DL3013
RUN if [ -n "${TORCH_VERSION}" ]; then pip install --no-cache-dir \
        ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} "torch==${TORCH_VERSION}"; fi
COPY --chmod=755 requirements.txt ./
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements.txt
# 755: readable by any user, whatever the umask of the checkout.
COPY --chmod=755 weights weights
COPY --chmod=755 app app
# NiiVue, for --save viewer: the version and hash of package-lock.json.
RUN python3 app/results/page/fetch.py
COPY --chmod=755 predict.sh ./
# Compiled here, because the root file system may be read-only when it runs.
RUN python3 -m compileall -q app
CMD ["sh", "predict.sh"]
