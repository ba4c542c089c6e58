"""A plan for people and programs: tables, a page, a comparison, JSON."""
