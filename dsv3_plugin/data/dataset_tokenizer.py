"""The tokenizer of a dataset: the one that encoded it, and no other that lies in its folder."""

from dsv3_plugin.data.dataset_folder import Dataset
from dsv3_plugin.data.tokenizer import TextTokenizer, open_tokenizer
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.links import inside


def tokenizer_of(dataset: Dataset) -> TextTokenizer:
    """The tokenizer in a dataset's folder.

    Raises:
        UserError: it is not the one that encoded the dataset, or lies elsewhere behind a link.
    """
    inside(dataset.folder, dataset.tokenizer_folder.name)
    tokenizer = open_tokenizer(dataset.tokenizer_folder)
    if tokenizer.digest != dataset.manifest.tokenizer.digest:
        raise UserError(
            f"{dataset.tokenizer_folder} is not the tokenizer that encoded {dataset.folder}: put "
            "that one back, or build the dataset again."
        )
    return tokenizer
