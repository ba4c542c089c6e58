"""The layout of shards: nothing between tensors, each where its type can be read in place."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.checkpoint.formats.hf_writer import HFLayout

CACHE_LINE = 64
TYPES = [torch.float8_e4m3fn, torch.bfloat16, torch.float32]

tensors = st.lists(
    st.tuples(st.sampled_from(TYPES), st.tuples(st.integers(1, 40), st.integers(1, 40))),
    min_size=1,
    max_size=12,
)


@given(tensors, st.integers(1, 8000))
def test_tensors_of_whole_cache_lines_begin_with_one_and_all_with_their_type(drawn, shard_size):
    entries = [(f"t{number}", dtype, shape) for number, (dtype, shape) in enumerate(drawn)]
    layout = HFLayout(entries, shard_size)
    assert layout.targets.keys() == {name for name, _, _ in entries}
    for file, size in layout.files.items():
        end = len(layout.headers[file])
        assert end % CACHE_LINE == 0
        targets = [t for t in layout.targets.values() if t.pieces[0].file == file]
        for target in sorted(targets, key=lambda target: target.pieces[0].position):
            assert target.pieces[0].position == end
            assert end % (target.dtype.itemsize if target.nbytes % CACHE_LINE else CACHE_LINE) == 0
            end += target.nbytes
        assert end == size
