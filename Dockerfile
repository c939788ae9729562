# The chat in a container, for CUDA (default) or for the CPU. Nobody has built it yet: it was read and linted only.
#
#   python -m train.merge --model runs/demo/stage2 --data runs/demo/data --output runs/demo/merged
#   docker build -t llava-ial .
#   docker run --rm --gpus all -p 127.0.0.1:7860:7860 -v "$PWD/runs/demo/merged:/model:ro" --tmpfs /tmp llava-ial
#
#   docker build -t llava-ial:cpu --build-arg TORCH_INDEX=INDEX_OF_CPU_WHEELS .
#   docker run --rm -p 127.0.0.1:7860:7860 -v "$PWD/runs/demo/merged:/model:ro" --tmpfs /tmp llava-ial:cpu
#
# The model is mounted, not baked in, and merged, so that it needs no base beside it. Uploads live in /tmp, which is
# memory with --tmpfs and gone with the container.
FROM debian:bookworm-slim

# c++: DeepSpeed, which the project depends on, looks for a compiler when it is imported.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ python3 python3-venv python3-dev \
    && rm -rf /var/lib/apt/lists/*

# PyPI's torch brings its CUDA libraries along; for the CPU there is a smaller one: give the index that pytorch.org names.
ARG TORCH_INDEX=
WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY llava_ial llava_ial
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} ".[heif]" \
    && useradd --create-home --uid 10001 chat
COPY serve serve

ENV PATH=/opt/venv/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    PYTHONUNBUFFERED=1
USER chat
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "serve.chat", "--host", "0.0.0.0"]
CMD ["--model", "/model"]
