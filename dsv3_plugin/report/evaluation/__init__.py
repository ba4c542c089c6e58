"""What was evaluated, as tables, mappings and pages."""
