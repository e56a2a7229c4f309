"""Formats that hold token ids: Megatron `.bin` and `.idx`, nanotron `.ds` (datatrove writes both), OLMo-core `.npy`."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, one_line
from pipeline.exporting import Format, Shard, Tokenizer
from pipeline.exporting.encoding import TextEncoder
from pipeline.storage import Folder

_UNKNOWN_CHARACTER = "\U0010fffd"  # a private-use character: no vocabulary contains it, except as bytes


class IdEncoder(TextEncoder):
    """A `TextEncoder` whose vocabulary size is its highest id plus 1. Writers choose the number of bytes per id by it.

    If the vocabulary has gaps, the number of entries is smaller, and the highest ids would not fit.
    """

    def get_vocab_size(self) -> int:
        return max(self._fast.get_vocab(with_added_tokens=True).values(), default=0) + 1


class _TokenizedFormat(Format):
    """Base class of formats that a datatrove tokenizer step writes from the rows of a shard."""

    tokenized = True
    extensions: tuple[str, ...]  # of the files of a shard

    def write(self, shard: Shard, folder: Folder, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        assert tokenizer is not None
        from pipeline.storage import upload_on_exit

        texts = shard.read_table(["text"])["text"].to_pylist()
        with upload_on_exit(folder) as local_folder:
            step = self.make_step(local_folder, tokenizer.name)
            step.tokenizer = IdEncoder(tokenizer)  # the default tokenizer would encode special tokens that a text spells
            step.run(_make_documents(texts), rank=shard.number, world_size=shard.num_shards)
        stem = self.get_file_stem(shard.number)
        tokens = int(step.stats["tokens"].total) if texts else 0
        return {"rows": len(texts), "tokens": tokens, "files": [f"{stem}{extension}" for extension in self.extensions]}

    @abstractmethod
    def make_step(self, local_folder: str, tokenizer_name: str) -> Any:
        """datatrove's tokenizer step that writes to the folder `local_folder`; it only records `tokenizer_name` in its metadata."""

    @abstractmethod
    def get_file_stem(self, number: int) -> str:
        """The name of the files of shard `number`, without extension."""


class Megatron(_TokenizedFormat):
    """One indexed dataset per shard, one document per row; `data_path.txt` holds the value of `--data-path`."""

    name = "megatron"
    extensions = (".bin", ".idx")

    def make_step(self, local_folder: str, tokenizer_name: str) -> Any:
        from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

        return MegatronDocumentTokenizer(local_folder, tokenizer_name_or_path=tokenizer_name)

    def get_file_stem(self, number: int) -> str:
        return f"{number:05d}_tokens"

    def finish(self, folder: Folder, manifest: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> list[str]:
        # Megatron mixes all datasets of one --data-path, so the consecutive segments of a `schedule` get one file each.
        remaining, segments = iter(parts), manifest["segments"]
        names = []
        for number, count in enumerate(segments, start=1):
            segment_parts = list(islice(remaining, count))
            total = max(1, sum(part["tokens"] for part in segment_parts))
            pairs = [
                f"{part['tokens'] / total:.9f} {part['files'][0].removesuffix('.bin')}" for part in segment_parts if part["tokens"]
            ]
            name = f"data_path-{number}.txt" if len(segments) > 1 else "data_path.txt"
            folder.write_bytes(name, ("\n".join(pairs) + "\n").encode())
            names.append(name)
        return names


class Nanotron(_TokenizedFormat):
    """Token files with indexes of document ends, in a folder that nanotron's and datatrove's datasets read."""

    name = "nanotron"
    extensions = (".ds", ".ds.index", ".ds.metadata")

    def make_step(self, local_folder: str, tokenizer_name: str) -> Any:
        from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer

        return DocumentTokenizer(local_folder, tokenizer_name, shuffle_documents=False)

    def get_file_stem(self, number: int) -> str:
        return f"{number:05d}_unshuffled"


class OlmoCore(Format):
    """OLMo-core's token files: raw arrays of ids of concatenated documents, each ended by the EOS token."""

    name = "olmo-core"
    tokenized = True
    needs_eos = True

    def write(self, shard: Shard, folder: Folder, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        assert tokenizer is not None
        encoder = IdEncoder(tokenizer)
        texts = shard.read_table(["text"])["text"].to_pylist()
        ids = np.concatenate(
            [np.array(encoded.ids, np.int64) for encoded in encoder.encode_batch(texts)] or [np.empty(0, np.int64)]
        )
        name = f"{shard.number:05d}.npy"  # OLMo-core uses this extension although the files have no NumPy header
        folder.write_bytes(name, ids.astype(np.min_scalar_type(encoder.get_vocab_size() - 1)).tobytes())
        return {"rows": len(texts), "tokens": len(ids), "files": [name]}


def read_tokenizer(name: str, eos_token: str | None) -> Tokenizer:
    """Load a tokenizer: `name` is a model on the hub, a folder, or a `tokenizer.json` file.

    Raises:
        ConfigError: the tokenizer does not exist, `eos_token` is not in its vocabulary, or ordinary text is encoded to the id of
            `eos_token`.
    """
    import hashlib

    import orjson
    from tokenizers import Tokenizer as Fast

    try:
        path = os.path.join(name, "tokenizer.json") if os.path.isdir(name) else name
        fast = Fast.from_file(path) if os.path.isfile(path) else Fast.from_pretrained(name)
    except Exception as error:  # tokenizers raises plain Exceptions
        raise ConfigError(
            f"--tokenizer {name} is neither a tokenizer.json, a folder that contains one, nor a model on the hub "
            f"({one_line(error)}); check the name"
        ) from error
    fast.no_truncation()
    fast.no_padding()
    if eos_token is not None and fast.token_to_id(eos_token) is None:
        raise ConfigError(
            f"--eos {eos_token!r} is not a token of {name}; choose one of its special tokens: {_list_special_tokens(fast)}"
        )
    text = fast.to_str()
    settings = orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS)
    tokenizer = Tokenizer(name, text, eos_token, hashlib.sha256(settings).hexdigest())
    if eos_token is not None:
        _check_eos(tokenizer, fast)
    return tokenizer


def _check_eos(tokenizer: Tokenizer, fast: Any) -> None:
    """Raise ConfigError if the id of the EOS token also occurs within texts, so that it does not mark their end."""
    reasons = {
        str(tokenizer.eos_token): "also occurs in ordinary text",
        _UNKNOWN_CHARACTER: "is also the token for unknown characters",
    }
    for text, reason in reasons.items():
        (encoded,) = TextEncoder(tokenizer).encode_batch([text])
        if encoded.ids[-1] in encoded.ids[:-1]:
            raise ConfigError(
                f"--eos {tokenizer.eos_token!r} {reason} in {tokenizer.name}, so a trainer would end texts too early; "
                f"choose one of its special tokens: {_list_special_tokens(fast, tokenizer.eos_token)}"
            )


def _list_special_tokens(fast: Any, excluded: str | None = None) -> str:
    """At most five special tokens, except `excluded`, for an error message."""
    tokens = [token.content for token in fast.get_added_tokens_decoder().values() if token.special]
    return ", ".join([token for token in tokens if token != excluded][:5]) or "(it has no other)"


def _make_documents(texts: Sequence[str]) -> Iterator[Any]:
    from datatrove.data import Document

    for number, text in enumerate(texts):
        yield Document(text=text, id=str(number))
