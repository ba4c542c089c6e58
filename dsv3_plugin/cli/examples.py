"""An example or two of each verb, at the end of its help."""

EXAMPLES = {
    "recipes": ("dsv3 recipes",),
    "explain": (
        "dsv3 explain experts",
        "dsv3 explain training.eval_steps",
        "dsv3 explain model.num_layers pretrain/deepseek-v3",
    ),
    "init": ("dsv3 init mine --corpus texts/ --tokens 20M", "dsv3 init long --from extend/tiny-1k"),
    "train": (
        "dsv3 train pretrain/tiny training.steps=20 directory=runs/short",
        "dsv3 train mine.yaml --dry-run",
        "torchrun --nproc-per-node 8 -m dsv3_plugin.cli train mine.yaml",
    ),
    "args": ("dsv3 args pretrain/deepseek-v3",),
    "launch": (
        "dsv3 launch mine.yaml --cluster cluster.yaml",
        "dsv3 launch mine.yaml --array training.seed=1,2,3 --dry-run",
    ),
    "status": ("dsv3 status", "dsv3 status runs/tiny --json"),
    "logs": ("dsv3 logs runs/tiny --follow", "dsv3 logs runs/tiny --rank 0"),
    "cancel": ("dsv3 cancel runs/tiny",),
    "runs": ("dsv3 runs", "dsv3 runs /shared/runs --json"),
    "diff": ("dsv3 diff runs/a runs/b", "dsv3 diff pretrain/tiny mine.yaml"),
    "plot": ("dsv3 plot runs/a runs/b", "dsv3 plot runs/tiny --png losses.png"),
    "plan": (
        "dsv3 plan pretrain/deepseek-v3",
        "dsv3 plan pretrain/deepseek-v3 --search --cluster h800",
        "dsv3 plan deepseek-v3",
    ),
    "rehearse": ("dsv3 rehearse pretrain/deepseek-v3",),
    "schedule": (
        "dsv3 schedule dualpipe_v --pp 8 --micro-batches 20 --png dualpipe_v.png",
        "dsv3 schedule --from-csv mine.csv",
    ),
    "logits": ("dsv3 logits --checkpoint runs/tiny --tokens tokens.npy --out logits.npy",),
    "generate": (
        'dsv3 generate --checkpoint runs/tiny --prompt "def " --temperature 0.8',
        'dsv3 generate --checkpoint runs/tiny-sft --chat --prompt "2 + 2?"',
    ),
    "serve": ("dsv3 serve --checkpoint runs/tiny --port 8000", "dsv3 serve --hf hf/"),
    "distill": (
        "dsv3 distill problems.jsonl --from http://127.0.0.1:8000/v1 --out samples.jsonl",
        "dsv3 distill problems.jsonl --from runs/tiny --n 8 --out samples.jsonl",
    ),
    "import": ("dsv3 import hf/ checkpoint/", "dsv3 import hf/ checkpoint/ --resume"),
    "export": ("dsv3 export runs/tiny hf/", "dsv3 export checkpoint/ hf/ --fp8"),
    "verify": ("dsv3 verify hf/ checkpoint/", "dsv3 verify hf/"),
    "inspect": ("dsv3 inspect runs/tiny", "dsv3 inspect hf/ --json"),
    "balance": ("dsv3 balance runs/tiny --png balance.png",),
    "doctor": ("dsv3 doctor", "dsv3 doctor --json"),
    "model from-hf": ("dsv3 model from-hf hf/config.json --out mine.yaml",),
    "data build": (
        "dsv3 data build --corpus texts/ --tokenizer bpe:4096 --out data/",
        "dsv3 data build --corpus texts/ --corpus more.jsonl --tokenizer hf/ --out data/",
    ),
    "data show": ("dsv3 data show data/ --document 3", "dsv3 data show runs/tiny"),
    "data prepare": ("dsv3 data prepare sft/tiny",),
    "eval needle": (
        "dsv3 eval needle --checkpoint runs/tiny --lengths 256,1024 --html needles.html",
    ),
    "eval loss": ("dsv3 eval loss --checkpoint runs/tiny --by-position",),
    "eval harness": ("dsv3 eval harness --checkpoint runs/tiny --tasks arc_easy --limit 100",),
}
"""Lines by verb, as they are typed."""


def examples(verb: str) -> str:
    """What stands at the end of a verb's help; its lines are kept as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in EXAMPLES[verb])])
