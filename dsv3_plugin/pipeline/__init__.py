"""Running schedules: chunks where a placement puts them, the executor, what stages exchange."""
