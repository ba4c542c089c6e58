"""What is said of a recipe before it runs."""

import json

import pytest

from dsv3_plugin.data.new_recipe import write_recipe
from dsv3_plugin.recipe.epochs_counted import FILE
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.regrets import regrets
from dsv3_plugin.recipe.said_by import inherited
from dsv3_plugin.recipe.shipped import what_ships

SHARES = (
    "curves={learning_rate: [{linear: 1e-3, from: 0, for: 10%}, {cosine: 1e-4, for: 90%}], "
    "batch_size: 16}"
)


@pytest.mark.parametrize("name", [name for name in what_ships()["recipes"] if "sft" not in name])
def test_nothing_is_to_be_regretted_of_what_ships(name: str):
    assert regrets(load_recipe(name)) == []


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["training.steps=100"],
            "the run ends in the middle of its curves (pieces begun: learning_rate 2 of 5, "
            "router_bias_speed 1 of 2, mtp_weight 1 of 2): ",
        ),
        (
            ["curves.learning_rate=0"],
            "curves.learning_rate is 0 from beginning to end, so that noth",
        ),
        (
            ["curves.learning_rate=[{linear: 1e-3, from: 0, for: 100}, {constant: 1e-3}]"],
            "piece 1 of learning_rate is 100 tokens long, and a step there 2,048: a number alone",
        ),
        (["training.eval_interval=300"], "training.eval_interval 300 is more than the 240 steps"),
        (
            ["checkpoint.interval=5000"],
            "checkpoint.interval 5,000 is more than the 240 steps that there are: nothing is saved "
            "before the last",
        ),
        (
            ["training.log_interval=241"],
            "training.log_interval 241 is more than the 240 steps that there are: no step has a "
            "line of its own in the log",
        ),
        (
            ["data.tokenizer=bpe:2048"],
            "data.tokenizer has 2,048 ids and the model 4,096: the rest are never used, and cost "
            "as much; model.vocab_size=2048 leaves them out",
        ),
        (
            ["data.tokenizer=bpe:8000"],
            "data.tokenizer may have 8,000 ids and the model 4,096: it is refused when it has more",
        ),
        (
            ["curves.learning_rate=[{linear: 1e-3, from: 0, for: 5000 steps}]"],
            "the last piece of learning_rate goes on beyond the run's end, and never comes to its",
        ),
        (
            ["curves.learning_rate=[{linear: 1e-3, from: 0, for: 60%}, {cosine: 1e-4, for: 60%}]"],
            "the shares of learning_rate are more than 100% of the run",
        ),
    ],
)
def test_it_is_said(overrides: list[str], sentence: str):
    [said] = regrets(load_recipe("pretrain/tiny", overrides))
    assert said.startswith(sentence)


@pytest.mark.parametrize(
    ("weight", "sentence"),
    [
        (0, "the weight of rewards.match is 0, so that no answer is worth more than another"),
        (-1, "rewards.match.weight -1 is negative, so that answers are the better the less match"),
    ],
)
def test_rewards_that_teach_nothing_or_the_contrary(weight: int, sentence: str):
    [said] = regrets(load_recipe("rl/tiny", [f"rewards.match.weight={weight}"]))
    assert said.startswith(sentence)


def test_an_interval_says_which_recipe_it_is_from(tmp_path):
    """Of a child its base's are said to be so, and its own and the command line's are not."""
    (tmp_path / "mine.yaml").write_text(
        "base: pretrain/tiny\ntraining: {steps: 20, log_interval: 30}\ncurves: {learning_rate: 1}\n"
    )
    words = ["checkpoint.interval=50"]
    recipe = load_recipe(tmp_path / "mine.yaml", words)
    said = regrets(recipe, inherited(tmp_path / "mine.yaml", words))
    more = "is more than the 20 steps that there are"
    assert [one.partition(":")[0] for one in said if more in one] == [
        f"training.eval_interval 40 (pretrain/tiny says so, its base) {more}",
        f"checkpoint.interval 50 {more}",
        f"training.log_interval 30 {more}",
    ]


@pytest.mark.parametrize("steps", [4, 10])
def test_shares_of_few_steps_are_said_to_have_none(steps):
    pieces = "{linear: 5e-3, from: 0, for: 10%}, {constant: 5e-3, until: 97%}, {cosine: 5e-4, "
    few = ["curves={learning_rate: [" + pieces + "until: 100%}], batch_size: 16}"]
    few += [f"training={{steps: {steps}, eval_interval: 2, log_interval: 2}}"]
    said = regrets(load_recipe("pretrain/tiny", [*few, "checkpoint.interval=2"]))
    pieces = "pieces 1, 3 of learning_rate are shares" if steps == 4 else "piece 3 of learning_rate"
    [said] = [one for one in said if "learning_rate" in one]
    assert said.startswith(pieces)
    assert said.endswith(
        "less than a step, and hardly followed: give the run more steps, or larger shares"
    )


def test_no_line_in_the_log_is_said_of_the_default_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, minded = write_recipe("mine", tokens="4K")
    assert "log_interval" not in path.read_text()
    assert any(
        one.startswith("training.log_interval 10 is more than the 2 steps") for one in minded
    )


def test_an_interval_that_nobody_wrote_is_no_regret():
    recipe = load_recipe("pretrain/tiny", ["checkpoint.interval=null"])
    assert recipe.checkpoint.interval > recipe.total_steps
    assert regrets(recipe) == []


def test_a_reference_that_is_never_renewed():
    [said] = regrets(load_recipe("rl/tiny", ["grpo={kl_weight: 0.1, reference_interval: 9999}"]))
    assert said.startswith("grpo.reference_interval 9,999 is more than the ")
    assert said.endswith(" steps that there are: the reference stays the parent")


@pytest.mark.parametrize(
    ("ids", "sentences"),
    [
        (None, []),
        (4096, []),
        (4000, []),  # upstream's padding
        (
            300,
            [
                "data.tokenizer hf has 300 ids and the model 4,096: the rest are never used, and "
                "cost as much; model.vocab_size=384 leaves them out"
            ],
        ),
        (
            5000,
            [
                "data.tokenizer hf has 5,000 ids and the model 4,096: it is refused when the data "
                "are built; take model.vocab_size=5120"
            ],
        ),
    ],
)
def test_ids_of_a_tokenizer_in_a_folder(ids: int | None, sentences: list[str]):
    recipe = load_recipe("pretrain/tiny", ["data.tokenizer=hf"])
    assert regrets(recipe, tokenizer_ids=ids) == sentences


def test_deepseeks_own_vocabulary_has_ids_to_spare():
    recipe = load_recipe("pretrain/deepseek-v3")
    assert recipe.model.vocab_size == 129_280
    assert not [one for one in regrets(recipe, tokenizer_ids=128_815) if "tokenizer" in one]


@pytest.mark.parametrize("steps", [3, 100, 240])
def test_curves_by_shares_suit_every_length(steps: int):
    tiny = load_recipe("pretrain/tiny", [f"training.steps={steps}", "training.eval_interval=1"])
    alike = load_recipe(
        "pretrain/tiny", [f"training.steps={steps}", "training.eval_interval=1", SHARES]
    )
    assert any("curves" in said for said in regrets(tiny)) == (steps < 240)
    of_it = [said for said in regrets(alike) if "learning_rate" in said]
    # A tenth of three steps is none.
    assert [said.partition(" is a share")[0] for said in of_it] == (
        ["piece 1 of learning_rate"] if steps == 3 else []
    )


def test_conversations_that_are_fewer_than_a_step_takes(tmp_path):
    counted = {"made_from": "", "sequences": [1], "conversations": 2, "tokens": 9, "learned": 5}
    (tmp_path / FILE).write_text(json.dumps(counted))
    said = regrets(load_recipe("sft/tiny", [f"data.path={tmp_path}"]))
    assert said[0] == (
        "the conversations of piece 1 of learning_rate are 512 tokens, and a step there takes "
        "2,048: give more of them, or lower curves.batch_size"
    )
    assert not any("a number alone" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("part", "curve"), [("router", "router_bias_speed"), ("mtp", "mtp_weight")]
)
def test_the_curve_of_what_is_frozen_is_not_looked_at(part: str, curve: str):
    pieces = f"curves.{curve}=[{{constant: 1e-3, until: 9M}}, {{constant: 0}}]"
    assert regrets(load_recipe("rl/tiny", [pieces, f"{part}=freeze"])) == []
    [said] = regrets(load_recipe("rl/tiny", [pieces, f"{part}=train"]))
    assert f"{curve} 1 of 2" in said


GSPO = "grpo.importance=sequence"
"""Its clips as trl's page on papers has them: epsilon 3e-4, epsilon_high 4e-4."""


@pytest.mark.parametrize(
    ("overrides", "sentences"),
    [
        (
            [GSPO, "grpo.mini_batches=4"],
            [
                "grpo.clip_low 0.2 and grpo.clip_high 0.28 are made for ratios of single tokens, "
                "and those of answers (grpo.importance: sequence), some 1,000 times nearer to 1, "
                "are clipped by them next to never: GSPO's are grpo.clip_low=3e-4 "
                "grpo.clip_high=4e-4"
            ],
        ),
        ([GSPO], []),  # of one step each: nothing is clipped
        ([GSPO, "grpo.epochs=2", "grpo.clip_low=3e-4", "grpo.clip_high=4e-4"], []),
        (["grpo.epochs=2"], []),
        (
            ["grpo.epochs=2", "grpo.clip_low=3e-4", "grpo.clip_high=4e-4"],
            [
                "grpo.clip_low 0.0003 and grpo.clip_high 0.0004 are made for ratios of answers "
                "(GSPO), and most of single tokens are clipped by them: say "
                "grpo.importance=sequence, or take grpo.clip_low=0.2 grpo.clip_high=0.28"
            ],
        ),
    ],
)
def test_clips_suit_the_ratios_that_they_bound(overrides: list[str], sentences: list[str]):
    assert regrets(load_recipe("rl/tiny", overrides)) == sentences
