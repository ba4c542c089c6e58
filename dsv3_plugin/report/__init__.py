"""The run folder and the recipe read back: tables and figures."""
