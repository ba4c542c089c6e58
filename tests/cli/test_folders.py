"""Which folders each verb takes: a run's, of checkpoints, of an iteration, Hugging Face's."""

import re
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from dsv3_plugin.training import parent

VERBS = {
    "inspect {}": ("run", "checkpoints", "iteration", "hf"),
    "verify {} {hf}": ("run", "checkpoints", "iteration", "hf"),
    "export {} {out}": ("run", "checkpoints", "iteration"),
    "generate --checkpoint {} --prompt def --max-new-tokens 1": ("run", "checkpoints", "iteration"),
    "logits --checkpoint {} --tokens {tokens} --out {out}": ("run", "checkpoints", "iteration"),
    "serve --checkpoint {} --port 0": ("run", "checkpoints", "iteration"),
    "eval loss --checkpoint {} --sequences 1 --json": ("run", "checkpoints", "iteration"),
    "eval loss --checkpoint {run} --sequences 1 --data {} --json": ("run", "checkpoints", "data"),
    "data show {} --tokens 3": ("run", "checkpoints", "iteration", "data"),
    "balance {}": ("run", "checkpoints", "iteration"),
    "status {}": ("run", "checkpoints", "iteration"),
    "logs {} --rank 0": ("run", "checkpoints", "iteration"),
    "plot {}": ("run", "checkpoints", "iteration"),
    "diff {} pretrain/tiny": ("run", "checkpoints", "iteration"),
    "args {}": ("run", "checkpoints", "iteration"),
    "eval needle --checkpoint {} --lengths 64 --depths 0.5 --kind words --needles 1 --samples 1": (
        "run", "checkpoints", "iteration",
    ),
    "distill {problems} --from {} --out {out} --n 1 --max-tokens 1": (
        "run", "checkpoints", "iteration",
    ),
}  # fmt: skip


@pytest.fixture
def places(trained, exported, tmp_path):
    """Folders by kind, and what else the verbs need."""
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"prompt": "1 + 1?", "answer": "2"}\n')
    np.save(tmp_path / "tokens.npy", np.array([[1, 2, 3]]))
    return {
        "run": trained.folder,
        "checkpoints": trained.checkpoints,
        "iteration": trained.checkpoints / "iter_0000012",
        "data": trained.data,
        "hf": exported,
        "tokens": tmp_path / "tokens.npy",
        "out": tmp_path / "out.npy",
        "problems": problems,
    }


def told(places: dict[str, Path], kind: str, said: str) -> object:
    """What a verb made of a folder, whatever the folder is called: its files, or its words."""
    out = places["out"]
    if out.is_dir():  # but for what a conversion says of itself, which names its source
        return {f.name: f.read_bytes() for f in out.rglob("*.safetensors")}
    if out.exists() and out.read_bytes()[1:6] == b"NUMPY":
        return out.read_bytes()
    for place in sorted(map(str, places.values()), key=len, reverse=True):
        said = said.replace(place, "IT")
    said = said.replace(f"{places[kind].name}: step", "IT: step")
    said = re.sub(r"(127\.0\.0\.1):\d+", r"\1:PORT", said)
    said = re.sub(r"\S+ ago", "SOME TIME ago", said)
    return [" ".join(line.split()) for line in said.splitlines()]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_takes(verb, places, dsv3, monkeypatch):
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_: None)
    # Which would close all handlers of this process, pytest's among them.
    monkeypatch.setattr(uvicorn.Config, "configure_logging", lambda *_: None)
    said = {}
    for number, kind in enumerate(VERBS[verb]):
        places["out"] = places["out"].with_name(f"out{number}.npy")
        ended = dsv3(*(word.format(places[kind], **places) for word in verb.split()))
        assert ended.code == 0, (kind, ended.err)
        if kind != "hf":  # which has other names and types, and is another format
            said[kind] = told(places, kind, ended.out)
    first, *others = said.values()
    assert first
    assert all(other == first for other in others), said


@pytest.mark.parametrize("kind", ["run", "checkpoints", "iteration"])
def test_the_run_to_cancel_is_found_from_any_of_its_folders(kind, places, dsv3):
    said = dsv3("cancel", places[kind])
    assert said.code == 2
    run = places["run"]
    assert f"dsv3: the run in {run} was not launched as a job of Slurm: there is noth" in said.err


@pytest.mark.parametrize("kind", ["run", "checkpoints", "iteration", "hf"])
def test_a_stage_begins_with(kind, places):
    assert parent.find(str(places[kind])).model.num_layers == 2


@pytest.mark.parametrize("kind", ["run", "checkpoints", "data"])
def test_a_recipe_takes_data_and_a_tokenizer_of(kind, places, trained, recipe, dsv3, tmp_path):
    """The data are there; in a folder of their own the tokenizer makes the same anew."""
    of = places[kind]
    new = f"directory={tmp_path}/new"
    there = dsv3("data", "prepare", recipe, new, f"data.path={of}")
    assert there.code == 0, there.err
    assert str(trained.data) in there.out + there.err
    made = dsv3("data", "prepare", recipe, new, f"data.tokenizer={of}")
    assert made.code == 0, made.err
    train = Path("train.bin")
    assert (tmp_path / "new" / "data" / train).read_bytes() == (trained.data / train).read_bytes()


@pytest.mark.parametrize("verb", ["status", "logs"])
def test_where_no_run_is_that_is_a_sentence(verb, places, dsv3):
    said = dsv3(verb, places["hf"])
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "holds no run: name a run's folder" in said.err
