#!/usr/bin/env bash
# What needs a GPU, without a network, in two calls of at most 270 and 300 seconds:
#
#     bash benchmarks/gpu.sh 1          are the kernels right, how long is a decode step, five trees, memcheck
#     bash benchmarks/gpu.sh 2          twelve trees against their peers, products, filtered sampling, racecheck, a profile
#
# Every check reports by itself, as it ends, in $OUT/call-1.json and call-2.json ($OUT: benchmarks/results/gpu). What is
# not built yet is built first and counts: build beforehand where nvcc is, and bring build/ and ttc_kernels/*.so along.
# It takes PYTHON (else .venv's, else python3) with torch for CUDA, triton, transformers, pybind11, ninja and pytest;
# compute-sanitizer and ncu on PATH.
set -euo pipefail
start=$(date +%s)
call=${1:?which call, 1 or 2?}
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
    export PYTHONPATH=build/ninja_module:${PYTHONPATH:-}
fi
carried=ttc_kernels/_cuda.so
if ! command -v nvcc >/dev/null && [[ -f $carried ]]; then
    cp "$carried" build/carried_cuda.so  # a build without nvcc takes it away
fi
if ! "$python" setup.py --quiet build_ext --inplace >"$out/build.txt" 2>&1; then
    echo "the build failed:" && tail -n 20 "$out/build.txt"
    exit 1
fi
[[ -f build/carried_cuda.so ]] && mv build/carried_cuda.so "$carried"
exec "$python" -m benchmarks.gpu --call "$call" --out "$out" --begun "$start"
