"""The search for the division, the schedule and the layout by which a recipe's step is shortest."""
