"""Versions for CPUs: fewer and better chosen PyTorch calls than the references make."""
