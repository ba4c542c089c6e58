"""Two-hop dispatch through a run: the curve of upstream's all-to-all, and the loss of a rank."""

import signal

import pytest

from tests.small_runs import Command, records, steps_taken


@pytest.mark.long
def test_twenty_steps_of_tiny_give_the_same_curve_by_either_dispatcher(recipe, tmp_path):
    overrides = [
        f"data.corpus={recipe.parent}/corpus", "data.seq_length=64", "training.steps=20",
        "training.micro_batch_size=2", "curves.batch_size=4", "training.log_interval=1",
        "training.eval_interval=null", "checkpoint.interval=1000",
    ]  # fmt: skip
    curves = {}
    for kind in ("alltoall", "two_hop"):
        folder = tmp_path / kind
        dispatch = f"dispatch={{kind: {kind}, ranks_per_node: 1}}"
        ended = Command.forked(
            "train", "pretrain/tiny", *overrides, f"directory={folder}", dispatch
        ).end()
        assert ended.code == 0, ended.output
        curves[kind] = [(line["loss"], line["mtp_loss"]) for line in records(folder)]
    assert len(curves["alltoall"]) == 20
    for ours, upstreams in zip(curves["two_hop"], curves["alltoall"], strict=True):
        # FP32: the order of additions differs, and twenty steps add it up.
        assert ours == pytest.approx(upstreams, rel=1e-5)


def test_a_rank_killed_in_a_two_hop_run_is_named_and_ends_it(recipe, tmp_path):
    folder = tmp_path / "run"
    run = Command.forked(
        "train", recipe, f"directory={folder}", "training.log_interval=1", "training.steps=1000",
        "dispatch={kind: two_hop, ranks_per_node: 1}",
    )  # fmt: skip
    run.when(lambda: steps_taken(folder) >= 2)
    ended = run.send(signal.SIGKILL, to=run.ranks[1]).end(60)
    assert ended.code != 0
    assert "rank 1 was killed by signal 9 (SIGKILL)" in ended.output
