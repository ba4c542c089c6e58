"""Hugging Face ↔ Megatron, streamed."""
