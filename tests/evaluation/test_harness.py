"""lm-evaluation-harness on the engine, against its own model of transformers and over HTTP."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from dsv3_plugin.checkpoint import import_hf
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.data.tokenizer import open_tokenizer
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.errors import UserError
from dsv3_plugin.evaluation.checkpoint import Evaluated
from dsv3_plugin.evaluation.harness import Wanted, adapter_of, evaluate
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.server.limits import Limits
from dsv3_plugin.inference.server.words import words_of
from tests.inference.server.serving import listening, server_of
from tests.inference.test_from_checkpoint import MODEL, write_hf_folder

pytestmark = [
    pytest.mark.harness,
    pytest.mark.skipif(
        find_spec("lm_eval") is None,
        reason="lm-evaluation-harness is not installed: `make test-harness` makes a place for it",
    ),
]

TASKS = {
    "sums": (
        [{"question": f"{a}+{b}", "answer": str(a + b)} for a in range(3) for b in range(3)],
        """output_type: generate_until
doc_to_text: "{{question}}="
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    ),
    "pick": (
        [{"question": f"def f{a}(x): return", "choices": [" x", " y", " None"], "label": a % 3}
         for a in range(7)],
        """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    ),
    "perplexity": (
        [{"text": f"def f{a}(x):\n    return x + {a}\n" * 6} for a in range(3)],
        """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
    ),
}  # fmt: skip
"""Data and what a task says; the texts of perplexity have more tokens than the model positions."""

THE_HARNESS_OWN = {
    "arithmetic_1dc": (
        "arithmetic/arithmetic_1dc", "validation", "",
        [{"context": f"Q: What is ({a} + {b}) * {a}? A:", "completion": f" {(a + b) * a}"}
         for a in range(3) for b in range(2)],
    ),
    "arc_easy": (
        "arc/arc_easy", "test", "",
        [{"question": f"What is {a} + 1?", "answerKey": "ABC"[a],
          "choices": {"text": ["1", "two", "3 then"], "label": ["A", "B", "C"]}}
         for a in range(3)],
    ),
    "wikitext": (
        "wikitext/wikitext", "test", "",
        [{"page": f" = Title {a} = \n the 1 @,@ {a}00 's ( word ) , and so on . \n" * 5}
         for a in range(3)],
    ),
    "triviaqa": (
        "triviaqa/default", "validation",
        'generation_kwargs: {until: ["\\n", ".", ","], max_gen_toks: 8, do_sample: false}\n',
        [{"question": f"Who wrote f{a}(x)", "answer": {"aliases": ["x", f"f{a}"]}}
         for a in range(3)],
    ),
}  # fmt: skip
"""Tasks of the harness itself, with its prompts, filters and metrics: their files, the split that
is asked, what differs so that answers fit the model, and rows as their data on the hub have."""


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
            patch.setenv(name, "1")
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name, (rows, said) in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{source}test_split: test\n{said}")
    theirs = Path(find_spec("lm_eval").origin).parent / "tasks"
    for name, (file, split, said, rows) in THE_HARNESS_OWN.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        none = {"training", "validation", "test"} - {split}
        said += "".join(f"{other}_split: null\n" for other in none)
        (folder / f"{name}.yaml").write_text(
            f"include: {theirs / file}.yaml\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs: {{data_files: {{{split}: {data}}}}}\n{said}"
        )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder."""
    folder = tmp_path_factory.mktemp("hf")
    write_hf_folder(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder, tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "whole"
    import_hf(folder, checkpoint)
    return checkpoint


@pytest.fixture(scope="module")
def world():
    with single_process(seed=1):
        yield


def asked(model, tasks, **arguments):
    """Metrics, and of each question the answers, by the harness."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model, tasks=[*TASKS, *THE_HARNESS_OWN], bootstrap_iters=0, **arguments,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )  # fmt: skip
    metrics = {
        (task, name): value
        for task, of_task in found["results"].items()
        for name, value in of_task.items()
        if isinstance(value, float)
    }
    answers = [
        answer
        for task in (*TASKS, *THE_HARNESS_OWN)
        for sample in found["samples"][task]
        for answer in sample["filtered_resps"]
    ]
    return metrics, answers


@pytest.fixture(scope="module")
def ours(world, checkpoint, folder, tasks):
    model, config = load_for_inference(checkpoint)
    return asked(adapter_of(Evaluated(model, config), open_tokenizer(folder)), tasks)


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, str):
            assert one == other
        elif isinstance(one, float):
            assert one == pytest.approx(other, abs=1e-3)
        else:  # log-probability, and whether it is the likeliest
            assert one[0] == pytest.approx(other[0], abs=1e-4)
            assert one[1] == other[1]


def test_its_own_model_of_transformers_says_the_same(ours, folder, tasks):
    arguments = {"pretrained": str(folder), "max_length": MODEL.max_position_embeddings - 1}
    metrics, answers = asked(
        "hf", tasks, model_args=arguments | {"dtype": "float32"}, device="cpu", batch_size=1
    )
    same(ours[1], answers)
    assert ours[0] == pytest.approx(metrics, rel=1e-5, abs=1e-4)


def test_the_server_answers_its_local_completions(world, checkpoint, folder, tasks):
    model, config = load_for_inference(checkpoint)
    tokenizer, longest = open_tokenizer(folder), config.max_position_embeddings - 1
    # Its windows are two tokens shorter than it may ask for, ours one.
    shorter = Evaluated(model, config.model_copy(update={"max_position_embeddings": longest - 1}))
    ours = asked(adapter_of(shorter, tokenizer), tasks)
    engine = Engine(model, EngineSettings(2**22), text_of=tokenizer.decode)
    limits = Limits(2**20, 64)
    with listening(server_of(engine, words_of(tokenizer), limits)) as address:
        arguments = {
            "base_url": f"{address}/v1/completions", "model": "small", "tokenizer": str(folder),
            "tokenizer_backend": "huggingface", "num_concurrent": 4,
            "max_length": longest,
        }  # fmt: skip
        metrics, answers = asked("local-completions", tasks, model_args=arguments, batch_size=2)
    same(ours[1], answers)
    assert ours[0] == pytest.approx(metrics, rel=1e-5, abs=1e-4)


def test_a_checkpoint_by_name(world, checkpoint, tasks, ours):
    told = []
    wanted = Wanted(["sums", "pick"], tasks, limit=2)
    found = evaluate(checkpoint, wanted, lambda *progress: told.append(progress))
    assert found["n-samples"]["pick"]["effective"] == 2
    assert {("writing", 2, 2), ("scoring", 6, 6)} <= set(told)


def test_what_cannot_be_asked_is_said(world, checkpoint, tasks, tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        evaluate(checkpoint, Wanted(["sums"], tmp_path / "none"))
    with pytest.raises(UserError, match="has no task nonsense"):
        evaluate(checkpoint, Wanted(["sums", "nonsense"], tasks))
    (tasks / "long.yaml").write_text(
        (tasks / "sums.yaml").read_text().replace("task: sums", "task: long").replace(": 8", ": 64")
    )
    with pytest.raises(UserError, match="asks for 64 tokens, and the model has 64 positions"):
        evaluate(checkpoint, Wanted(["long"], tasks))


def test_as_a_chat(world, checkpoint, tasks):
    found = evaluate(checkpoint, Wanted(["sums"], tasks, limit=2, chat=True))
    assert "exact_match,none" in found["results"]["sums"]
