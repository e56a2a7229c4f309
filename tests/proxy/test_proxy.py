"""Proxy models: they learn, their bits follow the formula, and an interrupted training gives the same result."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.proxy import training
from pipeline.proxy.optimiser import Muon, make_optimisers, orthogonalise
from pipeline.proxy.settings import SHAPES, ProxySettings
from pipeline.proxy.tokens import encode_corpus, encode_texts, get_end_token_id, train_tokenizer
from pipeline.proxy.training import train
from pipeline.proxy.transformer import make_model, measure_bits
from pipeline.storage import Folder
from tests.support.corpora import make_topic_documents

pytestmark = pytest.mark.slow  # they train models

SMALL = ProxySettings(vocabulary=400, context=32, batch=4, tokens=4 * 32 * 24, evaluations=3, precision="fp32")
LAW = [document["text"] for document in make_topic_documents("law", 60)]
MUSIC = [document["text"] for document in make_topic_documents("music", 60)]
TOKENIZER = train_tokenizer([*LAW, *MUSIC], SMALL.vocabulary)
HELD_OUT = {"law": [row["text"] for row in make_topic_documents("law", 8, seed=9)], "music": MUSIC[:8]}


@pytest.mark.parametrize(("tokens", "batch", "steps"), [(600_000, 8, 292), (2_560_000, 10, 1000), (10**9, 64, 61_035)])
def test_the_default_batch_gives_about_a_thousand_steps(tokens: int, batch: int, steps: int) -> None:
    settings = ProxySettings(tokens=tokens)
    assert (settings.batch, settings.steps) == (batch, steps)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_text_is_encoded_and_decoded(text: str) -> None:
    (tokens,) = encode_texts(TOKENIZER, [text])
    assert tokens[-1] == get_end_token_id(TOKENIZER)
    assert (tokens[:-1] != get_end_token_id(TOKENIZER)).all()
    assert TOKENIZER.decode(tokens[:-1].tolist(), skip_special_tokens=False) == text


def test_a_spelled_end_token_is_encoded_as_text() -> None:
    assert get_end_token_id(TOKENIZER) not in next(encode_texts(TOKENIZER, ["a <|end|> b"]))[:-1]


def test_the_same_texts_give_the_same_tokenizer() -> None:
    assert train_tokenizer([*LAW, *MUSIC], SMALL.vocabulary).to_str() == TOKENIZER.to_str()


def test_encoding_stops_at_the_token_limit() -> None:
    whole = encode_corpus(TOKENIZER, LAW, 10**9)
    assert np.array_equal(encode_corpus(TOKENIZER, LAW, 100), whole[:100])


@pytest.mark.parametrize("size", SHAPES)
def test_size_names_match_the_number_of_parameters(size: str) -> None:
    with torch.device("meta"):
        model = make_model(ProxySettings(size=size), TOKENIZER, 0)
    parameters = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    assert parameters == pytest.approx(float(size.removesuffix("M")) * 1e6, rel=0.25)


def test_bits_are_those_of_each_token_given_the_tokens_before_it() -> None:
    """Against a loop over single tokens, on texts shorter than a context."""
    model = make_model(SMALL, TOKENIZER, 0)
    texts = ["Contract law.", "é", "the court and the clause"]
    found = measure_bits(model, TOKENIZER, texts, SMALL)
    for text, bits in zip(texts, found.bits_D, strict=True):
        tokens = [get_end_token_id(TOKENIZER), *next(encode_texts(TOKENIZER, [text])).tolist()]
        assert len(tokens) <= SMALL.context
        expected = 0.0
        for i in range(1, len(tokens)):
            with torch.no_grad():
                logits = model(torch.tensor([tokens[:i]])).logits[0, -1]
            expected -= float(torch.log_softmax(logits.double(), -1)[tokens[i]]) / np.log(2)
        assert bits == pytest.approx(expected, rel=1e-4)
    assert found.bytes_D.tolist() == [13, 2, 24]
    assert found.bits_per_byte == pytest.approx(found.bits_D.sum() / 39)


@given(st.lists(st.integers(0, 150), min_size=1, max_size=4))
def test_every_token_of_a_long_text_is_counted_once(lengths: list[int]) -> None:
    from pipeline.proxy.transformer import _cut_contexts

    texts = ["x " * length for length in lengths]
    counted = [0] * len(texts)
    for document, tokens, first in _cut_contexts(TOKENIZER, texts, SMALL.context):
        assert len(tokens) <= SMALL.context
        assert first == 1 or first >= SMALL.context // 2
        counted[document] += len(tokens) - first
    assert counted == [len(tokens) for tokens in encode_texts(TOKENIZER, texts)]


def test_a_model_learns_the_text_it_is_trained_on(tmp_path: Path) -> None:
    found = {}
    for name, texts in (("law", LAW), ("music", MUSIC)):
        tokens_N = encode_corpus(TOKENIZER, texts, 10**9)
        found[name] = train(tokens_N, TOKENIZER, SMALL, 0, Folder(str(tmp_path / name)), HELD_OUT).points[-1].bits_per_byte
    assert found["law"]["law"] < 0.8 * found["music"]["law"]
    assert found["music"]["music"] < 0.8 * found["law"]["music"]


def test_an_interrupted_training_gives_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens_N = encode_corpus(TOKENIZER, LAW, 10**9)
    whole = train(tokens_N, TOKENIZER, SMALL, 1, Folder(str(tmp_path / "whole")), HELD_OUT)
    folder = Folder(str(tmp_path / "interrupted"))
    run_steps, calls = training._run_steps, []

    def interrupt_third_call(*args: object) -> float:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return run_steps(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_run_steps", interrupt_third_call)
    with pytest.raises(KeyboardInterrupt):
        train(tokens_N, TOKENIZER, SMALL, 1, folder, HELD_OUT)
    monkeypatch.setattr(training, "_run_steps", run_steps)
    again = train(tokens_N, TOKENIZER, SMALL, 1, folder, HELD_OUT)
    assert [(point.step, point.loss, point.bits_per_byte) for point in again.points] == [
        (point.step, point.loss, point.bits_per_byte) for point in whole.points
    ]
    assert all(np.array_equal(again.bits[name], whole.bits[name]) for name in HELD_OUT)
    assert [point.step for point in again.points] == [8, 16, 24]


@given(st.sampled_from([(16, 16), (24, 16), (16, 40)]), st.integers(0, 9), st.floats(1e-3, 1e3))
def test_orthogonalise_approximates_the_nearest_orthogonal_matrix(shape: tuple[int, int], seed: int, scale: float) -> None:
    """Against the singular value decomposition: the same singular vectors, and values near 1."""
    matrix_KRC = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed)) * scale
    for matrix_RC, found_RC in zip(matrix_KRC, orthogonalise(matrix_KRC), strict=True):
        u, _, vt = torch.linalg.svd(matrix_RC, full_matrices=False)
        values = u.T @ found_RC @ vt.T
        diagonal = values.diagonal()
        assert (values - diagonal.diag()).abs().max() < 1e-3
        assert diagonal.median() == pytest.approx(0.9, abs=0.3)  # the smallest may take more iterations
        assert diagonal.max() < 1.3


def test_muon_updates_as_torch_does() -> None:
    """To bfloat16 precision, in which torch iterates; three steps, so that the momentum matters."""
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in ((12, 8), (12, 8), (6, 20))] for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    muon = Muon(ours, lr=0.1, weight_decay=0.1)
    known = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        muon.step()
        known.step()
    for a, b in zip(ours, theirs, strict=True):
        moved = (b - 1).norm()
        assert (a - b).norm() < 0.03 * moved


def test_each_parameter_has_one_optimiser() -> None:
    model = make_model(SMALL, TOKENIZER, 0)
    muon, adamw = make_optimisers(model, 1e-3, 0.1)
    optimised = [id(p) for optimiser in (muon, adamw) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(optimised) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    adamw_names = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert all("norm" in name or "embed" in name for name in adamw_names)


def test_more_evaluations_than_steps_give_one_per_step(tmp_path: Path) -> None:
    settings = SMALL.model_copy(update={"tokens": 4 * 32 * 2, "evaluations": 5})
    found = train(encode_corpus(TOKENIZER, LAW, 10**9), TOKENIZER, settings, 0, Folder(str(tmp_path)), HELD_OUT)
    assert [point.step for point in found.points] == [1, 2]


def test_different_seeds_differ_and_equal_seeds_agree(tmp_path: Path) -> None:
    tokens_N = encode_corpus(TOKENIZER, LAW, 10**9)
    settings = SMALL.model_copy(update={"tokens": 4 * 32 * 3, "evaluations": 1})
    ends = [
        train(tokens_N, TOKENIZER, settings, seed, Folder(str(tmp_path / str(i))), HELD_OUT).points[-1].bits_per_byte["law"]
        for i, seed in enumerate((5, 5, 6))
    ]
    assert ends[0] == ends[1] != ends[2]


@given(st.integers(4, 40), st.integers(1, 4), st.integers(0, 3))
def test_every_context_is_read_once_per_epoch(count: int, batch: int, seed: int) -> None:
    steps = 3 * count // batch
    rows = np.concatenate(list(training._shuffle_contexts(count, batch, seed, range(steps))))
    for epoch in range(len(rows) // count):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))
    later = np.concatenate([*training._shuffle_contexts(count, batch, seed, range(steps // 2, steps)), np.empty(0, np.int64)])
    assert np.array_equal(later, rows[steps // 2 * batch :])


def test_a_corpus_smaller_than_one_step_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the corpus has 50 tokens, but a training step needs 128"):
        train(np.zeros(50, np.uint16), TOKENIZER, SMALL, 0, Folder(str(tmp_path)), {})
