"""Which decoder layers lie on which stage."""
