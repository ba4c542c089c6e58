"""The recipe of reinforcement learning by GRPO."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat

from dsv3_plugin.recipe.amounts import no_boolean
from dsv3_plugin.recipe.section import Section, Size
from dsv3_plugin.recipe.tuned import Trained, Tuned

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
AtLeastNothing = Annotated[float, Field(ge=0.0)]


class Curriculum(Section):
    """Which prompts are asked, by how often each was answered rightly the last time. The bounds are
    those by which PRIME's models were trained (arXiv 2502.01456), of answers sampled already."""

    low: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """The least share of right answers: of less, the model cannot do it yet."""
    high: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8
    """The largest: of more, it can do it already."""
    again: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """How likely a prompt out of these bounds is asked when its turn comes, since the model may do
    better now, or worse."""


class Rollouts(Section):
    """Answers to prompts, from the model that is trained."""

    kind: Literal["embedded", "openai"] = "embedded"
    """Who answers: an engine in the training ranks, which computes with the weights where they lie;
    or a server that speaks OpenAI's language (`dsv3 serve`, SGLang), which is given them."""
    url: str | None = None
    """Of the server."""
    model: str | None = None
    """Its name there; null: the only one."""
    key_variable: str | None = None
    """The environment variable that holds the key that the server wants to know."""
    update: Literal["weights", "sglang", "buckets"] = "weights"
    """How the server is told to take weights from a folder: at `/v1/weights`, as `dsv3 serve
    --weights-root` is, or at `/update_weights_from_disk`, as SGLang is. buckets: `dsv3 serve
    --weights-root` is sent them in pieces, and need not see the folder."""
    bucket_gb: PositiveFloat = 1.0
    """GB of such a piece, at most; what servers load together is not parted, and goes alone where
    it is larger."""
    folder: str | None = None
    """Where they are written for it, as a Hugging Face folder that it sees by the same path, one
    run's alone; null: `served` in the run's folder."""
    at_once: Size = 64
    """Prompts that the server is asked at once."""
    seconds: PositiveFloat = 3600.0
    """How long the server may take for the answers to a prompt."""
    outage: PositiveFloat = 600.0
    """Seconds that a server is waited for that is down or fails; what it does not answer then is
    not learned from, and where nothing is answered the run stops."""
    prompts: Size = 64
    """Prompts of a round of answers, over all ranks."""
    n: Annotated[Size, Field(ge=2, le=1024)] = 8
    """Answers to each prompt, its group: 8 to 16 in published recipes for DeepSeek-V3."""
    max_prompt_tokens: Size = 1024
    """Tokens of a prompt, with its template; a longer one is left out, and counted."""
    max_tokens: Size = 1024
    """Tokens of an answer; a longer one is cut there."""
    temperature: Annotated[float, Field(ge=0.01, le=100.0)] = 1.0
    """By which logits are divided where answers are drawn, on held-out prompts too. The trainer
    divides its own by it as well: what is trained is the distribution that is drawn from."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """The likeliest tokens that answers are drawn from, by the sum of their probabilities. Only 1:
    less would draw from another distribution than is trained."""
    drafts: Annotated[int, Field(ge=0, le=8)] = 0
    """Tokens guessed ahead by multi-token prediction; they change no answer."""
    cache_gb: PositiveFloat | None = None
    """GB of cached latents on each rank, given back before the model is trained; null: what its
    longest answers would take at once."""
    tokens_in_step: Size = 2048
    """Tokens that are computed at once."""
    async_: Annotated[Literal[0, 1], BeforeValidator(no_boolean), Field(alias="async")] = 0
    """By how many rounds the weights that answer are older than those that are trained. 1: the next
    round is asked for before a round is trained on, so that a server answers meanwhile; tokens are
    weighed by `grpo.correction` then. 0: a round is asked for when the last one is used up."""
    partial: Size | None = None
    """Tokens of an answer in a round, at most. One that has no end by then is kept, each token with
    the version of the weights that it is from, and gone on with in the next round, by the weights
    of that, by a server too; its prompt's others wait for it, and tokens are weighed by
    `grpo.correction`. null: a round waits for its longest answer."""
    curriculum: Curriculum | None = None
    """Passes over prompts that the model cannot do yet, or can do already; null: all prompts come
    in their turn."""
    dynamic_sampling: Annotated[int, Field(ge=1)] = 1
    """Rounds of answers at most, until `prompts` groups have different rewards, or may have once
    their answers are gone on with (`partial`); groups whose rewards are equal say nothing, and are
    left out (DAPO). 1: all groups of one round."""
    held_out_n: Annotated[Size, Field(le=1024)] = 1
    """Answers to each prompt of data.held_out_sets, every training.eval_interval steps."""


class Grpo(Section):
    """What is minimised; defaults are what published recipes for DeepSeek-V3 and other large
    mixtures of experts use."""

    clip_low: Share = 0.2
    """How far below 1 a ratio counts (PPO)."""
    clip_high: AtLeastNothing = 0.28
    """How far above: more than below, so that unlikely tokens can become likely (DAPO)."""
    clip_dual: Annotated[float, Field(gt=1.0)] | None = 10.0
    """The most that a ratio counts of an answer that is worse than its group, without which one
    token can make a step; null: no bound."""
    aggregation: Literal["token_mean", "sequence_mean", "dr_grpo"] = "token_mean"
    """token_mean: over all tokens (DAPO), so that those of long answers count alike; sequence_mean:
    over answers (GRPO); dr_grpo: over answers and rollouts.max_tokens."""
    importance: Literal["token", "sequence"] = "token"
    """Ratios are each token's own, or the geometric mean over an answer (GSPO), whose clips are
    some 1000 times narrower (3e-4 and 4e-4 in the paper)."""
    advantage: Literal["group", "none"] = "group"
    """What differences from a group's mean are divided by: its deviation, or nothing (Dr.
    GRPO)."""
    kl_weight: AtLeastNothing = 0.0
    """β of the divergence from the reference; 0, as rewards by rule cannot be led astray by a
    model that moves far, and none is kept then."""
    kl: Literal["k1", "k3", "unbiased"] = "k3"
    """How it is estimated at a token; unbiased: k3 by the ratio, as in DeepSeek-V3.2."""
    reference_interval: Size | None = None
    """Steps after which the reference becomes the model as it is; null: it stays the parent."""
    entropy_weight: AtLeastNothing = 0.0
    """Of the bonus on the entropy of each token's distribution."""
    mini_batches: Size = 1
    """Optimizer steps into which the answers of a round are divided, by their prompts. With 1 the
    answers are the model's own, and no ratio is clipped."""
    epochs: Size = 1
    """How often a round of answers is trained on."""
    old: Literal["trainer", "engine"] = "trainer"
    """Whose log-probabilities ratios are taken to: those of the model before the round's first
    step, computed by the trainer, or the engine's, which spares that."""
    routing_replay: bool = False
    """Whether training has each token go to the experts that it went to in the rollout (R3, arXiv
    2510.11370), which weigh it by their scores as they are. Where engine and trainer compute alike
    there is nothing to mend; in BF16 a token may lie between two experts. A server has to tell
    them: `dsv3 serve` does, and SGLang with `--enable-return-routed-experts`."""
    on_mismatch: Literal["warn", "correct", "stop"] = "warn"
    """What to do where the engine's log-probabilities differ from the trainer's by more than
    `mismatch_limit`: say so, weigh tokens by `correction`, or stop before the step."""
    mismatch_limit: PositiveFloat | None = None
    """In nats; null: 1e-5 in FP32, and in BF16 0.125, the spacing of logits between 16 and 32."""
    correction: Literal["token", "sequence", "mask"] = "token"
    """How (on_mismatch: correct): by each token's ratio of the trainer to the engine, by their
    product over an answer, or by each token's own and not at all where that is out of bounds
    (IcePop)."""
    correction_high: PositiveFloat = 2.0
    """The most that such a ratio counts; with mask, where bounds end."""
    correction_low: AtLeastNothing = 0.5
    """With mask, where bounds begin."""


class Reward(Section):
    """A reward, and its part in the sum of them."""

    weight: float = 1.0
    """What its value is multiplied by."""
    cap: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """Bounds of its value before that, `[low, high]`."""
    seconds: PositiveFloat | None = None
    """Time for an answer; what takes longer is not judged. Of `code` for all tests of a program,
    which does not pass if it takes longer; of a reward model for all answers of a round. null: 15,
    30 and 600."""
    address: str | None = None
    """Of a reward model that is served over HTTP, under any name."""
    key_variable: str | None = None
    """The environment variable that holds the key it wants to know."""
    margin: Size | None = None
    """Of `length`: the last so many of rollouts.max_tokens, over which it falls to -1."""
    script: str | None = None
    """Of `language`: a script, by Unicode's name (`LATIN`, `CJK`), in whatever case."""


class Rl(Tuned):
    """Reinforcement learning: answers of the model to prompts, rewards by rule, and GRPO."""

    stage: Literal["rl"] = "rl"
    """Which part of a model's life it is."""
    router: Trained = "freeze"
    """Routers: trained as in pretraining, or frozen: their weights and biases stay, and there is no
    balance loss. Frozen, since a balance loss makes the model choose other experts than those that
    an answer was sampled by."""
    rollouts: Rollouts = Rollouts()
    """Answers."""
    grpo: Grpo = Grpo()
    """The loss."""
    rewards: dict[str, Reward] = Field(default={"accuracy": Reward()})
    """By name: `accuracy` (mathematics in the last box), `match` (the text of the answer), `code`
    (tests in a sandbox), `format` (thoughts and answer in tags), `length`, `language`, the
    dotted path of a Python function, or any name with an `address`. An answer is right by the
    first of them, at 1. Where nothing is said of rewards, it is `accuracy` alone; where the last is
    taken back, by null, another is to be named."""

    @property
    def updates(self) -> int:
        """Optimizer steps that a round of answers is trained on."""
        return self.grpo.mini_batches * self.grpo.epochs

    @property
    def trains_on_older(self) -> bool:
        """Whether answers may be of older weights than those that are trained."""
        return self.rollouts.async_ > 0 or self.rollouts.partial is not None

    @property
    def mismatch_limit(self) -> float:
        """In nats."""
        if self.grpo.mismatch_limit is not None:
            return self.grpo.mismatch_limit
        return 1e-5 if self.precision.dtype == "fp32" else 0.125
