"""The world of ranks: joining it, sides that take turns, messages to a parent, lost ranks."""
