"""What the clients of `soak.py` have of their answers."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dsv3_plugin.inference.routed_experts import decoded


@dataclass
class GotChoice:
    """An answer as a client has it.

    Attributes:
        tokens, versions: of the answer, and of the weights that each token is of.
        prompt: token ids, where they were told.
        text, thought: all pieces together.
        reason: why it ended.
        names, values, tops: log-probabilities that were told, of the prompt as well where it is.
        experts: [tokens, MoE layers, top-k], where tokens went.
    """

    tokens: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    prompt: list[int] | None = None
    text: str = ""
    thought: str = ""
    reason: str | None = None
    names: list[str] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    tops: list[dict[str, float] | None] = field(default_factory=list)
    experts: np.ndarray | None = None

    def take(self, said: dict[str, Any]) -> None:
        """A choice of a reply, or of a piece of one."""
        self.tokens += said.get("token_ids", [])
        self.versions += said.get("weights_versions", [])
        self.prompt = said.get("prompt_token_ids", self.prompt)
        self.reason = said["finish_reason"] or self.reason
        if said.get("routed_experts") is not None:
            self.experts = decoded(said["routed_experts"])
        spoken = said.get("message", said.get("delta", {}))
        self.text += said.get("text") or spoken.get("content") or ""
        self.thought += spoken.get("reasoning_content") or ""
        told = said["logprobs"] or {}
        for one in told.get("content", ()):
            self.names.append(one["token"])
            self.values.append(one["logprob"])
            self.tops.append({top["token"]: top["logprob"] for top in one["top_logprobs"]})
        self.names += told.get("tokens", ())
        self.values += told.get("token_logprobs", ())
        self.tops += told.get("top_logprobs", ())


@dataclass
class Got:
    """What a client got.

    Attributes:
        status: of the reply; of a stream that ends with an error, that of the error.
        choices: by their index.
        usage: tokens that were read and written, as told.
        first, whole: seconds to the first piece and to the end.
        error: what went wrong.
    """

    status: int = 0
    choices: dict[int, GotChoice] = field(default_factory=lambda: defaultdict(GotChoice))
    usage: dict[str, int] | None = None
    first: float = math.nan
    whole: float = math.nan
    error: str | None = None

    @property
    def answered(self) -> bool:
        """Whether it has its whole answer."""
        return not math.isnan(self.whole) and self.error is None and self.status == 200
