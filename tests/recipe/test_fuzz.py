"""Configs and recipes with odd values in any place are taken, or refused in a sentence."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.counts import flops_per_token, parameter_counts
from dsv3_plugin.recipe.hf_config import hf_config, read_hf_model, why_not_exported
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.model import ModelConfig
from tests.small_runs import write_recipe
from tests.test_hostile_sizes import MODEL as CONFIG

_NUMBERS = (0, -1, 1, 2, 3, 2**31, 10**9, 2**63, 10**40, 0.5, -0.0, 1e-320, 1e308)
_TEXTS = ("", "x", "yarn", "balanced", "1e9", "\u0000", "a\nb", "[bold]", "../..", "\udce9")
odd = st.recursive(
    st.sampled_from([None, True, False, *_NUMBERS, *_TEXTS]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["linear", "constant", "for", "until", "type", "factor", "kind", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=4,
)

many = settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def taken_or_refused(read: Callable[[], ModelConfig]) -> None:
    """Read a model and do with it what `dsv3 plan` does; a refusal is a line that can be shown."""
    sentence = ""
    try:
        model = read()
    except UserError as error:
        sentence = str(error)
    if sentence:
        assert sentence.isprintable()
        return
    assert parameter_counts(model).total > 0
    assert flops_per_token(model, 4096).total > 0
    if why_not_exported(model) is None:
        json.dumps(hf_config(model))


@many
@given(
    changes=st.dictionaries(
        st.sampled_from([
            *CONFIG, "rope_scaling", "rope_parameters", "rope_theta", "tie_word_embeddings",
            "scoring_func", "topk_method", "norm_topk_prob", "seq_aux", "rms_norm_eps",
            "initializer_range", "moe_layer_freq", "num_key_value_heads", "hidden_act",
        ]),
        odd, min_size=1, max_size=3,
    )
)  # fmt: skip
@example(changes={"rope_scaling": {"type": "yarn", "factor": 1e308}, "rope_theta": 1e-320})
def test_config_json(tmp_path, changes):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG | changes))
    taken_or_refused(lambda: read_hf_model(path)[0])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = write_recipe(tmp_path_factory.mktemp("recipe"))
    return path, yaml.safe_load(path.read_text())


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """Where something stands in nested dictionaries and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = [at] if at else []
    for key, below in inner:
        found += places(below, (*at, key)) if isinstance(below, dict | list) else [(*at, key)]
    return found


@many
@given(data=st.data())
def test_recipe(recipe, tmp_path, data):
    path, content = recipe
    changed = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 2))):
        *outer, last = data.draw(st.sampled_from(places(changed)))
        where = changed
        for key in outer:
            where = where[key]
        where[last] = data.draw(odd)
        if isinstance(where, dict) and data.draw(st.booleans()):
            where[data.draw(st.sampled_from(_TEXTS[:5]))] = data.draw(odd)
    path = path.with_name("odd.yaml")
    path.write_text(yaml.safe_dump(changed), errors="surrogatepass")
    machine = Machine(gpus=0, transformer_engine=False)
    taken_or_refused(lambda: load_recipe(path, machine=machine).model)
