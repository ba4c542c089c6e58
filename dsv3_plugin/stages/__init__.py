"""The stages of a model's life: pretraining, extension, SFT, RL, over one trainer."""
