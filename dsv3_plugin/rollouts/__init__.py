"""Prompts, and answers to them by an engine of ours or an endpoint elsewhere."""
