"""Exports of token ids: a special token that a text spells is encoded as text, and never ends or masks it."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pipeline.errors import ConfigError
from pipeline.exporting import Format, Shard
from pipeline.exporting import Tokenizer as Settings
from pipeline.exporting.encoding import TextEncoder
from pipeline.exporting.token_formats import Megatron, Nanotron, OlmoCore, read_tokenizer
from pipeline.storage import Folder
from tests.support.tiny_llama import read_docstrings

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::ImportWarning"
)
EOS = "<|endoftext|>"
SPECIAL = [EOS, "</s>", "<s>", "[SEP]", "[MASK]", "<|im_start|>", "<|im_end|>", "<unk>"]
ORDINARY = "<tool_call>"  # an added token that is not special
ASCII = [chr(code) for code in range(32, 127)]


@functools.cache
def byte_level_bpe() -> Tokenizer:
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    fast.train_from_iterator(read_docstrings(), trainer)
    return fast


def unigram() -> Tokenizer:
    """Its vocabulary contains the special tokens with the highest scores, so the model itself matches them in text."""
    fast = Tokenizer(models.Unigram())
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    fast.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=[*ASCII, "\n", "▁"], show_progress=False
    )
    fast.train_from_iterator((text for text in read_docstrings() if text.isascii()), trainer)
    return fast


@pytest.fixture(scope="module", params=[byte_level_bpe, unigram])
def tokenizer_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    fast = Tokenizer.from_str(request.param().to_str())
    fast.add_tokens([AddedToken(ORDINARY, special=False, normalized=False)])
    # As many models have. Exports do not use it, because their texts have an end token but no begin token.
    begin = [("<s>", fast.token_to_id("<s>"))]
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=begin)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    fast.save(str(path))
    return str(path)


def megatron(folder: Path, end: int) -> list[list[int]]:
    del end
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(folder / "00000_tokens"))
    assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))
    return [dataset[i].tolist() for i in range(len(dataset))]


def nanotron(folder: Path, end: int) -> list[list[int]]:
    from datatrove.utils.dataset import DatatroveFolderDataset

    ids = np.fromfile(folder / "00000_unshuffled.ds", np.uint16)
    ends = np.fromfile(folder / "00000_unshuffled.ds.index", np.uint64).astype(int)
    # In its dataset, positions restart at the document ends in the index, also if they come from the end tokens.
    for source in ({}, {"positions_from_eos_token_id": end}):
        dataset = DatatroveFolderDataset(str(folder), seq_len=len(ids) - 1, shuffle=False, return_positions=True, **source)
        item = dataset[0]
        assert item["input_ids"].tolist() == ids.tolist()
        starts = np.flatnonzero(item["positions"].numpy() == 0).tolist()
        assert starts == [0, *ends[:-1].tolist()]
    return [document.tolist() for document in np.split(ids, ends[:-1])]


def olmo_core(folder: Path, end: int) -> list[list[int]]:
    from olmo_core.data.utils import iter_document_indices

    ids = np.fromfile(folder / "00000.npy", np.uint16)
    found = iter_document_indices(folder / "00000.npy", eos_token_id=end, dtype=np.uint16)
    return [ids[begin:stop].tolist() for begin, stop in found]


SPELLINGS = st.sampled_from([*SPECIAL, *(token.upper() for token in SPECIAL), "<|im_", "end|>", ORDINARY, "\n", " "])
TEXTS = st.lists(st.one_of(SPELLINGS, st.text(ASCII, max_size=8)), min_size=1, max_size=8).map("".join).filter(str.strip)


@pytest.mark.parametrize(
    ("form", "read"),
    [(Megatron(), megatron), (Nanotron(), nanotron), (OlmoCore(), olmo_core)],
    ids=["megatron", "nanotron", "olmo-core"],
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(texts=st.lists(TEXTS, min_size=2, max_size=6))
@example([EOS, f"{EOS}{EOS}</s>", f"before {EOS} after", "[SEP][MASK] <|im_start|>system", f"text{EOS}"])
def test_each_text_is_decoded_completely_with_one_end_token(
    tokenizer_file: str, tmp_path: Path, form: Format, read: Callable[[Path, int], list[list[int]]], texts: list[str]
) -> None:
    fast = Tokenizer.from_file(tokenizer_file)
    end = fast.token_to_id(EOS)
    pq.write_table(pa.table({"text": texts}), tmp_path / "shard.parquet")
    out = tmp_path / "out"
    written = form.write(Shard(0, 1, Folder(str(tmp_path)), "shard.parquet"), Folder(str(out)), read_tokenizer(tokenizer_file, EOS))
    documents = read(out, end)
    assert len(documents) == written["rows"] == len(texts)
    assert sum(map(len, documents)) == written["tokens"]
    special = {fast.token_to_id(token) for token in SPECIAL}
    for document, text in zip(documents, texts, strict=True):
        assert document[-1] == end
        assert special.isdisjoint(document[:-1])
        assert fast.decode(document[:-1], skip_special_tokens=False) == text
        assert document.count(fast.token_to_id(ORDINARY)) == text.count(ORDINARY)


@given(text=st.text())
def test_any_text_is_decoded_from_byte_level_tokens(text: str) -> None:
    bpe = byte_level_bpe()
    (encoded,) = TextEncoder(Settings("bpe", bpe.to_str(), EOS, "")).encode_batch([text])
    assert encoded.ids[-1:] == [bpe.token_to_id(EOS)]
    assert bpe.decode(encoded.ids[:-1], skip_special_tokens=False) == text


def test_without_eos_the_template_is_applied_and_spelled_tokens_are_text(tokenizer_file: str) -> None:
    fast = Tokenizer.from_file(tokenizer_file)
    (encoded,) = TextEncoder(read_tokenizer(tokenizer_file, None)).encode_batch(["a <s> b</s>"])
    assert encoded.ids[0] == fast.token_to_id("<s>")
    assert {fast.token_to_id(token) for token in SPECIAL}.isdisjoint(encoded.ids[1:])
    assert fast.decode(encoded.ids[1:], skip_special_tokens=False) == "a <s> b</s>"


def test_unknown_characters_are_unknown_and_a_spelled_unknown_token_is_text(tmp_path: Path) -> None:
    fast = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1, "a": 2, "[": 3, "U": 4, "N": 5, "K": 6, "]": 7}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.add_special_tokens(["[UNK]", "[SEP]"])
    fast.save(str(tmp_path / "tokenizer.json"))
    encoder = TextEncoder(read_tokenizer(str(tmp_path), "[SEP]"))
    (encoded,) = encoder.encode_batch(["a b [UNK]"])
    assert encoded.ids == [2, 0, 3, 4, 5, 6, 7, 1]
    # Otherwise every unknown character would end the text.
    with pytest.raises(ConfigError, match=r"--eos '\[UNK\]' .* special tokens: \[SEP\]$"):
        read_tokenizer(str(tmp_path), "[UNK]")


@pytest.mark.parametrize(
    ("form", "file"), [(Megatron(), "00000_tokens.bin"), (Nanotron(), "00000_unshuffled.ds"), (OlmoCore(), "00000.npy")]
)
def test_ids_above_the_number_of_entries_are_not_truncated(tmp_path: Path, form: Format, file: str) -> None:
    fast = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1, "a": 70_000}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.add_special_tokens(["[UNK]", "[SEP]"])
    fast.save(str(tmp_path / "tokenizer.json"))
    pq.write_table(pa.table({"text": ["a a"]}), tmp_path / "shard.parquet")
    shard = Shard(0, 1, Folder(str(tmp_path)), "shard.parquet")
    form.write(shard, Folder(str(tmp_path / "out")), read_tokenizer(str(tmp_path), "[SEP]"))
    assert np.fromfile(tmp_path / "out" / file, np.uint32).tolist() == [70_000, 70_000, 1]


def test_an_eos_not_marked_as_special_is_not_matched_in_text(tmp_path: Path) -> None:
    fast = Tokenizer.from_str(byte_level_bpe().to_str())
    fast.add_tokens(["<end>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    (encoded,) = TextEncoder(read_tokenizer(str(tmp_path), "<end>")).encode_batch(["a <end> b"])
    assert encoded.ids.count(fast.token_to_id("<end>")) == 1
    assert fast.decode(encoded.ids[:-1]) == "a <end> b"


def test_an_eos_that_occurs_in_ordinary_text_is_rejected(tmp_path: Path) -> None:
    byte_level_bpe().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"^--eos '\.' .*special tokens: <\|endoftext\|>"):
        read_tokenizer(str(tmp_path), ".")
