"""What keys of a recipe are called elsewhere: in Hugging Face's configurations and trainers, in
upstream's command line, in papers."""

MEANT = {
    # config.json
    "num_hidden_layers": "model.num_layers",
    "intermediate_size": "model.ffn_hidden_size",
    "rms_norm_eps": "model.layernorm_epsilon",
    "initializer_range": "model.init_method_std",
    "tie_word_embeddings": "model.share_embeddings_and_output_weights",
    "qk_nope_head_dim": "model.qk_head_dim",
    "qk_rope_head_dim": "model.qk_pos_emb_head_dim",
    "rope_theta": "model.rotary_base",
    "first_k_dense_replace": "model.moe_layer_freq",
    "n_routed_experts": "model.num_moe_experts",
    "moe_intermediate_size": "model.moe_ffn_hidden_size",
    "n_shared_experts": "model.moe_shared_expert_intermediate_size",
    "num_experts_per_tok": "model.moe_router_topk",
    "n_group": "model.moe_router_num_groups",
    "topk_group": "model.moe_router_group_topk",
    "scoring_func": "model.moe_router_score_function",
    "routed_scaling_factor": "model.moe_router_topk_scaling_factor",
    "aux_loss_alpha": "model.moe_aux_loss_coeff",
    "num_nextn_predict_layers": "model.mtp_num_layers",
    # command lines of trainers
    "lr": "curves.learning_rate",
    "global_batch_size": "curves.batch_size",
    "train_iters": "training.steps",
    "max_steps": "training.steps",
    "num_train_epochs": "training.epochs",
    "max_seq_length": "data.seq_length",
    "sequence_length": "data.seq_length",
    "max_grad_norm": "optimizer.clip_grad",
    "save_interval": "checkpoint.interval",
    "save_steps": "checkpoint.interval",
    "tensor_model_parallel_size": "parallel.tensor",
    "pipeline_model_parallel_size": "parallel.pipeline",
    "expert_model_parallel_size": "parallel.expert",
    "context_parallel_size": "parallel.context",
    "world_size": "parallel.processes",
    # reinforcement learning
    "beta": "grpo.kl_weight",
    "kl_coef": "grpo.kl_weight",
    "num_generations": "rollouts.n",
    "group_size": "rollouts.n",
}
"""Name elsewhere → the key with its sections."""
