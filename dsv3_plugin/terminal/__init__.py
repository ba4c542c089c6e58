"""What people see: the only place that writes to standard output and standard error."""
