"""What is compiled is one kernel to a rehearsal, without the intermediates that it never writes."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dsv3_plugin.rehearsal.compiled import compiled
from dsv3_plugin.rehearsal.known import KnownValues
from dsv3_plugin.rehearsal.launched import Kernels
from dsv3_plugin.rehearsal.observe import Observer
from dsv3_plugin.rehearsal.storages import Storages

ROWS = 1000


def halves(gate_up):
    gate, up = gate_up.float().chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


@compiled
def whole(gate_up):
    return halves_compiled(gate_up) * 2


halves_compiled = compiled(dynamic=True)(halves)


def looked_at(function):
    """Bytes of a call's fullest moment beyond its input, and its kernels."""
    storages, kernels = Storages("cpu"), Kernels("cpu")
    observer = Observer(KnownValues(), [storages, kernels])
    with FakeTensorMode(), observer:
        gate_up = torch.empty(ROWS, 2, dtype=torch.bfloat16)
        kernels.restart()
        before = storages.total
        storages.begin_moment()
        result = function(gate_up)
        assert storages.total == before + result.nbytes
        return storages.most - before, kernels.counted()


def test_a_compiled_function_makes_its_result_alone():
    most, operations = looked_at(halves_compiled)
    assert most == 2 * ROWS
    assert operations.kernels == 1
    assert operations.bytes == 4 * ROWS + 2 * ROWS


def test_operation_by_operation_it_would_make_more():
    most, operations = looked_at(halves)
    assert most >= 8 * ROWS
    assert operations.kernels > 1


def test_one_within_another_is_a_part_of_it():
    most, operations = looked_at(whole)
    assert most == 2 * ROWS
    assert list(operations.by_name) == ["whole"]


def test_values_go_on_being_known():
    known, values = KnownValues(), torch.tensor([1, 2, 3])
    with FakeTensorMode(allow_non_fake_inputs=True), Observer(known, []):
        counts = torch.empty(3, dtype=torch.int64)
        known.give(counts, values)
        doubled = compiled(lambda tensor: tensor * 2)(counts)
    assert known.of(doubled).tolist() == [2, 4, 6]


def test_outside_a_rehearsal_it_is_the_function():
    gate_up = torch.randn(4, 6)
    assert torch.equal(halves_compiled(gate_up), halves(gate_up))
