"""The dataset provider for upstream's `megatron.training.pretrain`.

Upstream keeps its own in `pretrain_gpt.py`, outside of the wheel. Samples are upstream's
`GPTDataset`: documents in a seeded order, laid end to end and cut every `seq_length` tokens. As in
DeepSeek-V3's pretraining, tokens attend across the documents of a sample, and every token is
read and counts in the loss, the end of a document too, and one that a tokenizer calls its padding:
nothing is padded here. The order is a function of the seed, the data and the number
of samples, and upstream's sampler resumes by the count of samples consumed, so a resumed run reads
what it would have read. Evaluations never run out of samples (`Endless`).
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import torch
from megatron.core import parallel_state
from megatron.core.datasets import utils
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.datasets.megatron_dataset import _PAD_TOKEN_ID
from megatron.core.datasets.utils import Split
from megatron.training import get_args, get_tokenizer
from megatron.training.utils import get_blend_and_blend_per_split

from dsv3_plugin.data.batch import InputsOfStage, stage_inputs
from dsv3_plugin.data.dataset_folder import find_dataset
from dsv3_plugin.data.evaluated import Endless, InTurn
from dsv3_plugin.data.index_file import read_index
from dsv3_plugin.data.whole import WholeDocuments, WholePacking, whole_documents
from dsv3_plugin.distributed.rank_zero_first import rank_zero_first
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.full_disk import reason

Provider = Callable[..., tuple[Any, Any, Any]]


class Builder(BlendedMegatronDatasetBuilder):
    """Upstream's, with the ranks that wait for rank 0's indices waiting outside of any collective.

    To shuffle the 3.6e9 samples of a full run takes NumPy a quarter of an hour. Upstream's other
    ranks wait for it in a barrier, which gives up after the run's timeout.
    """

    def build(self) -> list[Any]:
        """The datasets: on rank 0, which writes their indices, then on the others.

        Raises:
            UserError: an index cannot be written.
        """

        def build() -> list[Any]:
            with _unwritable_as_sentence():
                return super(Builder, self).build()

        if not torch.distributed.is_initialized():
            return build()
        built: list[Any] = []

        def on_rank_zero() -> str:
            built.extend(build())
            return ""

        rank_zero_first("an index of samples", on_rank_zero)
        return built or build()

    def _build_megatron_dataset_splits(
        self,
        dataset_path: str | None,
        split: list[Any],
        sizes: list[int],
        synchronize_ranks: bool = True,
    ) -> list[Any]:
        """Upstream's, which waits for nobody: `build` has."""
        return super()._build_megatron_dataset_splits(dataset_path, split, sizes, False)

    def _build_megatron_datasets_parallel(
        self, prefixes: list[str], split: list[Any], sizes_per_dataset: list[list[int]]
    ) -> list[list[Any]]:
        """The datasets of several prefixes by split, as upstream's, which waits for nobody."""
        with ThreadPoolExecutor(self.config.num_dataset_builder_threads) as threads:
            built = threads.map(
                lambda prefix, sizes: self._build_megatron_dataset_splits(prefix, split, sizes),
                prefixes,
                sizes_per_dataset,
            )
        return [list(of_split) for of_split in zip(*built, strict=True)]

    @staticmethod
    def build_generic_dataset(
        cls: Callable[..., Any],
        is_built_on_rank: Callable[[], bool],
        synchronize_ranks: bool,
        *args: Any,
    ) -> Any:
        """One dataset, where it is built; upstream's, which waits for nobody."""
        return BlendedMegatronDatasetBuilder.build_generic_dataset(
            cls, is_built_on_rank, False, *args
        )


@contextlib.contextmanager
def _unwritable_as_sentence() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Upstream wraps it where it runs distributed.
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot write the index of samples {cause.filename}: {reason(cause)}; make "
            "room, or name a folder: megatron_args.data-cache-path=FOLDER."
        ) from error


class _NoTokenIsPadding:
    """Makes padding of an upstream dataset, if there is any, a value that no token has.

    `GPTDataset` takes every token that equals the tokenizer's pad token out of the loss, and feeds
    token 0 in its place, though it pads no sample of training. Many a tokenizer names an ordinary
    token there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pad_token_id = _PAD_TOKEN_ID  # upstream's own, for tokenizers without one


class Documents(_NoTokenIsPadding, GPTDataset):
    """Samples of a built dataset."""


class MockDocuments(_NoTokenIsPadding, MockGPTDataset):
    """Samples of upstream's made-up tokens (`--mock-data`)."""


def datasets_provider(
    inputs_of_stage: InputsOfStage = stage_inputs,
    held_out_sets: Sequence[Path] = (),
    whole: WholePacking | None = None,
) -> Provider:
    """A `train_valid_test_datasets_provider` in upstream's signature.

    Args:
        inputs_of_stage: says, for a virtual stage of this rank, what it reads of a batch; datasets
            are built where it reads anything. Rank 0 must be among those, for some stage: it
            writes the indices that the others load.
        held_out_sets: prefixes of datasets that evaluations read in turn, an evaluation's batches
            of each, behind upstream's `--valid-data-path`.
        whole: how documents stay whole, in training and evaluations; None: they are a stream.
    """

    def train_valid_test_datasets_provider(
        num_samples: Sequence[int | None], vp_stage: int | None = None
    ) -> tuple[Any, Any, Any]:
        def is_built_on_rank() -> bool:
            # Padding is read by every stage: all of them have routers.
            reads = whole is not None or inputs_of_stage(vp_stage).any
            return reads and parallel_state.get_tensor_model_parallel_rank() == 0

        args = get_args()
        config = dataset_config(args)
        dataset: Any = MockDocuments if args.mock_data else Documents
        if whole is not None:
            config, dataset = whole_documents(config, whole, _train_weights(args)), WholeDocuments
        sizes = [samples if samples is None else max(samples, 1) for samples in num_samples]

        def build(config: GPTDatasetConfig) -> list[Any]:
            if args.rank == 0:
                _look_at_files(config)
            return Builder(dataset, sizes, is_built_on_rank, config).build()

        train, valid, test = build(config)
        if args.dataloader_type == "single" and not args.full_validation:
            # Other samplers begin anew by themselves, and need to know where the samples end.
            valid, test = (part and Endless(part) for part in (valid, test))
            if train and args.consumed_train_samples >= len(train):
                train = Endless(train)  # nothing is left but to evaluate
        if held_out_sets:
            sets = [
                build(_only_valid(config, prefix))[Split.valid.value] for prefix in held_out_sets
            ]
            evaluated = [part for part in (valid, *map(Endless, filter(None, sets))) if part]
            per_evaluation = args.eval_iters * args.eval_global_batch_size
            valid = evaluated and InTurn(evaluated, per_evaluation, args.consumed_valid_samples)
        return train, valid, test

    # Upstream asks each rank then, instead of tensor-parallel rank 0 alone.
    train_valid_test_datasets_provider.is_distributed = True  # type: ignore[attr-defined]
    return train_valid_test_datasets_provider


def _look_at_files(config: GPTDatasetConfig) -> None:
    """What upstream would believe: indices of tokens, and what is left of those of samples."""
    for prefix in _prefixes(config.blend, config.blend_per_split):
        if prefix.with_name(f"{prefix.name}.idx").is_file():  # else upstream's to fetch
            read_index(prefix)
    for folder in _index_folders(config):
        remove_broken_indices(folder)


def _only_valid(config: GPTDatasetConfig, prefix: Path) -> GPTDatasetConfig:
    """The same, of one dataset to evaluate on."""
    cache = config.path_to_cache and _cache(config.path_to_cache, [prefix])
    blends = [None, ([str(prefix)], None), None]
    return dataclasses.replace(config, blend_per_split=blends, path_to_cache=cache)


def dataset_config(args: Any) -> GPTDatasetConfig:
    """Upstream's dataset configuration from upstream's arguments."""
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    if blend_per_split is not None:
        blend_per_split = [part and _with_weights(*part) for part in blend_per_split]
        if args.full_validation and (valid := blend_per_split[Split.valid.value]):
            blend_per_split[Split.valid.value] = (valid[0], None)  # all of it, once
    return GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        multiple_validation_sets=args.multiple_validation_sets,
        full_validation=args.full_validation,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        path_to_cache=_cache(args.data_cache_path, _prefixes(blend, blend_per_split)),
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=get_tokenizer(),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
    )


def _train_weights(args: Any) -> list[float] | None:
    """Of the training blend, as they were given; None: they were not."""
    _, per_split = get_blend_and_blend_per_split(args)
    blend = per_split and per_split[Split.train.value]
    return blend[1] if blend else None


def _with_weights(
    prefixes: list[str], weights: list[float] | None
) -> tuple[list[str], list[float] | None]:
    """A blend whose members without weights are drawn from by their tokens.

    Upstream stops such a blend after an epoch.
    """
    if weights is not None or len(prefixes) == 1:
        return prefixes, weights
    return prefixes, [float(_tokens(Path(prefix))) for prefix in prefixes]


def _tokens(prefix: Path) -> int:
    dataset = find_dataset(prefix.parent)
    if dataset is None:
        return read_index(prefix).tokens
    parts = {dataset.train_prefix: dataset.manifest.train}
    parts[dataset.held_out_prefix] = dataset.manifest.held_out
    return parts[prefix].tokens


def _prefixes(blend: Any, blend_per_split: Any) -> list[Path]:
    """The datasets of upstream's blends."""
    blends = [blend, *(blend_per_split or [])]
    return [Path(prefix) for blend in blends if blend for prefix in blend[0]]


def _cache(folder: str | None, prefixes: Sequence[Path]) -> str | None:
    """Where indices lie that are not to lie beside their data: a folder for each state of those.

    Upstream knows an index again by the path of its data, which may have been built anew since.
    """
    if folder is None:
        return None
    datasets = [find_dataset(place) for place in sorted({prefix.parent for prefix in prefixes})]
    fingerprints = [dataset.fingerprint for dataset in datasets if dataset]
    if len(fingerprints) > 1:
        state = " ".join(fingerprints).encode()
        fingerprints = [hashlib.blake2b(state, digest_size=16).hexdigest()]
    return str(Path(folder, *fingerprints))


def _index_folders(config: GPTDatasetConfig) -> list[Path]:
    """Where datasets keep their indices (`GPTDataset._build_document_sample_shuffle_indices`)."""
    if config.path_to_cache:
        return [Path(config.path_to_cache)]
    prefixes = _prefixes(config.blend, config.blend_per_split)
    kinds = (Documents.__name__, WholeDocuments.__name__)
    return [prefix / "cache" / f"{kind}_indices" for prefix in prefixes for kind in kinds]


_BLEND = BlendedDataset.__name__
_INDICES = {
    Documents.__name__: ("document", "sample", "shuffle"),
    WholeDocuments.__name__: WholeDocuments.INDICES,
    _BLEND: ("dataset", "dataset_sample"),
}
"""What upstream keeps of a dataset: the indices of each class."""


def remove_broken_indices(folder: Path) -> None:
    """Remove the sample indices that a killed process wrote in part.

    Upstream writes them in place and takes any that exists for complete, so without this a run
    killed at that moment could never start again. It would also run what a pickle in their place
    says, and write through a link.

    Raises:
        UserError: something else than a file has the name of one.
    """
    for kind in _INDICES:
        for path in folder.glob(f"*-{kind}-*"):
            if path.is_symlink() or not path.is_file():
                raise UserError(
                    f"{path} is a link or no file, where an index of samples belongs: remove it."
                )
    for description in folder.glob("*-description.txt"):
        base = description.name.removesuffix("description.txt")
        kind = _BLEND if f"-{_BLEND}-" in base else Documents.__name__
        indices = [folder / f"{base}{name}_index.npy" for name in _INDICES[kind]]
        try:
            for path in indices:
                numpy.lib.format.open_memmap(path, mode="r")
        except (OSError, EOFError, ValueError):
            for path in (description, *indices):
                path.unlink(missing_ok=True)


def compile_helpers(original: Callable[[], None]) -> Callable[[], None]:
    """Wraps upstream's `compile_helpers`, which runs `make` where the wheel has no Makefile.

    The wheel ships the compiled helper instead; a `UserError` says where that does not load, for
    this Python and machine. A checkout of upstream's sources is compiled as ever.
    """

    @functools.wraps(original)
    def load_or_compile() -> None:
        if Path(utils.__file__).with_name("Makefile").exists():
            return original()
        try:
            from megatron.core.datasets import helpers_cpp  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"megatron-core's compiled data helper does not load here ({error}): install a "
                "megatron-core wheel made for this Python and machine."
            ) from error

    return load_or_compile
