"""The forward of one micro-batch and the backward of another overlap on one GPU.

autograd runs the backward of CUDA tensors on a thread of its own, which has to wait as well.
"""

from collections.abc import Iterator

import pytest
import torch

from tests.staged_model import staged_model

SEQ = 16


class Ended:
    """A collective that has ended: one rank exchanges nothing, and lets the other side run."""

    def wait(self) -> None:
        pass


@pytest.fixture
def model() -> Iterator[torch.nn.Module]:
    """Four layers on the GPU, each of which waits in its forward and in its backward."""
    from dsv3_plugin.distributed.overlap import wait
    from dsv3_plugin.distributed.world import single_process
    from dsv3_plugin.model.build import build_model

    def let_the_other_run(
        layer: torch.nn.Module, inputs: object, outputs: tuple[torch.Tensor, ...]
    ) -> None:
        log.append("forward")
        wait(Ended())
        outputs[0].register_hook(gradient_arrived)

    def gradient_arrived(gradient: torch.Tensor) -> None:
        log.append("backward")
        wait(Ended())

    with single_process(seed=1):
        built = build_model(staged_model(4), init_method_std=0.2)
        built.log = log = []
        for layer in built.decoder.layers:
            layer.register_forward_hook(let_the_other_run)
        yield built


def loss_of(model: torch.nn.Module, number: int) -> torch.Tensor:
    drawn = torch.randint(64, (1, SEQ + 1), generator=torch.Generator().manual_seed(number))
    drawn = drawn.to("cuda")
    positions = torch.arange(SEQ, device="cuda").expand(1, SEQ)
    return model(drawn[:, :-1], positions, None, labels=drawn[:, 1:]).mean()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients of all parameters, taken away."""
    taken = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return taken


def test_a_pair_computes_what_the_two_compute_alone(model):
    from dsv3_plugin.distributed.overlap import Overlap

    expected_loss = loss_of(model, 1).detach()
    loss_of(model, 0).backward()
    expected = gradients(model)

    first = loss_of(model, 0)
    model.log.clear()
    second, _ = Overlap().run_pair(lambda: loss_of(model, 1), first.backward)
    assert model.log == ["forward", "backward"] * 4  # layer by layer
    torch.testing.assert_close(second.detach(), expected_loss, rtol=1e-5, atol=0)
    got = gradients(model)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp(min=1e-12)
        assert (got[name] - gradient).abs().max() / scale < 1e-5, name
