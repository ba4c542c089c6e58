"""Samples for fine-tuning out of a teacher's answers: those that a verifier accepts."""
