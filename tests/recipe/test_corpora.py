"""What `data.corpus` names, in all the ways of writing it."""

import pytest

from dsv3_plugin.recipe import corpora
from dsv3_plugin.recipe.corpora import Member, indexed_prefix, members
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.sections import CorpusMember


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """`enc` is encoded and has upstream's folder beside it; `half` has lost its index."""
    for name in ("enc.bin", "enc.idx", "half.bin", "web.jsonl"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "enc").mkdir()
    (tmp_path / "texts").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_texts_named_side_by_side_are_one_stream():
    assert members(["web.jsonl", "texts"]) == (Member(("web.jsonl", "texts")),)
    assert members("stdlib") == members(["stdlib"]) == (Member(("stdlib",)),)
    assert corpora.is_one(["web.jsonl", "texts"])


@pytest.mark.parametrize("name", ["enc", "enc.bin", "enc.idx", "half", "gone.idx"])
def test_what_is_encoded_is_named_by_its_prefix_or_a_file(name):
    assert str(indexed_prefix(name)) == name.partition(".")[0]


@pytest.mark.parametrize("name", ["web.jsonl", "texts", "stdlib", "gone", "gone.txt"])
def test_all_else_is_text(name):
    assert indexed_prefix(name) is None


def test_a_folder_with_the_name_of_half_a_corpus_is_text(here):
    (here / "half").mkdir()
    assert indexed_prefix("half") is None


def test_members_of_a_mixture(here):
    mixed = members(["web.jsonl", "enc", {"path": "texts"}, "more.txt"])
    assert [str(member) for member in mixed] == ["web.jsonl, more.txt", "enc", "texts"]
    weighted = [CorpusMember(path="enc", weight=0), CorpusMember(path="texts", weight=2)]
    assert [number for number, _ in corpora.drawn_from(weighted)] == [1]
    assert corpora.folders(here, weighted) == (here / "member1",)
    assert corpora.folders(here, [weighted[1]]) == (here,)


def test_sameness(here):
    one = [{"path": "enc.bin", "weight": 1}, {"path": "texts", "weight": 3}]
    same = [{"path": str(here / "enc"), "weight": 0.25}, {"path": "./texts/", "weight": 0.75}]
    assert corpora.same(one, same)
    assert corpora.same("texts", [{"path": "texts", "weight": 7}])
    for other in (
        one[::-1],
        [one[0], one[1] | {"weight": 2}],
        [{"path": each["path"]} for each in one],
        one[:1],
    ):
        assert not corpora.same(one, other)


def test_shares():
    assert corpora.shares([Member(("a",), 1), Member(("b",), 3)], [10, 10]) == [0.25, 0.75]
    assert corpora.shares([Member(("a",)), Member(("b",))], [10, 40]) == [0.2, 0.8]


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ([("a", -1.0), ("b", 3.0)], "gives a the weight -1"),
        ([("a", 0.0), ("b", 0.0)], "sum to 0"),
        ([("a", 1e308), ("b", 1e308)], "sum to more than a number can be"),
        ([("a", 1.0), ("b", None)], "none to b"),
        ([("enc.idx", None), ("enc", None)], "enc twice"),
        ([("texts", 1.0), ("./texts", 1.0)], "texts twice"),
    ],
    ids=["negative", "zero", "overflow", "partial", "encoded-twice", "twice"],
)
def test_what_is_wrong_with_a_mixture(corpus, said):
    [sentence] = corpora.wrong_with([CorpusMember(path=path, weight=w) for path, w in corpus])
    assert said in sentence


@pytest.mark.parametrize("corpus", ["", ["", "texts"]])
def test_a_corpus_without_a_name_is_refused(corpus):
    [sentence] = corpora.wrong_with(corpus)
    assert sentence.startswith('data.corpus names nothing (""): name a file')


def test_nothing_is_wrong_with_these():
    for corpus in ("stdlib", ["a", "b"], [{"path": "a"}, {"path": "b"}], [], ["a", "enc"]):
        assert not [*corpora.wrong_with(corpus)]


@pytest.mark.parametrize("written", ["{path: texts}", "[{path: texts}]"])
def test_a_mixture_of_one_is_written_with_a_list_or_without(written):
    recipe = load_recipe("pretrain/tiny", [f"data.corpus={written}"])
    assert recipe.data.corpus == [CorpusMember(path="texts")]
    assert corpora.text(recipe.data.corpus) == "texts"
