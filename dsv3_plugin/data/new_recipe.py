"""A recipe for a person's own corpus, tokenizer and model, written where there is none yet."""

from collections.abc import Iterator
from pathlib import Path

from dsv3_plugin.data.hub import tokenizer_folder_of
from dsv3_plugin.data.tokenizer import open_tokenizer
from dsv3_plugin.data.vocabulary import ids_of
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.named import named
from dsv3_plugin.recipe.amounts import parse_tokens
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.new import written_anew
from dsv3_plugin.recipe.regrets import regrets
from dsv3_plugin.recipe.shipped import what_ships

_SUFFIXES = frozenset({".yaml", ".yml"})
_MULTIPLE = 128
"""Of a vocabulary, as upstream pads it (`--make-vocab-size-divisible-by`)."""


def write_recipe(
    name: str,
    origin: str = "pretrain/tiny",
    *,
    model: str | None = None,
    corpus: str | None = None,
    tokenizer: str | None = None,
    tokens: str | None = None,
) -> tuple[Path, list[str]]:
    """Write a recipe from another one.

    With a tokenizer of one's own the model's vocabulary has room for it, and no more; documents are
    cut for fill-in-the-middle only if it has tokens for that.

    Args:
        name: of the new file, `.yaml` or not.
        origin: the other recipe, a name or a path.
        model: in place of its model, a name or a path.
        corpus: in place of its corpus.
        tokenizer: in place of its tokenizer, a folder or a name on Hugging Face's hub.
        tokens: in place of its budget (`2M`).

    Returns:
        The file, and a sentence for each thing in it that may not be meant.

    Raises:
        UserError: the file is there, or what is asked for does not go together.
    """
    path = named(name)
    if not path.name.strip(" .") or path.name in _SUFFIXES or name.endswith("/"):
        raise UserError(f"'{name}' names no file: write NAME or NAME.yaml.")
    if path.suffix not in _SUFFIXES:
        path = path.with_name(f"{path.name}.yaml")
    overrides = []
    if model is not None:
        overrides.append(f"model={model}")
    if corpus is not None:
        overrides.append(f"data.corpus={corpus}")
    if tokenizer is not None:
        overrides += _for_tokenizer(tokenizer)
    recipe = load_recipe(origin, overrides)
    text = written_anew(recipe, origin, None if tokens is None else _budget(tokens))
    if path.exists():
        raise UserError(f"{path} is there already: choose another name, or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")
    try:
        written = load_recipe(path)
        return path, [*_shipped_too(path), *regrets(written, tokenizer_ids=ids_of(written))]
    except UserError:
        path.unlink()
        raise


def _shipped_too(path: Path) -> Iterator[str]:
    """The sentence for a file that is called as what ships."""
    name = str(path.with_suffix(""))
    for kind, names in what_ships().items():
        if name in names:
            yield (
                f"{name} alone names the one of the {kind} that comes with dsv3, and {path} yours: "
                "write it with its suffix, or take another name"
            )


def _for_tokenizer(choice: str) -> list[str]:
    """What goes with a tokenizer."""
    opened = open_tokenizer(tokenizer_folder_of(choice))
    vocabulary = -(-opened.most_tokens // _MULTIPLE) * _MULTIPLE
    try:
        fim = bool(opened.sentinels)
    except UserError:
        fim = False
    return [
        f"data.tokenizer={choice}",
        f"model.vocab_size={vocabulary}",
        *([] if fim else ["data.fim_rate=0"]),
    ]


def _budget(tokens: str) -> int:
    try:
        return parse_tokens(tokens)
    except ValueError as error:
        raise UserError(f"--tokens: {error}.") from error
