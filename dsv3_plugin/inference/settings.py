"""What an engine may do at once, and what it counts."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EngineSettings:
    """How much an engine does at once.

    Attributes:
        cache_bytes: memory of cached latents.
        tokens_in_step: a longer prompt is computed in several steps, between which others get
            tokens (Sarathi-Serve, arXiv 2403.02310, section 5, measures 512 and 2048).
        most_running: sequences at most (as vLLM's `max_num_seqs`).
        record_experts: report where tokens went.
        drafts: tokens guessed ahead by multi-token prediction; they cost their share of a step and
            change no answer.
    """

    cache_bytes: int
    tokens_in_step: int = 2048
    most_running: int = 256
    record_experts: bool = False
    drafts: int = 0


@dataclass
class Counters:
    """What an engine did since it was made.

    Attributes:
        steps: that computed something.
        computed: tokens that went through the model, those computed again included.
        drawn: tokens of answers.
        put_back: sequences that lost their latents for want of memory.
        guessed: how often a first, second, … token was guessed ahead and judged.
        accepted: how often it was the one.
    """

    steps: int = 0
    computed: int = 0
    drawn: int = 0
    put_back: int = 0
    guessed: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
