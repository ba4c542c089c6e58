"""Makes the helpers beside this file (`gloo_ranks`, `oracles`) importable from every test."""
