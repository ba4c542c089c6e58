"""File safety: locks, whole files, whole folders, full disks, and what a run leaves behind."""
