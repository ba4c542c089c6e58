"""Everything of Megatron that we replace: one table of patches, and the CPU host."""
