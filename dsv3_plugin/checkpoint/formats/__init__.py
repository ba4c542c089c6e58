"""Readers and writers of what is on disk: safetensors, torch_dist, torch's zip files."""
