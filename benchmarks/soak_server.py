"""A small random model for `soak.py` and `serve.py`, and `dsv3 serve` of it."""

import argparse
import contextlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
from train_step import model_config, write_hf

from dsv3_plugin.checkpoint import import_hf
from dsv3_plugin.data.tokenizer import train_bpe

THINK = "Think"
"""In a user's turn: the template opens the answer's thinking."""
TEMPLATE = (
    "{{ bos_token }}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}{% endfor %}"
    "<|assistant|>{% if '" + THINK + "' in (messages[-1].content or '') %}<think>\n{% endif %}"
)
"""Of conversations with tools, and with thinking."""


def soak_model() -> Any:
    """A small model that guesses ahead."""
    small = {
        "name": "soak", "num_layers": 3, "hidden_size": 64, "ffn_hidden_size": 128,
        "vocab_size": 512, "max_position_embeddings": 1024,
        "original_max_position_embeddings": 1024, "num_attention_heads": 4, "q_lora_rank": 32,
        "kv_lora_rank": 32, "moe_layer_freq": "[0]*1+[1]*2", "moe_ffn_hidden_size": 32,
        "moe_shared_expert_intermediate_size": 32, "mtp_num_layers": 1,
    }  # fmt: skip
    return type(model_config(1)).model_validate(model_config(1).model_dump() | small)


def write_checkpoint(config: Any, folder: Path, name: str = "weights", seed: int = 0) -> Path:
    """Random weights of a model with a tokenizer, as a checkpoint of that name."""
    from dsv3_plugin.model.build import build_model

    hf, checkpoint = folder / f"{name}-hf", folder / name
    torch.manual_seed(seed)
    built = build_model(config)
    # Far enough apart that answers are not one token again and again, and not so far that sums in
    # another order make 1e-5 of a log-probability.
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.7 / parameter.shape[-1] ** 0.5)
    train_bpe([inspect.getsource(argparse)], min(config.vocab_size, 510), hf)
    backend = tokenizers.Tokenizer.from_file(str(hf / "tokenizer.json"))
    backend.add_tokens(["<think>", "</think>"])  # no special ones: they are part of a text
    backend.save(str(hf / "tokenizer.json"))
    (hf / "chat_template.jinja").write_text(TEMPLATE)
    write_hf(built, config, hf)
    import_hf(hf, checkpoint)
    return checkpoint


@contextlib.contextmanager
def served(
    checkpoint: Path, threads: int, *options: str, key: str | None = None
) -> Iterator[tuple[str, str]]:
    """A server of a checkpoint: the model's name and the address of its routes."""
    command = [sys.executable, "-m", "dsv3_plugin.cli", "serve", "--checkpoint", str(checkpoint)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if key is not None:
        environment["DSV3_API_KEY"] = key
    with subprocess.Popen(
        [*command, "--port", "0", *options], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            name, _, address = process.stdout.readline().split()
            yield name, address
        finally:
            process.terminate()
