"""What a model and a run cost, from their description alone. No torch in here."""
