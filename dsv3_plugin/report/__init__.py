"""The run folder and the recipe read back, and plans: tables and figures."""
