"""How well a trained model does: facts found again in long texts, loss by position."""
