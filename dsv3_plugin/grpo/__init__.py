"""GRPO's arithmetic: advantages, ratios, losses, divergences, corrections (arXiv 2402.03300)."""
