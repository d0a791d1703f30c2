"""What scripts/gpu_check.sh runs: the check, its transfer to the GPU machine, engines in own processes, PyTorch."""
