"""A key that is not known, or a value of another kind, is refused in one sentence."""

import pytest

from tests.recipe.refused import refusal


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.seq_lenght=8"], "unknown key 'data.seq_lenght' (nearest: 'data.seq_length')"),
        (["modle=tiny"], "unknown key 'modle' (nearest: 'model')"),
        (["curves.learning_rates=1"], "unknown key 'curves.learning_rates' (nearest: 'curves.l"),
        (["curves.mtp_weight=[{linaer: 1}]"], "0.linaer' (nearest: 'curves.mtp_weight.0.linear')"),
        (["lr=1e-3"], "unknown key 'lr' (nearest: 'curves.learning_rate')."),
        (["model.n_routed_experts=8"], "'model.n_routed_experts' (nearest: 'model.num_moe_exp"),
        (["model.hidden_sise=3"], "unknown key 'model.hidden_sise' (nearest: 'model.hidden_size')"),
        (["model.layers=6"], "unknown key 'model.layers' (nearest: 'model.num_layers')"),
        (["trainning.steps=5"], "with trainning.steps=5: unknown key 'trainning' (nearest: 'train"),
        (
            ["stage=rl", "from=x", "rewards.a.caps=[1]"],
            "'rewards.a.caps' (nearest: 'rewards.a.cap')",
        ),
        (["data.corpus=[{path: a, wieght: 1}]"], "wieght' (nearest: 'data.corpus.0.weight')"),
    ],
)
def test_an_unknown_key_has_a_nearest(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["training.seed=x"], "'training.seed' is 'x'; it must be a valid integer"),
        (["training.steps=1e3"], "is 1000.0; it must be a valid integer: write 1000."),
        (["training.steps=1.5"], "'training.steps' is 1.5; it must be a valid integer or null."),
        (["training.seed=true"], "'training.seed' is true; it must be a valid integer"),
        (["precision.dtype=fp16"], "'precision.dtype' is 'fp16'; it must be 'fp32' or 'bf16'"),
        (["recompute=full"], "must be a valid list: write some of norms, mla_up_proj, moe_act, "),
        (["precision=bf16"], "must be a mapping of keys to values: write {dtype: bf16}."),
        (["data.seq_length=4k"], "is '4k'; it must be a valid integer: write 4096."),
        (["training.steps=1k"], "is '1k'; it must be a valid integer: write 1000"),
        (["training.steps=100 steps"], "valid integer: write 100, without quotes or a word"),
        (["training=3"], "'training' is 3; it must be a mapping"),
        (["optimizer.betas=[0.9]"], "'optimizer.betas' is [0.9]; it must have 2 items"),
        (["dispatch.ranks_per_node=many"], "it must be a valid integer or 'auto'"),
        (
            ["model.layernorm_epsilon=.inf"],
            "'model.layernorm_epsilon' is .inf; it must be a finite",
        ),
        (
            ["data=null"],
            "tiny.yaml with data=null: 'data' is null, and it has no default: leave that out, or "
            "take back single keys of it, such as data.corpus.",
        ),
        (["curves=null"], "leave that out, or take back single keys of it, such as curves.router_"),
        (["training=null"], "single keys of it, such as training.micro_batch_size."),
        (
            ["data.seq_length=null"],
            "'data.seq_length' is null, and it has no default; it must be a valid integer.",
        ),
        (
            ["data.tokenizer=bpe"],
            "data.tokenizer: 'bpe' is no tokenizer to train: write bpe:N with N tokens, such as "
            "bpe:4096; a folder of this name is ./bpe.",
        ),
        (["data.tokenizer=bpe:abc"], "'bpe:abc' is no tokenizer to train: write bpe:N with"),
        (["data.tokenizer=BPE:512"], "write bpe:N with N tokens, such as bpe:4096."),
        (["training.eval_interval=x"], "is 'x'; it must be a valid integer or null."),
        (["checkpoint.keep=0"], "'checkpoint.keep' is 0; it must be greater than 0 or null."),
        (
            ["parallel.zero1=yes"],
            "'parallel.zero1' is 'yes'; it must be true or false: write true",
        ),
        (["recompute=moe, norms"], "it must be a valid list: write [moe, norms]."),
        (
            ["data.corpus=[{path: a, weight: .nan}, {path: b, weight: 1}]"],
            "'data.corpus.0.weight' is .nan; it must be a finite number or null.",
        ),
        (
            ["data.corpus=[a, {path: b, weight: much}]"],
            "'data.corpus.1.weight' is 'much'; it must be a valid number or null.",
        ),
        (["data.corpus=[1]"], "'data.corpus.0' is 1; it must be a valid string or a mapping"),
    ],
)
def test_a_value_of_another_kind_is_told_what_is_taken(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["model.rope_type=yarn"],
            "with model.rope_type=yarn: model: rope_type yarn stretches positions, and nothing "
            "says by how much: give rotary_scaling_factor, and original_max_position_embeddings",
        ),
        (
            ["training.tokens=1B", "training.steps=5"],
            "give either steps or tokens: there are steps 5 and tokens 1,000,000,000; set "
            "training.steps=null or training.tokens=null",
        ),
        (
            ["training.steps=100", "training.epochs=1"],
            "give either steps or epochs: there are steps 100 and epochs 1; set training.",
        ),
        (["data.corpus=[{weight: 1}]"], "the key 'data.corpus.0.path' is missing."),
        (["stage=extend"], "'from' is missing: name a run's folder, or a checkpoint's."),
        (
            ["model=null"],
            "no default; it must be a mapping of keys to values: name one, such as tiny.",
        ),
        (["training.steps=10%"], "a valid integer: shares are for the lengths in curves."),
        (["data.held_out=5%"], "it must be a valid number: write 0.05."),
        (["model.bse=tiny"], "unknown key 'model.bse' (nearest: 'model.base')."),
    ],
)
def test_sections_that_lack_or_contradict_something(overrides, sentence):
    assert sentence in refusal("pretrain/tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["beta=0.1"], "unknown key 'beta' (nearest: 'grpo.kl_weight')."),
        (["rewards=accuracy"], "must be a mapping of keys to values: write {accuracy: {}}."),
        (["rewards.accuracy=1.0"], "must be a mapping of keys to values: write {weight: 1}."),
    ],
)
def test_rewards_and_what_is_called_otherwise_elsewhere(overrides, sentence):
    assert sentence in refusal("rl/tiny", overrides)
