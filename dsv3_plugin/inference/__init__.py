"""Running a trained model: logits of given tokens, and text."""
