"""FP8 as DeepSeek-V3 uses it: E4M3 everywhere, fine-grained scales, no tensor-wide history."""
