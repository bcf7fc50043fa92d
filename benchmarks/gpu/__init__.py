"""What needs a GPU: `bash benchmarks/gpu.sh` builds, tests and times everything in stages."""
