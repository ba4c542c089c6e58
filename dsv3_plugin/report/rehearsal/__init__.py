"""What a rehearsal found: its verdict as tables, as JSON, as a page."""
