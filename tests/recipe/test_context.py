"""Groups of heads, where several ranks share a sequence."""

import pytest

from dsv3_plugin.recipe.context import head_groups


@pytest.mark.parametrize(
    ("heads", "context", "groups"), [(128, 1, 1), (128, 8, 8), (6, 4, 6), (12, 5, 6), (2, 4, 2)]
)
def test_a_group_of_heads_takes_no_more_than_the_ranks_own_tokens(heads, context, groups):
    assert head_groups(heads, context) == groups
