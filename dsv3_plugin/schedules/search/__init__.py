"""The search for a better schedule than those published."""
