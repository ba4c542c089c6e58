"""Shapes of the family, as changes of `oracles.model_config`."""

SOFTMAX = {
    "moe_router_score_function": "softmax",
    "moe_router_pre_softmax": True,
    "moe_router_enable_expert_bias": False,
}
NO_GROUPS = {"moe_router_num_groups": None, "moe_router_group_topk": None}
YARN = {
    "rope_type": "yarn",
    "rotary_scaling_factor": 40.0,
    "original_max_position_embeddings": 16,
    "max_position_embeddings": 640,
}


def groups(experts, number, allowed, topk, **others):
    return {
        "num_moe_experts": experts,
        "moe_router_num_groups": number,
        "moe_router_group_topk": allowed,
        "moe_router_topk": topk,
    } | others


MODELS = {
    "V3, 8 experts of 4 of 8 groups": groups(32, 8, 4, 8),
    "V3, 4 of 2 of 4": groups(16, 4, 2, 4),
    "V3, 6 of 3 of 8": groups(32, 8, 3, 6),
    "V3, 3 of 2 of 4": groups(16, 4, 2, 3),
    "V3, 1 of 1 of 2": groups(8, 2, 1, 1),
    "V3, 2 of 4 of 4": groups(16, 4, 4, 2),
    "V3, 8 of 2 of 3": groups(24, 3, 2, 8),
    "V3, 5 of 3 of 4": groups(20, 4, 3, 5),
    "V3 with YaRN": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "V3 with plain YaRN": YARN | {"mscale": 1.0, "mscale_all_dim": 0.0},
    "V3 without a dense layer": {"moe_layer_freq": 1},
    "V2, 6 of 3 of 8": groups(32, 8, 3, 6, moe_router_topk_scaling_factor=4.0, **SOFTMAX),
    "V2, 4 of 2 of 4": groups(16, 4, 2, 4, **SOFTMAX),
    "V2 with YaRN": SOFTMAX | YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "V2-Lite": SOFTMAX | NO_GROUPS | YARN
    | {"q_lora_rank": None, "moe_router_topk": 6, "mscale": 0.707, "mscale_all_dim": 0.707,
       "moe_router_topk_scaling_factor": None},
    "V2-Lite without YaRN": SOFTMAX | NO_GROUPS
    | {"q_lora_rank": None, "moe_router_topk": 6, "moe_router_topk_scaling_factor": None},
    "Moonlight": NO_GROUPS | {"q_lora_rank": None, "layernorm_epsilon": 1e-5,
                              "moe_router_topk": 6, "rotary_base": 50000.0},
    "Moonlight with YaRN": NO_GROUPS | YARN
    | {"q_lora_rank": None, "layernorm_epsilon": 1e-5, "moe_router_topk": 6,
       "mscale": 1.0, "mscale_all_dim": 1.0},
    # Both betas are 1: no frequency lies between those that are kept and those that are stretched.
    "Kimi K2": NO_GROUPS | YARN
    | {"moe_router_topk": 8, "moe_router_topk_scaling_factor": 2.827, "rotary_base": 50000.0,
       "rotary_scaling_factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0,
       "mscale": 1.0, "mscale_all_dim": 1.0},
}  # fmt: skip
