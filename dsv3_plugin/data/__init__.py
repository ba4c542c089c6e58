"""From text to batches: corpora, tokenizers, fill-in-the-middle, indexed datasets, batches."""
