"""Versions for GPUs, in Triton. Loaded only where Triton is installed."""
