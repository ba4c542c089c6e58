"""What a run's steps take: operations, kernels, stages, schedules, and what follows them."""
