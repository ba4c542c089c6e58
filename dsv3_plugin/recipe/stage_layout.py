"""Which layers a pipeline stage holds, in upstream's notation.

A layout string lists the stages from the embedding to the loss: `E` embedding, `t` transformer
layer, `m` multi-token-prediction layer, `L` output head and loss, `|` between stages, `x*n` and
`(…)*n` repeat. "Et|(tt|)*30mL" lays DeepSeek-V3 over 32 stages.
"""

import re

_LONGEST = 100_000


def expand(text: str) -> str:
    """The layout with its repetitions written out: "Et|(tt|)*2L" → "Et|tt|tt|L".

    Raises ValueError with the sentence.
    """
    flat = text.replace(",", "").replace(" ", "")
    # Both passes in upstream's order (PipelineParallelLayerLayout.parse_str_to_list).
    for pattern in (r"\(([^)]+)\)\*(\d{1,9})", r"(.)\*(\d{1,9})"):
        repeats = [(len(text), int(times)) for text, times in re.findall(pattern, flat)]
        if len(flat) + sum(length * times for length, times in repeats) > _LONGEST:
            raise ValueError(f"pipeline.layout writes out to more than {_LONGEST:,} letters")
        flat = re.sub(pattern, lambda match: match[1] * int(match[2]), flat)
    if not re.fullmatch(r"E[tm|]*L", flat):
        raise ValueError(
            f"pipeline.layout '{text}' is not a layout: it runs from E (embedding) to L (loss) "
            "with t (layer), m (multi-token prediction), | (next stage) and (…)*n between"
        )
    return flat


def stage_count(text: str) -> int:
    """Number of stages of a layout string."""
    return expand(text).count("|") + 1


def even(num_layers: int, stages: int, mtp_layers: int) -> str:
    """A layout as even as can be.

    Where the layers do not divide, stages in the middle take one more; the last stage, which also
    holds the head and the multi-token-prediction layers, never does.
    """
    fewest, more = divmod(num_layers, stages)
    first = (stages - more) // 2
    counts = [fewest + (first <= stage < first + more) for stage in range(stages)]
    held = ["t" * count for count in counts]
    held[0] = "E" + held[0]
    held[-1] += "m" * mtp_layers + "L"
    return "|".join(held)
