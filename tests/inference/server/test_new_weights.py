"""Weights that change under a server."""

import json
import os
import re
import shutil
import threading
import urllib.error
import urllib.request

import openai
import pytest
from safetensors.torch import load_file, save_file

from dsv3_plugin.checkpoint import import_hf
from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.data.tokenizer import open_tokenizer, train_bpe
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.inference.server.limits import Limits
from dsv3_plugin.inference.server.new_weights import NewWeights
from dsv3_plugin.inference.server.serve import ServerSettings, serve
from dsv3_plugin.inference.server.words import words_of
from dsv3_plugin.rollouts.endpoint import Endpoint
from dsv3_plugin.rollouts.pushing import bodies
from dsv3_plugin.web import Patience
from tests.inference.server.serving import KEY, PATIENCE_S, listening, server_of
from tests.inference.test_from_checkpoint import MODEL, write_hf_folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What a trainer writes: two states of a model, each in both forms."""
    root = tmp_path_factory.mktemp("root")
    for name in ("first", "second"):
        folder = root / name
        folder.mkdir()
        write_hf_folder(folder)
        if name == "second":
            file = folder / "model.safetensors"
            tensors = load_file(file)
            changed = {
                key: value.flip(0) if value.dim() > 1 else value for key, value in tensors.items()
            }
            save_file(changed, file, {"format": "pt"})
        import_hf(folder, root / f"{name}-checkpoint")
    return root


@pytest.fixture(scope="module")
def expected(root, world):
    """Greedy tokens behind a prompt with either state."""

    def tokens(name):
        model, _ = load_for_inference(root / f"{name}-checkpoint")
        sampling = SamplingParameters(max_tokens=12, temperature=0.0)
        return Engine(model, EngineSettings(2**22)).run([Request((5, 6, 7), sampling)])[0].tokens

    return {name: tokens(name) for name in ("first", "second")}


@pytest.fixture
def served(root, world):
    model, config = load_for_inference(root / "first-checkpoint")
    tokenizer = open_tokenizer(root / "first")
    engine = Engine(model, EngineSettings(2**22, drafts=1), text_of=tokenizer.decode)
    weights = NewWeights(root, config, tokenizer)
    server = server_of(engine, words_of(tokenizer), Limits(20_000, 50), KEY, weights=weights)
    with (
        listening(server) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield client


def push(client, path):
    return client.post("/weights", body={"path": str(path)}, cast_to=object)


def ask(client, **more):
    asked = {"model": "small", "prompt": [5, 6, 7], "max_tokens": 12, "temperature": 0} | more
    return client.completions.create(**asked, extra_body={"return_token_ids": True})


def test_weights_are_those_of_the_folder_that_was_named_last(served, root, expected):
    assert expected["first"] != expected["second"]
    for version, (path, name) in enumerate(
        [
            ("second", "second"),
            ("first-checkpoint", "first"),
            (root / "second-checkpoint", "second"),
        ],
        start=1,
    ):
        assert push(served, path) == {"object": "weights", "version": version}
        answer = ask(served)
        assert answer.choices[0].token_ids == expected[name]
        assert answer.system_fingerprint == f"weights-{version}"
        assert answer.choices[0].weights_versions == [version] * 12
    assert served.get("/weights", cast_to=object)["version"] == 3


def test_an_answer_that_is_under_way_goes_on_with_the_new_ones(served, root):
    pieces = iter(ask(served, max_tokens=50, stream=True))
    tokens, versions = [], []

    def take(piece):
        tokens.extend(piece.choices[0].token_ids)
        versions.extend(piece.choices[0].weights_versions)

    take(next(pieces))
    push(served, "second")
    for piece in pieces:
        take(piece)
    assert versions == sorted(versions)
    assert len(tokens) == 50
    behind = versions.count(0)
    model, _ = load_for_inference(root / "second-checkpoint")
    if behind < 50:  # else it ended before the new ones were there
        sampling = SamplingParameters(max_tokens=50 - behind, temperature=0.0)
        request = Request((5, 6, 7, *tokens[:behind]), sampling)
        assert Engine(model, EngineSettings(2**22)).run([request])[0].tokens == tokens[behind:]


@pytest.fixture
def endpoint(served):
    address = str(served.base_url).removesuffix("/v1/")
    with Endpoint(address, key=KEY, patience=Patience(outage=0), bucket_bytes=20_000) as opened:
        yield opened


def test_weights_come_in_pieces_from_where_the_server_sees_nothing(
    served, endpoint, root, expected, tmp_path
):
    there = shutil.copytree(root / "second", tmp_path / "there")
    assert len([*bodies(there, 20_000)]) > 3
    (root / ".dsv3-pushed-by-one-that-was-killed").mkdir()
    assert endpoint.take_weights(str(there), "buckets") == 1
    answer = ask(served)
    assert answer.choices[0].token_ids == expected["second"]
    assert answer.choices[0].weights_versions == [1] * 12
    assert not [*root.glob(".dsv3-pushed-*")]


def piece(served, path, body):
    return served.post(f"/weights/{path}", content=body, cast_to=object)


def begun(served, folder):
    config = json.loads((folder / "config.json").read_text())
    return served.post("/weights/begin", body={"config": config}, cast_to=object)["update"]


def finished(served, update):
    return served.post(f"/weights/{update}/finish", body={}, cast_to=object)["version"]


def test_pieces_may_come_again_in_any_order_and_their_end_be_asked_for_again(
    served, root, expected
):
    one, *more = [*bodies(root / "second", 20_000)]
    update = begun(served, root / "second")
    for number, body in [*enumerate(more, start=1)][::-1]:
        assert piece(served, f"{update}/{number}", body)["tensors"] > 0
    piece(served, f"{update}/0", more[0][:-1] + b"?")  # to be replaced
    piece(served, f"{update}/0", one)
    assert [finished(served, update), finished(served, update)] == [1, 1]
    assert ask(served).choices[0].token_ids == expected["second"]
    with pytest.raises(openai.NotFoundError, match="begin again"):
        piece(served, f"{update}/0", one)


def test_pieces_that_make_no_weights_are_refused_and_nothing_is_lost(
    served, root, expected, tmp_path
):
    second, other = root / "second", shutil.copytree(root / "second", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    first, *more = [*bodies(second, 20_000)]

    def sent(folder, pieces):
        update = begun(served, folder)
        for number, body in enumerate(pieces):
            piece(served, f"{update}/{number}", body)
        return update

    def since():
        update = begun(served, second)
        begun(served, second)
        piece(served, f"{update}/0", first)

    for status, sentence, what in (
        (400, "cut short", lambda: sent(second, [first[:-8]])),
        (400, "no tensor accounts for", lambda: sent(second, [first + b"more"])),
        (413, "larger than .* bytes, which the model takes", lambda: sent(second, [b"x" * 10**7])),
        (400, "is missing", lambda: finished(served, sent(second, more))),
        (
            400,
            "is of another model: its rotary_base is 5000.0",
            lambda: finished(served, sent(other, [first, *more])),
        ),
        (404, "were not begun here, or others were since: begin again", since),
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            what()
        said = refused.value.response.json()["error"]["message"]
        assert re.search(sentence, said), said
        assert refused.value.status_code == status
    answer = ask(served)
    assert answer.choices[0].token_ids == expected["first"]
    assert answer.system_fingerprint == "weights-0"


def other_model(folder, root):
    write_hf_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))


def cut_short(folder, root):
    shutil.copytree(root / "second", folder, dirs_exist_ok=True)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def other_tokenizer(folder, root):
    shutil.copytree(root / "second", folder, dirs_exist_ok=True)
    train_bpe(["class C:\n    pass\n"] * 3, MODEL.vocab_size, folder)


def file_elsewhere(folder, root):
    shutil.copytree(root / "second", folder, dirs_exist_ok=True)
    moved = root.parent / f"{root.name}-elsewhere.safetensors"
    shutil.move(folder / "model.safetensors", moved)
    (folder / "model.safetensors").symlink_to(moved)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (other_model, "is of another model: its rotary_base is 5000.0"),
        (cut_short, "model.safetensors"),
        (other_tokenizer, "has another tokenizer"),
        (file_elsewhere, "leads out of the folder"),
        (lambda folder, root: None, "is neither"),
    ],
)
def test_other_weights_are_refused_and_nothing_is_lost(served, root, expected, spoil, sentence):
    folder = root / "spoiled"
    folder.mkdir()
    try:
        spoil(folder, root)
        with pytest.raises(openai.BadRequestError) as refused:
            push(served, "spoiled")
        assert sentence in refused.value.response.json()["error"]["message"]
    finally:
        shutil.rmtree(folder)
    answer = ask(served)
    assert answer.choices[0].token_ids == expected["first"]
    assert answer.system_fingerprint == "weights-0"


@pytest.mark.parametrize("path", ["..", "../..", "/etc", "/", "second/../../x", "link"])
def test_no_name_leads_out_of_the_root(served, root, path):
    (root / "link").symlink_to("/etc")
    try:
        with pytest.raises(openai.BadRequestError, match="leads out of the folder"):
            push(served, path)
    finally:
        os.unlink(root / "link")


@pytest.mark.parametrize("path", ["nothing", "a\0b", "x" * 5000])
def test_names_of_nothing(served, path):
    with pytest.raises(openai.BadRequestError):
        push(served, path)


def test_weights_change_where_it_was_asked_for_alone(root, model, tokenizer, monkeypatch):
    engine = Engine(model, EngineSettings(2**22), text_of=tokenizer.decode)
    server = server_of(engine, words_of(tokenizer), Limits(20_000, 50))
    with listening(server) as address:
        request = urllib.request.Request(f"{address}/v1/weights", b'{"path": "second"}')
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=PATIENCE_S)
        assert refused.value.code == 403
        assert "--weights-root" in json.load(refused.value)["error"]["message"]
    monkeypatch.delenv("DSV3_API_KEY", raising=False)
    with pytest.raises(UserError, match="set DSV3_API_KEY"):
        serve(root / "first-checkpoint", ServerSettings(weights_root=root), print)
    monkeypatch.setenv("DSV3_API_KEY", KEY)
    with pytest.raises(UserError, match="is no folder"):
        serve(root / "first-checkpoint", ServerSettings(weights_root=root / "none"), print)


def test_one_at_a_time(served, monkeypatch):
    begun, held = threading.Event(), threading.Event()
    original = NewWeights.read

    def slowly(self, name):
        begun.set()
        held.wait()
        return original(self, name)

    monkeypatch.setattr(NewWeights, "read", slowly)
    first = threading.Thread(target=push, args=(served, "second"))
    first.start()
    begun.wait()
    with pytest.raises(openai.ConflictError, match="are being loaded"):
        push(served, "second")
    assert ask(served).system_fingerprint == "weights-0"
    held.set()
    first.join()
    assert ask(served).system_fingerprint == "weights-1"


@pytest.mark.parametrize("number", ["x", "-1", "1" * 5000, "٣"])
def test_pieces_have_numbers(served, number):
    with pytest.raises(openai.BadRequestError, match="have numbers, from 0 to 999999"):
        served.post(f"/weights/none/{number}", body={}, cast_to=object)
