"""A process alone in its world, and upstream as it is installed, on the CPU host."""

from collections.abc import Iterator

import pytest

from dsv3_plugin.upstream import cpu_host, patching

cpu_host.enable()

from dsv3_plugin.distributed.world import single_process  # noqa: E402


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    patching.unregister()
    with single_process(seed=4):
        yield
    patching.unregister()  # before `monkeypatch` undoes what a test put below it
