"""What happens to the place that a run is watched from stops the run only by saving."""

import json
import re
import signal
import sys

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import needs, supervise
from dsv3_plugin.launch.progress import ProgressDisplay
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.rewards import sandbox
from dsv3_plugin.terminal import lines
from dsv3_plugin.terminal.console import Console


class Ranks:
    """Ranks that save when they are asked to, and then end."""

    def __init__(self, *_: object, **__: object) -> None:
        self.signals: list[int] = []
        self.failed = False
        self.inbox = self

    @property
    def running(self) -> bool:
        return signal.SIGTERM not in self.signals

    def receive(self) -> list:
        return []

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def failure(self) -> None:
        return None

    def stop(self) -> None:
        pass


class Broken:
    """Standard output that was closed by whoever read it, or whose disk is full."""

    def __init__(self, error: OSError) -> None:
        self._error = error

    def isatty(self) -> bool:
        return True  # a bar is shown: the most that can go wrong

    def write(self, text: str) -> int:
        raise self._error

    def flush(self) -> None:
        raise self._error


@pytest.fixture
def supervised(monkeypatch, tmp_path):
    """A function that supervises ranks of a run from a console; the ranks, and how it ended."""
    ranks = Ranks()
    monkeypatch.setattr(supervise, "LocalProcesses", lambda *_, **__: ranks)
    recipe = load_recipe("pretrain/tiny", [f"directory={tmp_path}"])

    # As in a terminal, whoever started the tests: what nohup or a shell in the background has set
    # to be ignored is inherited.
    before = {s: signal.signal(s, signal.SIG_DFL) for s in (signal.SIGHUP,)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(console):
        try:
            return supervise._supervise("tiny", [], recipe, recipe.run_folder, console), ranks
        except lines.Unwritable as error:
            return error, ranks

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("error", "unread"), [(BrokenPipeError(32, "Broken pipe"), True), (OSError(28, "Full"), False)]
)
def test_an_output_that_takes_nothing_more_lets_the_run_save(supervised, capsys, error, unread):
    console = Console(file=lines.Output(Broken(error)), force_terminal=True)
    ended, ranks = supervised(console)
    assert ended.unread is unread
    assert {*ranks.signals} == {signal.SIGTERM}
    assert capsys.readouterr().err.startswith("dsv3: standard output cannot be written (")


def test_a_closed_terminal_lets_the_run_save(supervised, monkeypatch, capsys):
    def show_all(display, records):
        for _ in range(3):  # bash and the kernel both tell it
            signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr(ProgressDisplay, "show_all", show_all)
    ended, ranks = supervised(Console())
    assert ended == 0
    assert ranks.signals == [signal.SIGTERM]
    assert "Stopped: the same command begins anew" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


@pytest.mark.parametrize("trained", [False, True])
def test_a_run_that_is_stopped_says_whether_there_is_anything_to_save(
    supervised, monkeypatch, capsys, tmp_path, trained
):
    (tmp_path / "logs").mkdir()
    if trained:
        (tmp_path / "recipe.yaml").touch()
    monkeypatch.setattr(ProgressDisplay, "show_all", lambda *_: signal.raise_signal(signal.SIGINT))
    supervised(Console())
    said = capsys.readouterr().out
    assert ("Saving, then stopping. Once more ends it without saving." in said) == trained
    assert ("Stopping: its data are being prepared, and there is nothing" in said) != trained


def test_nohup_is_heeded(supervised, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        shown = []

        def show_all(display, records):
            shown.append(records)
            signal.raise_signal(signal.SIGHUP)
            if len(shown) == 3:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(ProgressDisplay, "show_all", show_all)
        _, ranks = supervised(Console())
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ranks.signals == [signal.SIGTERM]
    assert len(shown) == 4


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    supervise.dry_run("pretrain/tiny", [f"directory={folder}", "training.steps=20"])
    said = capsys.readouterr().out
    assert "the run ends in the middle of its curves" in " ".join(said.split())
    assert said.endswith(
        "It would begin anew, with 2 processes on this machine; nothing was started or written.\n"
    )
    assert f"\nThat is pretrain/tiny with directory={folder} training.steps=20.\n" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["directory", "checkpoint.directory"])
def test_a_dry_run_refuses_a_folder_that_another_run_is_using(key, tmp_path):
    used, mine = tmp_path / "used", tmp_path / "mine"
    folder = RunFolder(used) if key == "directory" else RunFolder(tmp_path / "other", used)
    words = {"directory": str(mine), key: str(used)}
    with folder.held(), pytest.raises(UserError, match=f"another run is using {used}: wait for it"):
        supervise.dry_run("pretrain/tiny", [f"{name}={value}" for name, value in words.items()])
    assert not mine.exists()


@pytest.mark.parametrize(
    ("key", "folder", "refused"),
    [
        (
            "directory",
            "/proc/x",
            r"the run folder /proc/x cannot be written \(nothing can be made ",
        ),
        ("checkpoint.directory", "/proc/x", "another with checkpoint.directory=PATH"),
        ("directory", "{here}/file", r"file cannot be written \(there is a file of that name\)"),
    ],
)
def test_a_dry_run_refuses_a_folder_that_cannot_be(key, folder, refused, tmp_path):
    (tmp_path / "file").touch()
    words = [f"directory={tmp_path}/run", f"{key}={folder.format(here=tmp_path)}"]
    with pytest.raises(UserError, match=refused):
        supervise.dry_run("pretrain/tiny", words)
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]


@pytest.mark.parametrize("tokenizer", ["tok", "./tok", "../tok"])
def test_a_dry_run_refuses_a_tokenizer_that_is_not_there(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data.tokenizer: \S*tok does not exist"):
        supervise.dry_run("pretrain/tiny", [f"data.tokenizer={tokenizer}"])


def test_a_dry_run_asks_upstream_of_its_flags(tmp_path, monkeypatch):
    asked = []

    def refusing(name, overrides, recipe, machine, tell):
        asked.append(recipe.passed_flags)
        raise UserError("there is no such flag.")

    monkeypatch.setattr(supervise, "refuse_what_upstream_would", refusing)
    supervise.dry_run("pretrain/tiny", [f"directory={tmp_path}/run"])
    assert not asked
    with pytest.raises(UserError, match="no such flag"):
        supervise.dry_run(
            "pretrain/tiny", [f"directory={tmp_path}/run", "megatron_args.no-such-flag=5"]
        )
    assert asked == [{"no-such-flag": 5}]


def test_a_reward_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_to_judge.py").write_text("def score(attempt):\n    return 1.0\n")
    (tmp_path / "mine_broken.py").write_text("1 / 0\n")
    monkeypatch.setenv("KEY_OF_MINE", "s3cret")
    before = [*sys.path]

    def look(**rewards):
        needs.refuse_missing_rewards(load_recipe("rl/tiny", [f"rewards={json.dumps(rewards)}"]))

    for there in ("mine_to_judge.score", "json.loads", "accuracy", "time.time"):
        look(**{there: {}})
    look(style={"address": "http://127.0.0.1:1/score", "key_variable": "KEY_OF_MINE"})
    for name, reward, sentence in (
        ("yours.score", {}, "rewards: yours.score is a function in the Python package yours, whi"),
        ("mine_to_judge.scores", {}, "The reward 'mine_to_judge.scores' is not there: mine_to_ju"),
        ("mine_broken.score", {}, "The reward 'mine_broken.score' cannot be imported: ZeroDivis"),
        ("style", {"address": "reward.model"}, "rewards.style.address: 'reward.model' is no add"),
        (
            "style",
            {"address": "http://127.0.0.1:1", "key_variable": "NO_SUCH_KEY"},
            "rewards.style.key_variable: there is no environment variable NO_SUCH_KEY: set it",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            look(**{name: reward})
    assert sys.path == before
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="Running code needs bubblewrap"):
        look(code={})


def test_a_dry_run_refuses_what_a_run_does(tmp_path):
    with pytest.raises(UserError, match="takes 2 GPUs and this machine has 0"):
        supervise.dry_run("pretrain/tiny", [f"directory={tmp_path}/run", "host=gpu"])
