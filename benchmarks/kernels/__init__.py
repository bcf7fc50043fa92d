"""Every op of ttc_kernels against its peers: `python -m benchmarks.kernels`."""
