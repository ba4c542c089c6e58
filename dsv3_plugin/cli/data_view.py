"""What a built dataset holds, in words."""

from dsv3_plugin.data.dataset_folder import Dataset, Part
from dsv3_plugin.data.tokenizer import open_tokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.numbers import bytes_text


def summarize(dataset: Dataset) -> str:
    """A dataset's origin and size, a line each."""
    manifest = dataset.manifest
    corpus, settings, tokenizer = manifest.corpus, manifest.settings, manifest.tokenizer
    held_out = _size(manifest.held_out) if manifest.held_out else "nothing"
    return "\n".join(
        [
            f"dataset    {dataset.folder}",
            f"corpus     {', '.join(corpus.named)}: {corpus.documents:,} documents, "
            f"{bytes_text(corpus.bytes)}",
            f"tokenizer  {tokenizer.size:,} tokens, token {tokenizer.eos_id} ends a document",
            f"train      {_size(manifest.train)}, {manifest.train.fim_documents:,} of them cut for "
            f"fill-in-the-middle (rate {settings.fim_rate}, seed {settings.seed})",
            f"held out   {held_out}",
        ]
    )


def decoded(dataset: Dataset, document: int, tokens: int) -> str:
    """The first tokens of a training document as text, special tokens spelled out.

    Raises:
        UserError: no such document.
    """
    documents = dataset.manifest.train.documents
    if not 0 <= document < documents:
        raise UserError(
            f"{dataset.folder} has training documents 0 to {documents - 1}, not {document}."
        )
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    # Its arrays are views of a mapping that goes when it does: hold on to it until they are copied.
    indexed = IndexedDataset(str(dataset.train_prefix))
    ids = indexed[document][:tokens].tolist()
    return open_tokenizer(dataset.tokenizer_folder).decode(ids)


def _size(part: Part) -> str:
    return f"{part.tokens:,} tokens in {part.documents:,} documents"
