"""A small dataset, and upstream's globals as `initialize_megatron` would leave them."""

import json
from pathlib import Path
from types import SimpleNamespace

from megatron.core.tokenizers import MegatronTokenizer
from megatron.training import global_vars

from dsv3_plugin.data.build import build_dataset
from dsv3_plugin.data.dataset_folder import Dataset
from dsv3_plugin.data.tokenizer import TrainBpe

SEQ = 16
SEED = 11


def small_dataset(folder: Path) -> Dataset:
    """Eighty short documents, a tenth of them held out."""
    corpus = folder / "corpus.jsonl"
    texts = [f"document {i} " + f"word{i} " * (i % 13) for i in range(80)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return build_dataset(corpus, TrainBpe(320), folder / "out", held_out=0.1, fim_rate=0.1)


def arguments(built, cache, **changes) -> SimpleNamespace:
    """The flags of upstream that the data room reads."""
    values = {
        "rank": 0,
        "seed": SEED,
        "seq_length": SEQ,
        "dataloader_type": "single",
        "consumed_train_samples": 0,
        "micro_batch_size": 2,
        "pipeline_model_parallel_size": 1,
        "pipeline_model_parallel_layout": None,
        "context_parallel_size": 1,
        "mtp_num_layers": None,
        "data_path": None,
        "data_args_path": None,
        "per_split_data_args_path": None,
        "train_data_path": [str(built.train_prefix)],
        "valid_data_path": [str(built.held_out_prefix)],
        "test_data_path": None,
        "split": None,
        "multiple_validation_sets": False,
        "full_validation": False,
        "num_dataset_builder_threads": 1,
        "data_cache_path": str(cache),
        "mmap_bin_files": True,
        "mock_data": False,
        "reset_position_ids": False,
        "reset_attention_mask": False,
        "eod_mask_loss": False,
        "create_attention_mask_in_dataloader": False,
        "calculate_per_token_loss": False,
        "mid_level_dataset_surplus": 0.005,
    }
    return SimpleNamespace(**{**values, **changes})


def set_globals(built, cache, **changes) -> None:
    """Stands for upstream's `initialize_megatron`, as far as the data room looks."""
    global_vars._GLOBAL_ARGS = arguments(built, cache, **changes)
    set_tokenizer(built.tokenizer_folder)


def set_tokenizer(folder) -> None:
    """Stands for upstream's `build_tokenizer`."""
    global_vars._GLOBAL_TOKENIZER = MegatronTokenizer.from_pretrained(
        str(folder), {"library": "huggingface"}
    )
