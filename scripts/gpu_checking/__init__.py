"""What scripts/gpu_check.py is made of: luggage (wheels), engines in own processes, PyTorch, comparison."""
