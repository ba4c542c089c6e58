"""Efficiencies of a cluster from measured steps."""
