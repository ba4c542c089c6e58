"""Overrides that divide a recipe over a pipeline of two devices, with two data-parallel ranks."""

PIPED = ["parallel.processes=4", "pipeline.devices=2", "training.micro_batch_size=1"]
