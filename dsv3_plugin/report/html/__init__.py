"""Pages that need nothing else: one frame, tables and bars for all of them."""
