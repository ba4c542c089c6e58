"""Whatever ends a command becomes one sentence, and an exit code that says whose fault it was."""

import sys
from importlib import metadata

import pytest

from dsv3_plugin.cli import command as cli
from dsv3_plugin.errors import UserError


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("the sentence."), 2, "dsv3: the sentence.\n"),
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


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["import", "a", "b", "--workers", "0"], "'--workers': Input should be greater than or"),
        (["foo"], "No such command 'foo' (see dsv3 --help)."),
        (["train"], "Missing argument 'recipe' (see dsv3 train --help)."),
        (["plan", "--nope"], "No such option: --nope (see dsv3 plan --help)."),
    ],
)
def test_a_wrong_command_line_is_one_sentence(monkeypatch, capsys, words, sentence):
    monkeypatch.setattr(sys, "argv", ["dsv3", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_torch_cannot_take_is_refused(monkeypatch, capsys, seed):
    arguments = ["generate", "--checkpoint", ".", "--prompt", "a", "--seed", str(seed)]
    monkeypatch.setattr(sys, "argv", ["dsv3", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "--seed" in capsys.readouterr().err


def test_versions_are_those_installed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dsv3", "--version"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == ["dsv3_plugin", "megatron-core", "torch", "transformers"]
    for name, version in lines[1:]:
        assert version == metadata.version(name)
