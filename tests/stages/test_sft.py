"""A pretrained model is fine-tuned on conversations, from whatever keeps its weights."""

import json
import shutil
import signal
from pathlib import Path

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dsv3_plugin.checkpoint import export_hf, import_hf
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.errors import UserError
from tests.small_runs import Command, numbers, records, steps_taken
from tests.stages.tuning import TEMPLATE, evaluated, loss_of, seed_of, written


@pytest.fixture(scope="module")
def tuning(recipe, trained):
    """The recipe that tunes the small run, beside it."""
    return written(recipe.parent, trained.folder)


@pytest.fixture(scope="module")
def tuned(tuning, tmp_path_factory):
    """That recipe, trained; what was printed, and where it is."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    ended = Command.forked("train", tuning, f"directory={folder}").end()
    assert ended.code == 0, ended.output
    return folder, ended.output


def losses(folder: Path, key: str) -> dict[int, float]:
    return {line["iteration"]: line[key] for line in records(folder) if key in line}


def test_epochs_are_counted_before_the_run_and_exact(tuned):
    folder, output = tuned
    counted = json.loads((folder / "data" / "epochs.json").read_text())
    assert len(counted["sequences"]) == 2
    steps = max(losses(folder, "loss"))
    assert steps == -(-sum(counted["sequences"]) // 4)
    assert output.count(f"{counted['conversations']:,} conversations fill") == 1
    for once in ("Beginning with", "Not read of the corpus"):
        assert output.count(once) == 1, output


def test_bad_rows_are_counted_and_named(tuned):
    _, output = tuned
    assert "no turn of an assistant" in output
    assert "longer than a sequence of 64 tokens" in output


def test_it_learns(tuned):
    folder, _ = tuned
    held_out = losses(folder, "validation_loss")
    assert held_out[max(held_out)] < held_out[0] - 0.5


def test_evaluations_say_how_often_drafts_are_the_models_own(tuned):
    accepted = losses(tuned[0], "validation_draft_acceptance")
    assert accepted.keys() == losses(tuned[0], "validation_loss").keys()
    assert all(0 <= share <= 100 for share in accepted.values())
    assert len({*accepted.values()}) > 1


@pytest.mark.parametrize(
    ("begins", "overrides"),
    [
        ("run", ["parallel.pipeline=2", "parallel.expert=1", "pipeline.schedule=zb1p",
                 "training.micro_batch_size=1", "curves.batch_size=8", "training.eval_steps=1"]),
        ("hugging face", []),
    ],
)  # fmt: skip
def test_the_first_held_out_loss_is_the_parents(
    tuning, tuned, trained, exported, tmp_path, begins, overrides
):
    """Weights, and nothing but weights, from every form and under every layout."""
    source = trained.folder if begins == "run" else exported
    ended = Command.forked(
        "train", tuning, f"from={source}", f"directory={tmp_path}/run",
        "training.epochs=null", "training.steps=1", "curves.learning_rate=1e-4", *overrides,
    ).end()  # fmt: skip
    assert ended.code == 0, ended.output
    seed = seed_of(tuning)
    with single_process():
        expected = loss_of(trained.folder, tuned[0] / "data", seed)
    assert losses(tuned[0], "validation_loss")[0] == pytest.approx(expected, abs=1e-6)
    assert losses(tmp_path / "run", "validation_loss")[0] == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_transformers_on_the_same_tokens_and_mask(tuning, tuned, exported):
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    total = count = 0
    for ids, learned in evaluated(tuned[0] / "data", seed_of(tuning)):
        labels = numpy.where(learned == 1, ids, -100)
        with torch.no_grad():
            mean = model(torch.from_numpy(ids)[None], labels=torch.from_numpy(labels)[None]).loss
        total += float(mean) * int(learned[1:].sum())
        count += int(learned[1:].sum())
    assert losses(tuned[0], "validation_loss")[0] == pytest.approx(total / count, abs=1e-5)


def test_a_killed_run_goes_on_with_the_conversations_that_it_had_not_read(tuning, tuned, tmp_path):
    run = tmp_path / "run"
    words = ("train", tuning, f"directory={run}", f"data.path={tuned[0]}/data",
             "checkpoint.interval=2")  # fmt: skip
    started = Command.forked(*words).when(lambda: steps_taken(run) >= 3)
    assert started.send(signal.SIGKILL).end().code == -signal.SIGKILL
    ended = Command.forked(*words).end()
    assert ended.code == 0, ended.output
    assert "Going on from step " in ended.output
    assert numbers(run) == numbers(tuned[0])

    ended = Command.forked(*words, "parallel.context=2").end()
    assert ended.code == 2
    assert "was written with parallel.context: 1, to multiples of which" in ended.output


def test_frozen_parts_stay(tuning, tuned, trained, exported, tmp_path):
    ended = Command.forked(
        "train", tuning, f"directory={tmp_path}/run", "mtp=freeze", "router=freeze",
        "data.template=null", "training.epochs=null", "training.steps=2",
        "curves.learning_rate=1e-3",
    ).end()  # fmt: skip
    assert ended.code == 0, ended.output
    export_hf(tmp_path / "run" / "checkpoints", tmp_path / "after")
    from safetensors.torch import load_file

    before, after = (
        load_file(next(folder.glob("*.safetensors"))) for folder in (exported, tmp_path / "after")
    )
    ahead = "model.layers.2."
    for name, tensor in before.items():
        shared = name.endswith(("embed_tokens.weight", "shared_head.head.weight"))
        frozen = ".mlp.gate." in name or (name.startswith(ahead) and not shared)
        assert torch.equal(after[name], tensor) == frozen, name


def test_the_export_answers_in_transformers_by_its_own_template(tuned, dsv3, tmp_path):
    checkpoints = shutil.copytree(tuned[0] / "checkpoints", tmp_path / "checkpoints")
    assert dsv3("export", checkpoints, tmp_path / "hf").code == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.chat_template == TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ends = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    assert model.generation_config.eos_token_id == ends
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 3?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]

    def answers():
        theirs = model.generate(asked, max_new_tokens=8, do_sample=False)[0, asked.shape[1] :]
        ours = dsv3(
            "generate", "--checkpoint", checkpoints, "--prompt", "2 + 3?", "--chat",
            "--max-new-tokens", "8",
        )  # fmt: skip
        return ours.out.strip(), theirs.tolist()

    ours, theirs = answers()
    assert ours == tokenizer.decode(theirs).strip()
    # By whichever token an answer ends, both take it from what lies with the tokenizer.
    ends = theirs[-1]
    settings = checkpoints / "tokenizer" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": [0, ends]}))
    model.generation_config.eos_token_id = [0, ends]
    ours, shorter = answers()
    assert shorter == theirs[: theirs.index(ends) + 1]
    assert ours == tokenizer.decode(shorter[:-1]).strip()


def test_what_is_trained_in_transformers_comes_back_without_layers_that_predict_ahead(
    exported, tmp_path
):
    """As docs/stages.md says of what is not here."""
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    layer = model.model.layers[1]
    for linear in (layer.self_attn.q_a_proj, layer.self_attn.kv_b_proj, layer.self_attn.o_proj,
                   layer.mlp.shared_experts.gate_proj):  # fmt: skip
        assert isinstance(linear, torch.nn.Linear)
    assert layer.mlp.experts.gate_up_proj.ndim == 3
    assert "mlp.gate.e_score_correction_bias" in dict(layer.named_buffers())
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="--without-mtp"):
        import_hf(tmp_path / "saved", tmp_path / "refused")
    import_hf(tmp_path / "saved", tmp_path / "back", without_mtp=True)
