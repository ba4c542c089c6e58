"""Whatever ends a command becomes one sentence, and an exit code that says whose fault it was."""

import shlex
from importlib import metadata
from types import ModuleType

import pytest
import typer

import dsv3_plugin.cli
from dsv3_plugin.cli import command as cli
from dsv3_plugin.cli import completion
from dsv3_plugin.cli.examples import EXAMPLES
from dsv3_plugin.errors import UserError
from tests.report.test_losses import write_run


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("the sentence."), 2, "dsv3: the sentence.\n"),
        (UserError("without its stop"), 2, "dsv3: without its stop.\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "dsv3: /x: Permission denied.\n"),
        (OSError(28, "No space left on device"), 2, "dsv3: No space left on device.\n"),
        (
            KeyError("lost\nand more"),
            1,
            "dsv3: unexpected KeyError: 'lost\\nand more' (a fault of dsv3; DSV3_DEBUG=1 shows "
            "where it happened).\n",
        ),
    ],
)
def test_an_error_is_a_sentence(monkeypatch, capsys, error, code, sentence):
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.delenv("DSV3_DEBUG", raising=False)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert capsys.readouterr().err == sentence
    monkeypatch.setenv("DSV3_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main()


def test_ctrl_c_is_quiet_while_modules_are_loaded(dsv3, monkeypatch):
    class Interrupted(ModuleType):
        @property
        def main(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(dsv3_plugin.cli, "command", Interrupted("command"))
    said = dsv3("plan", "deepseek-v3")
    assert (said.code, said.out, said.err) == (130, "", "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["plan", "pretrain/tiny", "--imbalance", "abc"],
            "dsv3: --imbalance has to be a number (see",
        ),
        (["launch", "pretrain/tiny", "--nodes", "x"], "--nodes has to be a whole number (see"),
        (
            ["plan", "pretrain/tiny", "--cluster", ""],
            "--cluster is empty: name a cluster (h800) or",
        ),
        (["import", "a", "b", "--workers", "0"], "--workers has to be at least 1 (see"),
        (["serve", "--port", "65536"], "--port may be 65535 at most (see dsv3 serve --help)."),
        (["foo"], "No such command 'foo' (see dsv3 --help)."),
        (["train"], "Missing argument 'recipe' (see dsv3 train --help)."),
        (["plan", "--nope"], "No such option: --nope (see dsv3 plan --help)."),
        (["plan", "--compar"], "No such option: --compar (Possible options: --compare) (see"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(dsv3, words, sentence):
    said = dsv3(*words)
    assert said.code == 2
    assert sentence in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_torch_cannot_take_is_refused(dsv3, seed):
    said = dsv3("generate", "--checkpoint", ".", "--prompt", "a", "--seed", seed)
    assert said.code == 2
    assert "--seed" in said.err


def test_options_of_drawing_are_refused_where_nothing_is_drawn(dsv3):
    words = ("generate", "--checkpoint", ".", "--prompt", "a", "--top-p", 0.9, "--answers", 2)
    assert dsv3(*words).err == (
        "dsv3: --top-p and --answers are for tokens that are drawn, and --temperature 0, the "
        "default, takes the likeliest each time: add --temperature 1, or the like.\n"
    )
    assert "drawn" not in dsv3(*words, "--temperature", 1).err


def test_versions_are_those_installed(dsv3):
    said = dsv3("--version")
    assert said.code == 0
    lines = [line.split() for line in said.out.splitlines()]
    assert [name for name, _ in lines] == ["dsv3_plugin", "megatron-core", "torch", "transformers"]
    for name, version in lines[1:]:
        assert version == metadata.version(name)


def test_a_folder_that_is_gone_is_told(dsv3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    said = dsv3("plan", "pretrain/tiny")
    assert said.code == 2
    assert "the folder in which dsv3 was started has been removed" in said.err


PRETRAIN = ["pretrain/deepseek-v3", "pretrain/deepseek-v3-256", "pretrain/tiny"]


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("dsv3 re", ["recipes", "rehearse"]),
        *((f"dsv3 {verb} pre", PRETRAIN) for verb in ("train", "launch", "rehearse", "plan")),
        *((f"dsv3 {verb} pre", PRETRAIN) for verb in ("args", "schedule", "data prepare", "diff")),
        ("dsv3 diff pretrain/tiny pre", PRETRAIN),
        ("dsv3 init mine --from pre", PRETRAIN),
        ("dsv3 explain data pre", PRETRAIN),
        ("dsv3 train mi", ["mine.yaml"]),
        ("dsv3 train folder/", ["folder/its.yml"]),
        ("dsv3 plan deepseek-v3", ["deepseek-v3"]),
        ("dsv3 init mine --model deepseek-v2", ["deepseek-v2", "deepseek-v2-lite"]),
        ("dsv3 schedule dualpipe --model deepseek-v3", ["deepseek-v3"]),
        ("dsv3 schedule dual", ["dualpipe", "dualpipe_v"]),
        ("dsv3 explain training.eval", ["training.eval_interval", "training.eval_steps"]),
        ("dsv3 explain dispatch.r", ["dispatch.ranks_per_node"]),
        ("dsv3 explain nothing.begins.so", []),
        *(
            (f"dsv3 {verb} --cluster h", ["h100", "h200", "h800", "here.yaml"])
            for verb in ("plan x", "launch x", "rehearse x", "schedule x", "doctor --node")
        ),
    ],
)
def test_a_shell_completes_what_there_is(dsv3, tmp_path, monkeypatch, words, completed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("mine.yaml", "here.yaml", "folder/its.yml", "mine.txt"):
        (tmp_path / name).touch()
    monkeypatch.setenv("_DSV3_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert dsv3().out.split() == completed


def test_an_empty_word_is_completed_to_sections_alone():
    assert {"data", "training", "rewards"} <= {*completion.keys("")}
    assert not any("." in key for key in completion.keys(""))


def verbs(command, *path):
    """The words of each verb that people see, and the verb."""
    if hasattr(command, "commands"):
        for name, verb in command.commands.items():
            if not verb.hidden:
                yield from verbs(verb, *path, name)
    else:
        yield " ".join(path), command


ALL = dict(verbs(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("verb", ALL)
def test_every_help_ends_with_examples_that_can_be_typed(dsv3, verb):
    shown = dsv3(*verb.split(), "--help").out.splitlines()
    lines = [line.strip() for line in shown[shown.index("  Examples:") + 1 :]]
    assert lines == [*EXAMPLES[verb]]
    for line in lines:
        words = shlex.split(line.replace("-m dsv3_plugin.cli", "dsv3"))
        rest = words[words.index("dsv3") + 1 :]
        assert rest[: len(verb.split())] == verb.split()
        ALL[verb].make_context(verb, rest[len(verb.split()) :])


QUICK = (
    "recipes", "explain", "init", "args", "diff", "plot", "schedule", "plan", "train",
)  # fmt: skip
"""Verbs that take no time; what opens checkpoints is pasted in tests/docs."""
SLOW = ("plan pretrain/", "--png", "torchrun", "training.steps=20")


def test_quick_examples_can_be_run_one_after_the_other(dsv3, tmp_path, monkeypatch):
    """With a recipe of one's own that the first of init's has written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("a few words\n")
    for name, slope in (("a", 10), ("b", 20)):
        write_run(tmp_path / "runs" / name, slope)
    dsv3("schedule", "1f1b", "--pp", "2", "--micro-batches", "4", "--csv", "mine.csv")
    failed = {}
    lines = [line for verb in ("init", *QUICK) for line in EXAMPLES[verb]]
    for line in dict.fromkeys(lines):
        if not any(word in line for word in SLOW):
            said = dsv3(*shlex.split(line)[1:])
            if said.code or not said.out:
                failed[line] = said
    assert not failed


def test_there_are_examples_of_verbs_alone():
    assert EXAMPLES.keys() == ALL.keys()
