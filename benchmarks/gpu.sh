#!/usr/bin/env bash
# Everything that needs a GPU, without a network, within nine minutes: builds, tests the kernels and the engine, compares
# a search with the CPU's token for token, watches the small cases with compute-sanitizer, runs the benchmarks.
#
#     bash benchmarks/gpu.sh            reports in $OUT, by default benchmarks/results/gpu
#
# Each stage reports by itself in stages.json; what is missing on the machine is a failure with its reason. It takes
# PYTHON (else .venv's, else python3) with torch for CUDA, triton, transformers, pybind11 and ninja; nvcc and
# compute-sanitizer on PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -x .venv/bin/python ]]; then
    python=.venv/bin/python
fi
# Not one connection to the device, as some ask for: a verifier's stream would then wait for the policy's.
unset CUDA_DEVICE_MAX_CONNECTIONS
export PYTHONUNBUFFERED=1 PATH="$PATH:/usr/local/cuda/bin"
exec "$python" -m benchmarks.gpu.stages --out "${OUT:-benchmarks/results/gpu}"
