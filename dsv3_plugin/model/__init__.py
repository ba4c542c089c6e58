"""Megatron-Core layers that compute DeepSeek's mathematics, for both backends."""
