"""What cannot be, or not together, is refused in one sentence."""

import pytest

from dsv3_plugin.data import tokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe import sections
from dsv3_plugin.recipe.arguments import megatron_arguments
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.options import OPTIONS
from dsv3_plugin.recipe.rules import passed_flags
from tests.recipe.piped import PIPED


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.seq_lenght=8"], "unknown key 'data.seq_lenght' (nearest: 'seq_length')"),
        (["modle=tiny"], "unknown key 'modle' (nearest: 'model')"),
        (["curves.learning_rates=1"], "unknown key 'curves.learning_rates' (nearest: 'learning"),
        (["curves.mtp_weight=[{linaer: 1}]"], "'curves.mtp_weight.0.linaer' (nearest: 'linear')"),
        (["training.seed=x"], "'training.seed' is 'x'; it must be a valid integer"),
        (["training.steps=1e3"], "is 1000.0; it must be a valid integer: write 1000."),
        (["training.steps=1.5"], "'training.steps' is 1.5; it must be a valid integer or null."),
        (["training.seed=true"], "'training.seed' is true; it must be a valid integer"),
        (["precision.dtype=fp16"], "'precision.dtype' is 'fp16'; it must be 'fp32' or 'bf16'"),
        (
            ["model.rope_type=yarn"],
            "with model.rope_type=yarn: model: rope_type yarn stretches positions, and nothing "
            "says by how much: give rotary_scaling_factor, and original_max_position_embeddings",
        ),
        (
            ["data.tokenizer=bpe:100"],
            "bpe:100 is too small: 256 bytes and the special tokens are 264",
        ),
        (["recompute=full"], "must be a valid list: write some of norms, mla_up_proj, moe_act, "),
        (["precision=bf16"], "must be a mapping of keys to values: write {dtype: bf16}."),
        (["data.seq_length=4k"], "is '4k'; it must be a valid integer: write 4096."),
        (["training.steps=1k"], "is '1k'; it must be a valid integer: write 1000"),
        (["training.steps=100 steps"], "valid integer: write 100, without quotes or a word"),
        (["model=pretrain/tiny"], "is neither a file nor a shipped model (nearest: 'tiny')."),
        (["curves.learning_rate.0.linear=1e-3"], "a piece cannot be changed alone: give the whole"),
        (["lr=1e-3"], "unknown key 'lr' (nearest: 'curves.learning_rate')."),
        (["model.n_routed_experts=8"], "'model.n_routed_experts' (nearest: 'model.num_moe_exp"),
        (["training=3"], "'training' is 3; it must be a mapping"),
        (["optimizer.betas=[0.9]"], "'optimizer.betas' is [0.9]; it must have 2 items"),
        (["dispatch.ranks_per_node=many"], "it must be a valid integer or 'auto'"),
        (["model=tinny"], "'tinny' is neither a file nor a shipped model (nearest: 'tiny')"),
        (
            ["model.layernorm_epsilon=.inf"],
            "'model.layernorm_epsilon' is .inf; it must be a finite",
        ),
        (["model.hidden_sise=3"], "unknown key 'model.hidden_sise' (nearest: 'hidden_size')"),
        (
            ["training.tokens=1B", "training.steps=5"],
            "give either steps or tokens: there are steps 5 and tokens 1,000,000,000; set "
            "training.steps=null or training.tokens=null",
        ),
        (
            ["training.steps=100", "training.epochs=1"],
            "give either steps or epochs: there are steps 100 and epochs 1; set training.",
        ),
        (["training.steps="], "with training.steps=: training: there is no budget: give training."),
        (
            ["training.seed="],
            "'training.seed=' has no value: give it one, or null for its default.",
        ),
        (["directory="], "'directory=' has no value: give it one."),
        (["training=null"], "'training' is null; it must be a mapping"),
        (["training.eval_interval=x"], "is 'x'; it must be a valid integer or null."),
        (["checkpoint.keep=0"], "'checkpoint.keep' is 0; it must be greater than 0 or null."),
        (
            ["parallel.zero1=yes"],
            "'parallel.zero1' is 'yes'; it must be true or false: write true",
        ),
        (["recompute=moe, norms"], "it must be a valid list: write [moe, norms]."),
        (["trainning.steps=5"], "with trainning.steps=5: unknown key 'trainning' (nearest: 'train"),
        (["base=rl/tiny"], "base is a key of files alone: name rl/tiny in place of "),
        (
            ["model.num_layers=8", "model=deepseek-v3"],
            "with model.num_layers=8 model=deepseek-v3: the second takes the place of all of "
            "model, the first with it: put model.num_layers=8 behind it.",
        ),
        (["model={num_layers: 3"], "'model={num_layers: 3' lacks the } at its end: a shell takes"),
        (["data.corpus=[a, b"], "lacks the ] at its end: a shell takes it whole in quotes, 'data."),
        (["steps"], "'steps' is not an override"),
        (
            ["rewards.match.weight=1"],
            "with rewards.match.weight=1: 'rewards' is a key of stage rl, and the stage is "
            "pretrain: leave it out, or set the stage.",
        ),
        (["stage=rl", "from=x", "rewards.a.caps=[1]"], "'rewards.a.caps' (nearest: 'cap')"),
        (["[]=3"], "'[]=3' is not an override"),
        (
            ["parallel.expert=3"],
            "parallel.expert 3 does not divide the 2 ranks of a pipeline stage (2 processes by "
            "pipeline 1): take one that divides them and the 16 routed experts, such as 2.",
        ),
        (
            ["parallel.expert=3", "parallel.processes=6"],
            "parallel.expert 3 does not divide 16 routed experts: take a number that divides them "
            "and the 6 ranks of a pipeline stage, such as 2.",
        ),
        (
            ["parallel.tensor=3"],
            "parallel.tensor 3 does not divide the 4 attention heads, the 4096 vocabulary entries "
            "and the 256 tokens of a sequence: take one that divides all, such as 2.",
        ),
        (
            ["parallel.processes=3"],
            "parallel.expert 2 does not divide the 3 ranks of a pipeline stage (3 processes by "
            "pipeline 1): take one that divides them and the 16 routed experts, such as 1, or "
            "set "
            "parallel.processes to 2 or 4.",
        ),
        (
            ["parallel.processes=1"],
            "the 1 rank of a pipeline stage (1 process by pipeline 1): take one that divides them "
            "and the 16 routed experts, such as 1, or set parallel.processes to 2.",
        ),
        (
            ["parallel.tensor=4"],
            "2 processes do not divide by tensor 4 × pipeline 1 × context 1 = 4: set "
            "parallel.processes to 4, or divide less.",
        ),
        (["data.corpus=[a, ./a]"], "a twice: name it once"),
        (["data.corpus=[{path: a, weight: -1}, {path: b, weight: 2}]"], "gives a the weight -1"),
        (["data.corpus=[{path: a, wieght: 1}]"], "'data.corpus.0.wieght' (nearest: 'weight')"),
        (
            ["data.corpus=[{path: a, weight: .nan}, {path: b, weight: 1}]"],
            "'data.corpus.0.weight' is .nan; it must be a finite number or null.",
        ),
        (
            ["data.corpus=[a, {path: b, weight: much}]"],
            "'data.corpus.1.weight' is 'much'; it must be a valid number or null.",
        ),
        (["data.corpus=[{weight: 1}]"], "the key 'data.corpus.0.path' is missing."),
        (["data.corpus=[1]"], "'data.corpus.0' is 1; it must be a valid string or a mapping"),
        (["data.corpus=gone.idx"], "gone.idx is encoded already, so no tokenizer can be trained"),
        (
            ["data.held_out_sets={other: gone.idx}"],
            "gone.idx is encoded already, so no tokenizer can be trained",
        ),
        (
            [
                "parallel.processes=8",
                "parallel.tensor=4",
                "parallel.context=2",
                "data.seq_length=252",
            ],
            "tensor 4 does not divide the 126 tokens of a sequence that context 2 leaves a rank: "
            "take one that divides all, such as 2.",
        ),
        (["data.held_out_sets={a: x, A: y}"], "a and A are one name to some disks"),
        (["data.held_out_sets={a/b: x}"], "'a/b' is no name of a set"),
        (["data.held_out_sets={a: x, b: ./x}"], "b: ./x is data.held_out_sets.a as well"),
        (["data.held_out_sets={a: stdlib}"], "a: stdlib is data.corpus as well"),
        (["data.held_out_sets={a: x}", "training.eval_interval=null"], "would never be looked at"),
        (
            ["data.held_out_sets={a: x}", "megatron_args={full-validation: true}"],
            "full-validation does not go with data.held_out_sets",
        ),
        (
            ["data.seq_length=250", "parallel={processes: 2, context: 2}"],
            "data.seq_length 250 does not divide by twice context 2: take 248 or 252, or another",
        ),
        (
            ["parallel={processes: 3, context: 3, expert: 1}", "curves.batch_size=9"],
            "data.seq_length 256 does not divide by twice context 3",
        ),
        (["data.seq_length=2048"], "more than the model's 1024 positions: take as many or fewer"),
        (
            [
                "data.seq_length=1024",
                "model={rope_type: yarn, rotary_scaling_factor: 3, "
                "original_max_position_embeddings: 256}",
            ],
            "data.seq_length 1024 is more than the 768 positions that YaRN reaches from 256 by 3",
        ),
        (["data.tokenizer=parent"], "is for stages that begin with another run's weights"),
        (["stage=extend"], "'from' is missing"),
        (
            ["stage=extend", "from=x", "megatron_args={pretrained-checkpoint: y}"],
            "contradicts from",
        ),
        (
            ["training.micro_batch_size=3"],
            "batch size 8 is not a multiple of 6 sequences (training.micro_batch_size 3 × 2 data-"
            "parallel ranks): take 6 or 12, or training.micro_batch_size 4.",
        ),
        (
            ["curves.batch_size=0"],
            "curves.batch_size: batch size 0 is less than 1, and a step has sequences (training."
            "micro_batch_size 4 × 2 data-parallel ranks): take 8.",
        ),
        (
            ["curves.batch_size=9", "parallel={processes: 1, expert: 1}"],
            "sequences (training.micro_batch_size 4 × 1 data-parallel rank): take 8 or 12, or "
            "training.micro_batch_size 3.",
        ),
        (["curves.learning_rate=-1"], "learning_rate goes below 0 (-1): give values of 0 or more."),
        (["curves.learning_rate=x"], "curves.learning_rate: 'x' is not a curve"),
        (["curves.learning_rate={linear: 1}"], "{linear: 1} is one piece of a curve: put it in br"),
        (
            ["curves.learning_rate=[1e-4]"],
            "piece 1 is 0.0001: write {constant: 0.0001, until: 10%}",
        ),
        (
            ["curves.learning_rate=[[100, 1e-5]]"],
            "piece 1 is [100, 1e-05]: write {linear: 1e-05, until: 100}, or another shape.",
        ),
        (["curves.learning_rate=[null]"], "piece 1 is null: write a mapping such as {constant: "),
        (
            ["megatron_args={pipeline-model-parallel-layout: true}"],
            "pipeline-model-parallel-layout true contradicts pipeline.layout, which is null",
        ),
        (["curves.learning_rate=[{linear: 1, for: 1K}]"], "learning_rate: piece 1: the first"),
        (
            [
                "backend=local",
                "precision={dtype: bf16, fp8: {recipe: blockwise}, moments: bf16}",
                "parallel.zero1=true",
                "recompute=[moe_act]",
            ],
            "precision.fp8, precision.moments: bf16 and recompute: moe_act need backend: "
            "transformer_engine; with backend: local take precision.fp8=null, "
            "precision.moments=fp32 and no moe_act in recompute (moe is the whole expert layer).",
        ),
        (["backend=transformer_engine"], "needs a GPU; with host: cpu say backend: local"),
        (["precision.moments=bf16"], "precision.moments: bf16 needs parallel.zero1"),
        (
            ["precision.swiglu_input=fp8", "precision.dtype=bf16"],
            "swiglu_input: fp8 needs backend: transformer_engine",
        ),
        (["dispatch.kind=deepep"], "dispatch.kind: deepep needs a GPU"),
        (["model.hidden_size=62"], "backend: local need in fp32: take 60 or 64."),
        (
            [
                "precision.dtype=bf16",
                "model.moe_ffn_hidden_size=44",
                "model.moe_shared_expert_intermediate_size=44",
            ],
            "moe_ffn_hidden_size 44 is not a multiple of 8, which the grouped matrix products",
        ),
        (["dispatch.precision=fp8"], "dispatch.precision: fp8 needs dispatch.kind: two_hop"),
        (
            ["dispatch.hide_shared_expert=true", "recompute=[shared_experts]"],
            "recompute: [shared_experts] as a whole: leave out one of them",
        ),
        (
            [*PIPED, "pipeline.schedule=zb1p", "dispatch.hide_shared_expert=true"],
            "on a CUDA stream of its own, which does not go together with weight gradients",
        ),
        (
            ["dispatch={kind: two_hop, ranks_per_node: 3}"],
            "dispatch.ranks_per_node 3 does not divide expert 2: set it to 1 or 2, or to a "
            "multiple of 2",
        ),
        (
            [
                "parallel={processes: 8, expert: 8}",
                "dispatch={ranks_per_node: 3}",
                "curves.batch_size=32",
            ],
            "does not divide expert 8: set it to 1, 2, 4 or 8, or to a multiple of 8",
        ),
        (["pipeline.schedule=dualpype"], "pipeline.schedule 'dualpype' is unknown"),
        (["pipeline.schedule=interleaved"], "needs pipeline.virtual_stages of 2 or more"),
        (["pipeline.virtual_stages=2"], "not to 1f1b: leave it out, or set"),
        (
            ["pipeline.executor=upstream", "pipeline.schedule=zbv"],
            "upstream runs 1f1b and interleaved, not zbv: set it to ours, or leave it out.",
        ),
        (
            ["parallel.pipeline=2", "pipeline.devices=4"],
            "pipeline.devices 4 and parallel.pipeline 2 are one number",
        ),
        (["megatron_args={global-batch-size: 3}"], "the batch size is curves.batch_size"),
        (["megatron_args={lr: 1e-3}"], "lr is curves.learning_rate in a recipe: say it there"),
        (["megatron_args={--lr_warmup_iters: 0}"], "lr-warmup-iters is curves.learning_rate"),
        (["megatron_args={train-iters: 3}"], "train-iters is training.steps in a recipe"),
        (["megatron_args={norm-epsilon: 1e-3}"], "norm-epsilon is model.layernorm_epsilon"),
    ],
)
def test_refused_in_one_sentence(overrides, sentence):
    with pytest.raises(UserError) as caught:
        load_recipe("pretrain/tiny", overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["pipeline.schedule=dualpipe", "pipeline.devices=1"], "not 1: set pipeline.devices to 2."),
        (
            ["pipeline.schedule=dualpipe_v", "training.micro_batch_size=4"],
            "dualpipe_v on 2 devices needs 4 micro-batches, and the smallest batch gives 1",
        ),
        (["pipeline.layout=Et|tt|L"], "which 2 devices do not divide: write 2 or 4 ("),
        (["pipeline.layout=Et|ttL"], "3 layers (t), and the model has 4: write as many"),
        (["pipeline.layout=tt|ttL"], "is not a layout"),
        (
            ["pipeline.layout=balanced", "pipeline.devices=1"],
            "pipeline.layout: balanced divides the layers among pipeline devices, and there is one",
        ),
        (
            ["pipeline={schedule: zbv, layout: balanced, devices: 4}", "parallel.processes=8"],
            "a layer on each of 8 stages but the first and the last, and the model has 4",
        ),
        (
            ["pipeline.layout=balanced", "megatron_args={pipeline-model-parallel-layout: Et|L}"],
            "pipeline-model-parallel-layout Et|L contradicts pipeline.layout, which is balanced",
        ),
        (["pipeline.layout=balance"], "pipeline.layout 'balance' is not a layout"),
        (
            ["pipeline.schedule=zbv", "pipeline.devices=4", "parallel.processes=8"],
            "8 pipeline stages need as many layers, and the model has 4: take fewer pipeline.dev",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={cuda-graph-impl: local}"],
            "graphs (cuda-graph-impl), since its order changes per step: leave it out, or set "
            "pipeline.schedule to 1f1b or interleaved, which upstream runs.",
        ),
        (
            ["pipeline.executor=ours", "megatron_args={enable_cuda_graph: true}"],
            "changes per step: leave it out, or set pipeline.executor to upstream.",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={--defer-embedding-wgrad-compute: true}"],
            "cannot defer the embedding's weight gradient",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={overlap-grad-reduce: true}"],
            "cannot overlap the data-parallel reduction",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={context-parallel-size: 2}"],
            "context-parallel-size 2 contradicts parallel.context, which is 1",
        ),
        (
            ["megatron_args={trust-remote-code: true}"],
            "would run Python code that comes with a tokenizer, which is never done here",
        ),
        (
            ["megatron_args={allow-ambiguous-pad-tokens: true}"],
            "would take ordinary tokens for padding, and nothing is padded here",
        ),
        (
            ["megatron_args={transformer-impl: transformer_engine}"],
            "transformer-impl transformer_engine contradicts backend, which is local",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={overlap-moe-expert-parallel-comm: true}"],
            "overlaps the experts' communication by itself",
        ),
        (
            ["dispatch={kind: two_hop, ranks_per_node: 1}",
             "megatron_args={overlap-moe-expert-parallel-comm: true}"],
            "use dispatch.kind: alltoall, deepep or hybridep, or leave it out",
        ),
        (
            ["data.packing=whole", "megatron_args={overlap-moe-expert-parallel-comm: true}"],
            "tells routers nothing of the padding",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={delay_wgrad_compute: true}"],
            "puts off weight gradients by itself",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={variable-seq-lengths: true}"],
            "sends tensors of one shape",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={cuda-graph-scope: [attn]}"],
            "cannot run under CUDA graphs (cuda-graph-scope)",
        ),
        (
            ["pipeline.schedule=zbv", "parallel.tensor=2", "parallel.processes=8"],
            "sends whole sequences between stages, and tensor parallelism divides them",
        ),
        (
            ["pipeline.ramp_schedule=search"],
            "pipeline.ramp_schedule goes with our executor, and upstream runs 1f1b",
        ),
        (
            ["pipeline.schedule=zbv", "pipeline.layout=Ett|ttmL"],
            "pipeline.layout has 2 stages, and zbv on 2 devices has 4: write as many (parted by |)",
        ),
        (
            ["pipeline.schedule=zbv", "pipeline.layout=Et|t|t|t||mL"],
            "pipeline.layout has 6 stages, and zbv on 2 devices has 4",
        ),
        (
            ["pipeline.schedule=dualpipe", "pipeline.layout=Et|t|t|tmL"],
            "pipeline.layout has 4 stages, and dualpipe on 2 devices has 2",
        ),
        (
            ["pipeline.schedule=zbv", "pipeline.layout=Et|t|t|tL"],
            "layers (m), and the model has 1 (mtp_num_layers): write as many.",
        ),
        (
            ["pipeline.schedule=zbv", "pipeline.layout=Et|t|ttm|L"],
            "with executor ours both are on the last stage: end the layout in mL",
        ),
        (
            ["pipeline.schedule=interleaved", "pipeline.virtual_stages=2",
             "pipeline.layout=Ett|ttm||L"],
            "must hold all multi-token-prediction layers (m) on one stage, the last of its device",
        ),
        (
            ["pipeline.layout=Et|ttmtL"],
            "after multi-token prediction (m), which comes last: end it in mL.",
        ),
        (
            ["pipeline.schedule=interleaved", "pipeline.virtual_stages=2",
             "curves.batch_size=6"],
            "a multiple of 4 sequences (training.micro_batch_size 1 × 2 data-parallel ranks × 2",
        ),
    ],
)  # fmt: skip
def test_pipelines_that_cannot_run(overrides, sentence):
    with pytest.raises(UserError) as caught:
        load_recipe("pretrain/tiny", [*PIPED, *overrides])
    assert sentence in str(caught.value)


def test_routing_is_replayed_where_there_are_experts():
    replay = ["grpo.routing_replay=true"]
    of_experts = (
        "num_moe_experts", "moe_ffn_hidden_size", "moe_router_topk", "moe_router_num_groups",
        "moe_router_group_topk", "moe_shared_expert_intermediate_size",
    )  # fmt: skip
    dense = [f"model.{key}=null" for key in of_experts] + ["model.moe_layer_freq=[0]*2"]
    with pytest.raises(UserError, match="needs a model with experts: set it to false"):
        load_recipe("rl/tiny", [*replay, *dense])
    load_recipe("rl/tiny", ["rollouts.kind=openai", "rollouts.url=http://127.0.0.1:1", *replay])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0F0,0B0\n1F0\n", "rank 1, slot 0: 1F0 has no backward"),
        ("0F0,0B0\n", "is of 1 rank, and the recipe has 2 pipeline devices: set pipeline.dev"),
        ("0F0,0B0\n1F0,1B0\n", "is of 1 micro-batch, and a batch of curves.batch_size gives 4"),
        ("0F0,2F0,2B0,0B0\n1F0,1B0\n", "Megatron builds as many on each: name another file"),
        ("0F0,0B0,2F1,2B1\n1F0,1B0,3F1,3B1\n", "that are not each other's mirror image"),
    ],
)
def test_a_schedules_file_is_proven_when_the_recipe_loads(text, sentence, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    overrides = [*PIPED, "curves.batch_size=8", f"pipeline.schedule={path}"]
    with pytest.raises(UserError) as caught:
        load_recipe("pretrain/tiny", overrides)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)


def test_every_flag_that_a_key_says_is_that_keys_own():
    """What the command line has beside them is how this backend runs, and may be overridden."""
    machines = (Machine(0, False), Machine(4096, True))
    recipes = ("pretrain/tiny", "pretrain/deepseek-v3")
    emitted = {
        word.removeprefix("--")
        for name in recipes
        for machine in machines
        for word in megatron_arguments(load_recipe(name), machine, ("module", "spec"))
        if word.startswith("--")
    }
    said_once = {
        *passed_flags._OWNED,
        *passed_flags._said_in_the_recipe(load_recipe("pretrain/tiny")),
    }
    own = said_once | {*OPTIONS, "manual-gc-interval"}
    assert {flag for flag in emitted - own if not flag.startswith("no-")} == {
        "attention-dropout", "ckpt-format", "disable-bias-linear",
        "dist-ckpt-optim-fully-reshardable", "embedding-init-method-std", "exit-signal-handler",
        "expert-tensor-parallel-size", "hidden-dropout", "kv-channels", "moe-grouped-gemm",
        "moe-permute-fusion", "moe-router-dtype", "multi-latent-attention", "normalization",
        "position-embedding-type", "qk-layernorm", "recompute-granularity", "recompute-modules",
        "spec", "step-batch-size-schedule", "swiglu",
    }  # fmt: skip


def test_the_smallest_vocabulary_is_that_of_the_tokenizer():
    assert sections.SMALLEST_VOCABULARY == tokenizer.SMALLEST_VOCABULARY


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("beta=0.1", "unknown key 'beta' (nearest: 'grpo.kl_weight')."),
        (
            "curves.learning_rate=[{linear: 1e-3, from: 0, for: 0%}, {constant: 1e-3}]",
            "piece 1: '0%' is no length: write one such as 10%, or leave it out.",
        ),
        (
            "curves.learning_rate=[{linear: 1e-3, from: 0, for: 1 epoch}, {constant: 1e-3}]",
            "piece 1: '1 epoch' is for training on conversations: give tokens, steps, or a share "
            "of the run such as 10%.",
        ),
        ("rewards=accuracy", "must be a mapping of keys to values: write {accuracy: {}}."),
        ("rewards.accuracy=1.0", "must be a mapping of keys to values: write {weight: 1}."),
        ("data.packing=conversations", "and the stage is rl: set data.packing to prompts."),
        (
            "grpo={on_mismatch: correct, old: engine}",
            "all would weigh the same: set grpo.old to trainer, or grpo.on_mismatch to warn.",
        ),
        (
            "grpo={on_mismatch: correct, correction: mask, correction_low: 3}",
            "grpo.correction_low 3 is more than grpo.correction_high 2, between which no ratio",
        ),
        (
            "grpo.correction=sequence",
            "grpo.correction sequence is of a correction that is not made: set grpo.on_mismatch to "
            "correct and grpo.old to trainer, or leave it out.",
        ),
        (
            "grpo={old: engine, correction_high: 5}",
            "grpo.correction_high 5 is of a correction that is not made",
        ),
        (
            "grpo={on_mismatch: correct, correction_low: 0.1}",
            "grpo.correction_low 0.1 is of mask, and grpo.correction is token: set that to mask",
        ),
        (
            "grpo.reference_interval=5",
            "of a divergence that has no weight: give grpo.kl_weight, or set it to null.",
        ),
        ("grpo.kl=k1", "give grpo.kl_weight, or set it to k3."),
        ("rollouts.partial=4", "rollouts.partial 4 is no less than rollouts.max_tokens 4, and eve"),
        (
            "rollouts={partial: 2, kind: openai, url: 'http://127.0.0.1:1'}",
            "is of the embedded engine: leave it out, or take rollouts.async: 1.",
        ),
        (
            "rollouts={partial: 2, dynamic_sampling: 3}",
            "asks once for a round, and rollouts.dynamic_sampling 3 several times: leave one",
        ),
        (
            "rollouts.partial=2 grpo.routing_replay=true",
            "rollouts.partial has prompts read again by other weights: leave one of them out.",
        ),
        (
            "rollouts.partial=2 grpo.on_mismatch=stop",
            "rollouts.partial: 2 trains on answers of older weights",
        ),
    ],
)
def test_what_is_said_of_a_recipe_of_answers(change, sentence):
    with pytest.raises(UserError) as refused:
        load_recipe("rl/tiny", change.split(" ") if change.count("=") > 1 else [change])
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        ["grpo={on_mismatch: correct, correction: mask, correction_low: 0.1}"],
        ["rollouts.async=1", "grpo.correction=sequence"],
        ["rollouts.async=1", "grpo.old=engine"],
        ["grpo={old: engine, kl_weight: 0.1, kl: k1, reference_interval: 5}"],
    ],
)
def test_what_has_an_effect_is_taken(changes):
    load_recipe("rl/tiny", changes)
