"""Megatron-Core layers that compute DeepSeek's mathematics, for both backends."""

SPEC = ("dsv3_plugin.model.specs", "deepseek_v3_spec")
"""What upstream's `--spec` takes to build them: a module and a function in it."""
