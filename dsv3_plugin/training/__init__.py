"""The trainer around upstream's: a run, its curves, metrics and saving."""
