"""What is compiled is compiled by one process at a time, and a killed one holds up nobody."""

import multiprocessing
import os
import signal

import pytest
from torch.utils import cpp_extension

from dsv3_plugin.upstream.extension_folder import extension_folder

PATIENCE_S = 300


@pytest.fixture(params=[True, False], ids=["a folder of one's own", "the cache"])
def root(request, tmp_path, monkeypatch):
    if request.param:
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    else:
        monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
        monkeypatch.setattr(cpp_extension, "get_default_build_root", lambda: str(tmp_path))
        name = "dsv3_plugin.upstream.extension_folder.get_default_build_root"
        monkeypatch.setattr(name, lambda: str(tmp_path))
    return tmp_path


def test_torch_compiles_there_and_elsewhere_as_before(root):
    before = os.environ.get("TORCH_EXTENSIONS_DIR")
    with extension_folder() as folder:
        built = cpp_extension._get_build_directory("some_ext", verbose=False)
        assert built == str(folder / "some_ext")
        assert root in folder.parents
    assert os.environ.get("TORCH_EXTENSIONS_DIR") == before


def test_what_a_killed_process_left_is_waited_for_by_nobody(root):
    with extension_folder() as folder:
        (folder / "some_ext").mkdir()
        baton = folder / "some_ext/lock"
    baton.touch()
    with extension_folder():
        assert not baton.exists()


def _enter(entered, until_killed):
    with extension_folder() as folder:
        (folder / "some_ext").mkdir(exist_ok=True)
        (folder / "some_ext/lock").touch(exist_ok=False)
        entered.set()
        if until_killed:
            signal.pause()


def test_one_compiles_at_a_time_and_the_next_goes_on_when_it_is_killed(root):
    forked = multiprocessing.get_context("fork")
    first, second = forked.Event(), forked.Event()
    one = forked.Process(target=_enter, args=(first, True))
    other = forked.Process(target=_enter, args=(second, False))
    one.start()
    assert first.wait(PATIENCE_S)
    other.start()
    assert not second.wait(0.2)
    one.kill()
    assert second.wait(PATIENCE_S)
    other.join()
    assert other.exitcode == 0
