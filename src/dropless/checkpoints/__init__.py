"""Bytes to tensors: safetensors folders, GGUF files, generated weights; the catalogue of models."""
