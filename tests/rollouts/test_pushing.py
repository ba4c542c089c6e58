"""Weights on their way to a server in pieces."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from dsv3_plugin.rollouts.buckets import loaded_with
from dsv3_plugin.rollouts.pushing import bodies, push
from dsv3_plugin.web import Refused, Unanswered

ATTENTION = "model.layers.0.self_attn"
TENSORS = {
    f"{ATTENTION}.q_a_proj.weight": torch.arange(12.0).view(3, 4),
    "model.norm.weight": torch.ones(4, dtype=torch.bfloat16),
    f"{ATTENTION}.kv_a_proj_with_mqa.weight": torch.arange(8.0).view(2, 4),
    "lm_head.weight": torch.randn(50, 4),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 50}))
    return tmp_path


def test_pieces_are_the_folder_and_part_nothing(folder: Path) -> None:
    pieces = [load(body) for body in bodies(folder, 80)]
    assert len(pieces) == 3
    whole = {name: tensor for piece in pieces for name, tensor in piece.items()}
    assert sum(map(len, pieces)) == len(whole) == len(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(whole[name], tensor)
        assert whole[name].dtype == tensor.dtype
    for piece in pieces:
        inside = {loaded_with(name) for name in piece}
        assert {name for name in TENSORS if loaded_with(name) in inside} == piece.keys()


class Taking:
    """A server that is started again before some of its pieces."""

    def __init__(self, forgets: int) -> None:
        self.asked: list[str] = []
        self.configs: list[Any] = []
        self._forgets, self._begun = forgets, 0

    def post(self, path: str, body: Any) -> Any:
        *_, place, last = path.split("/")
        self.asked.append(last)
        if last == "begin":
            self._begun += 1
            self.configs.append(body["config"])
            return {"update": f"u{self._begun}"}
        assert place == f"u{self._begun}"
        if last == "1" and self._begun <= self._forgets:
            raise Refused(404, "begin again")
        return {"version": 7} if last == "finish" else {}


def test_a_server_that_has_forgotten_pieces_gets_all_again(folder: Path) -> None:
    server = Taking(forgets=2)
    assert push(server.post, folder, 80) == {"version": 7}
    assert server.asked == [*["begin", "0", "1"] * 2, "begin", "0", "1", "2", "finish"]
    assert server.configs == [{"vocab_size": 50}] * 3
    with pytest.raises(Unanswered, match="has lost what it was sent, 4 times"):
        push(Taking(forgets=9).post, folder, 80)


def test_a_server_that_takes_none_is_said(folder: Path) -> None:
    with pytest.raises(Unanswered, match="takes no weights in pieces at /v1/weights"):
        push(lambda path, body: {"object": "weights"}, folder, 80)

    def unknown(path: str, body: Any) -> Any:
        raise Refused(404, "Not Found")

    with pytest.raises(Refused):
        push(unknown, folder, 80)
