"""A server beside a run answers for it, with the weights that it is given."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.stages.server import Server
from tests.served import free_port
from tests.small_runs import Command, Trained, records, steps_taken
from tests.stages.between import ASKED, between
from tests.stages.test_rl import written

STEPS = 4
TAKEN = {"weights": "/v1/weights", "buckets": "/finish"}
"""How the path ends by which a server is told to take weights."""
KEY = {"DSV3_API_KEY": "secret"}


@pytest.fixture(scope="module")
def asking(recipe: Path, trained: Trained) -> Path:
    return written(recipe.parent, trained.folder)


class Serving:
    """A server that can be started again."""

    def __init__(self, trained: Trained, root: Path) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._words = (
            "serve", "--checkpoint", trained.checkpoints, "--port", str(port),
            "--weights-root", root,
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        self._running = Command.forked(*self._words, **KEY)

    def kill(self) -> None:
        self._running.send(signal.SIGKILL).end()


@contextmanager
def serving(trained: Trained, root: Path) -> Iterator[Serving]:
    server = Serving(trained, root)
    try:
        yield server
    finally:
        server.kill()


@pytest.mark.long
@pytest.mark.parametrize(
    ("older", "update", "other"),
    [
        (0, "weights", "grpo.routing_replay=true"),
        (1, "buckets", "grpo.routing_replay=true"),
        (0, "buckets", "rollouts.partial=5"),
        (1, "weights", "rollouts.partial=5"),
    ],
)
def test_a_run_goes_through_though_its_server_is_killed_in_mid_step(
    asking: Path, trained: Trained, tmp_path: Path, older: int, update: str, other: str
) -> None:
    """And its numbers are those of the engine inside, whose answers are the same: each round's are
    of the weights at its beginning, also where that begins before the round before it is trained
    on. Experts that tokens went to come with them, or answers are gone on with. Weights are read
    from the run's folder, or sent in pieces to a server that does not see it."""
    steps = STEPS + 2 * older  # so that a round is asked for with the weights of step 2
    words = ("train", asking, f"training.steps={steps}", f"rollouts.async={older}", other)
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    alone = Command.forked(*words, f"directory={inside}")
    (root := tmp_path / "root").mkdir()
    with serving(trained, tmp_path if update == "weights" else root) as server:
        killed: list[int] = []

        def kill(paths: list[str]) -> None:
            """Before the second request of the round whose weights are those of step 2."""
            taken = [place for place, path in enumerate(paths) if path.endswith(TAKEN[update])]
            if not killed and len(taken) == 2 and paths[taken[1] :].count(ASKED) == 2:
                killed.append(steps_taken(outside))
                server.kill()
                server.start()

        with between(server.address, kill) as address:
            run = Command.forked(
                *words, f"directory={outside}", "rollouts.kind=openai", "rollouts.at_once=1",
                f"rollouts.url={address}", "rollouts.key_variable=DSV3_API_KEY",
                f"rollouts.update={update}", "rollouts.bucket_gb=1e-4", **KEY,
            )  # fmt: skip
            ended = run.end(seconds=300)
    assert ended.code == 0, ended.output
    assert (folder := alone.end()).code == 0, folder.output
    expected, found = ({line["iteration"]: line for line in records(f)} for f in (inside, outside))
    assert expected.keys() == found.keys()
    rounds = [line for line in found.values() if "rl/mismatch_max" in line]
    assert [line["iteration"] for line in rounds] == [*range(1, steps, 2)]
    same = [line for line in rounds if not line.get("rl/age") and not line.get("rl/age_max")]
    assert max(line["rl/mismatch_max"] for line in same) <= 1e-5
    assert len(killed) == 1
    # The one that met no server, and behind it all whose answers are of the weights it began with.
    assert sum(line.get("rl/repeated", 0) for line in rounds) >= 1
    assert not any(line.get("rl/lost") for line in rounds)
    for step, line in expected.items():
        for name, value in line.items():
            if name.startswith("rl/") and "second" not in name and "mismatch" not in name:
                assert found[step][name] == pytest.approx(value, abs=1e-4), (step, name)
    (served,) = (outside / "served").iterdir()
    assert served.name == f"dsv3_served_step_{steps:07d}"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["rollouts.kind=openai"], "rollouts.kind: openai asks a server: give rollouts.url"),
        (["rollouts.url=http://here:80"], "set rollouts.kind to openai, or leave it out"),
        (["rollouts.kind=openai", "rollouts.url=here:80"], "write http://HOST:PORT"),
        (
            ["rollouts.kind=openai", "rollouts.url=http://127.0.0.1:{port}", "rollouts.outage=0.1"],
            "cannot be reached.",
        ),
    ],
)
def test_what_is_wrong_with_a_server_is_said(
    asking: Path, tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    words = [override.format(port=free_port()) for override in overrides]
    ended = Command.forked("train", asking, f"directory={tmp_path}/run", *words).end()
    assert ended.code == 2, ended.output
    assert sentence in " ".join(ended.output.split())


class Failing:
    """In the place of a server's answers: it has none to every other prompt."""

    def __init__(self) -> None:
        self.lost, self.put_off = {}, {}
        self.made_again = 0
        self.endpoint = SimpleNamespace(
            repeated={"answered with status 500": 3}, close=lambda: None
        )

    def answers(
        self, asked: list[int], n: int, seeds: list[int], *, version: int, begun: list, most: int
    ) -> list[list[Rollout]]:
        assert (version, begun, most) == (7, [()] * len(asked), 5)
        self.put_off = {"answered with status 502": 2, "answered with status 503": 1}
        found = [[Rollout((1,), (2,), (-0.5,), "stop", (0,))] * n * (one % 2) for one in asked]
        missing = sum(n for group in found if not group)
        self.lost = {"answered with status 500": missing}
        return found


def test_answers_that_do_not_come_are_counted_and_said() -> None:
    told: list[str] = []
    recipe = SimpleNamespace(rollouts=SimpleNamespace(url="http://there"))
    server = Server(recipe, told.append)
    server._source = Failing()
    with single_process():
        server._taken = 7
        server.ask([1, 2, 3, 4], 2, [0, 0, 0, 0], [()] * 4, 5)
        found = server.answers()
    server.close()
    assert [len(group) for group in found] == [2, 0, 2, 0]
    assert (server.costs.lost, server.costs.repeated) == (4, 6)  # as 3 will be made again
    assert told == [
        "4 answers did not come from http://there, and are not learned from (so far: 4 answered "
        "with status 500).",
        "3 answers were not gone on with by http://there, and wait for the next round (so far: "
        "2 answered with status 502, 1 answered with status 503).",
    ]
