"""How many nodes and ranks a token's experts lie on, against counting all choices."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3_plugin.planner.time.routing import bins_hit, tokens_sent
from tests.planner.settings import setting_of


@given(st.data())
def test_expected_bins_by_counting_every_choice(data):
    groups = data.draw(st.sampled_from([1, 2, 4]))
    experts = groups * data.draw(st.sampled_from([2, 4]))
    allowed = data.draw(st.integers(1, groups))
    topk = data.draw(st.integers(1, min(4, allowed * experts // groups)))
    bins = data.draw(st.sampled_from([n for n in (1, 2, 4, 8) if experts % n == 0]))
    size, group = experts // bins, experts // groups
    counts = [
        len({expert // size for expert in chosen})
        for open_groups in combinations(range(groups), allowed)
        for chosen in combinations([e for e in range(experts) if e // group in open_groups], topk)
    ]
    # As many choices within any allowed groups: the mean of all is the mean over groups.
    mean = sum(counts) / len(counts)
    assert bins_hit(experts, topk, groups, allowed, bins) == pytest.approx(mean)


def test_deepseek_v3_reaches_four_nodes_at_most():
    setting = setting_of("pretrain/deepseek-v3")
    sent = tokens_sent(setting)
    assert 3.5 * 7 / 8 < sent.network < 4 * 7 / 8
    plain = tokens_sent(setting_of("pretrain/deepseek-v3", "dispatch.kind=alltoall",
                                   "dispatch.precision=bf16"))  # fmt: skip
    assert plain.network == pytest.approx(8 * 7 / 8)
    assert plain.network + plain.nvlink == pytest.approx(8 * 63 / 64)


def test_a_rack_on_one_fabric_needs_no_network():
    inside = tokens_sent(setting_of("pretrain/deepseek-v3", "dispatch.ranks_per_node=auto",
                                    cluster="gb200"))  # fmt: skip
    assert inside.network == 0
    assert 7 < inside.nvlink < 8
