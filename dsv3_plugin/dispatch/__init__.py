"""Expert-parallel dispatch: tokens to the ranks that hold their experts, and back.

`two_hop` sends a token once to every node that needs it and fans it out there; upstream's
all-to-all, DeepEP and HybridEP are chosen by name (`moe_layer`).
"""
