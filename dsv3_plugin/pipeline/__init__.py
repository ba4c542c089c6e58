"""Pipeline schedules as data: proven, timed, drawn, searched for, and run."""
