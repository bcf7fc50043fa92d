#!/usr/bin/env bash
# What needs a GPU, without a network, in two calls of at most 270 and 300 seconds:
#
#     bash benchmarks/gpu.sh 1          are the kernels right, how long is a decode step, five trees, memcheck
#     bash benchmarks/gpu.sh 2          twelve trees against their peers, filtered sampling, racecheck, a profile
#
# Every check reports by itself, as it ends, in $OUT/call-1.json and call-2.json ($OUT: benchmarks/results/gpu). What is
# not built yet is built first and counts: build beforehand where nvcc is, and bring build/ and ttc_kernels/*.so along.
# It takes PYTHON (else .venv's, else python3) with torch for CUDA, triton, transformers, pybind11, ninja and pytest;
# compute-sanitizer and ncu on PATH.
set -euo pipefail
start=$(date +%s)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -x .venv/bin/python ]]; then
    python=.venv/bin/python
fi
# Not one connection to the device, as some ask for: a verifier's stream would then wait for the policy's.
unset CUDA_DEVICE_MAX_CONNECTIONS
export PYTHONUNBUFFERED=1 TTC_DEVICE=cuda HF_HUB_OFFLINE=1 PATH="$PATH:/usr/local/cuda/bin"
out=${OUT:-benchmarks/results/gpu}
mkdir -p "$out"
if ! "$python" -c "import ninja" 2>/dev/null && command -v ninja >/dev/null; then
    mkdir -p build/ninja_module/ninja  # setup.py runs `python -m ninja`
    printf 'import os, sys\nos.execvp("ninja", ["ninja", *sys.argv[1:]])\n' >build/ninja_module/ninja/__main__.py
    touch build/ninja_module/ninja/__init__.py
    PYTHONPATH=build/ninja_module:${PYTHONPATH:-} "$python" setup.py --quiet build_ext --inplace >"$out/build.txt" 2>&1
else
    "$python" setup.py --quiet build_ext --inplace >"$out/build.txt" 2>&1
fi
exec "$python" -m benchmarks.gpu --call "${1:?which call, 1 or 2?}" --out "$out" --begun "$start"
