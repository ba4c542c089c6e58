"""The world of ranks: joining it, work of rank 0, overlap, messages to a parent, lost ranks."""
