"""Model repositories for Triton, and Triton's server on this machine: scripts/export_triton.py, scripts/serve.sh."""
