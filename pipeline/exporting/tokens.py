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

_UNKNOWN = "\U0010fffd"  # a private-use character: no vocabulary has it, except as bytes


class IdEncoder(TextEncoder):
    """A `TextEncoder` whose size is one more than its highest id, by which writers choose the bytes of an id.

    The number of entries is less if the vocabulary has gaps, and ids would not fit.
    """

    def get_vocab_size(self) -> int:
        return max(self._fast.get_vocab(with_added_tokens=True).values(), default=0) + 1


class _Tokenized(Format):
    """Base class of formats that a datatrove tokenizer step writes from the rows of a shard."""

    tokenized = True
    endings: tuple[str, ...]  # of the files of a shard

    def write(self, shard: Shard, folder: Folder, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        assert tokenizer is not None
        from pipeline.storage import upload_on_exit

        texts = shard.table(["text"])["text"].to_pylist()
        with upload_on_exit(folder) as place:
            step = self.step(place, tokenizer.name)
            step.tokenizer = IdEncoder(tokenizer)  # the default tokenizer would encode text as special tokens
            step.run(_documents(texts), rank=shard.number, world_size=shard.of)
        name = self.file(shard.number)
        tokens = int(step.stats["tokens"].total) if texts else 0
        return {"rows": len(texts), "tokens": tokens, "files": [f"{name}{ending}" for ending in self.endings]}

    @abstractmethod
    def step(self, place: str, tokenizer_name: str) -> Any:
        """datatrove's tokenizer step that writes to the local folder `place`; it only records `tokenizer_name` in its metadata."""

    @abstractmethod
    def file(self, number: int) -> str:
        """The name, without extension, of the files of shard `number`."""


class Megatron(_Tokenized):
    """One indexed dataset per shard, one document per row; `data_path.txt` holds the value of `--data-path`."""

    name = "megatron"
    endings = (".bin", ".idx")

    def step(self, place: str, tokenizer_name: str) -> Any:
        from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

        return MegatronDocumentTokenizer(place, tokenizer_name_or_path=tokenizer_name)

    def file(self, number: int) -> str:
        return f"{number:05d}_tokens"

    def finish(self, folder: Folder, manifest: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> list[str]:
        # Megatron mixes all datasets of one --data-path, so the consecutive segments of a `schedule` get one file each.
        left, segments = iter(parts), manifest["segments"]
        names = []
        for number, count in enumerate(segments, start=1):
            own = list(islice(left, count))
            total = max(1, sum(part["tokens"] for part in own))
            pairs = [f"{part['tokens'] / total:.9f} {part['files'][0].removesuffix('.bin')}" for part in own if part["tokens"]]
            name = f"data_path-{number}.txt" if len(segments) > 1 else "data_path.txt"
            folder.write_bytes(name, ("\n".join(pairs) + "\n").encode())
            names.append(name)
        return names


class Nanotron(_Tokenized):
    """Token files with indexes of document ends, in a folder that nanotron's and datatrove's datasets read."""

    name = "nanotron"
    endings = (".ds", ".ds.index", ".ds.metadata")

    def step(self, place: str, tokenizer_name: str) -> Any:
        from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer

        return DocumentTokenizer(place, tokenizer_name, shuffle_documents=False)

    def file(self, number: int) -> str:
        return f"{number:05d}_unshuffled"


class OlmoCore(Format):
    """OLMo-core's token files: raw arrays of ids of concatenated documents, each ended by the EOS token."""

    name = "olmo-core"
    tokenized = True
    needs_eos = True

    def write(self, shard: Shard, folder: Folder, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        assert tokenizer is not None
        encoder = IdEncoder(tokenizer)
        texts = shard.table(["text"])["text"].to_pylist()
        ids = np.concatenate([np.array(one.ids, np.int64) for one in encoder.encode_batch(texts)] or [np.empty(0, np.int64)])
        name = f"{shard.number:05d}.npy"  # OLMo-core uses this extension although the files have no NumPy header
        folder.write_bytes(name, ids.astype(np.min_scalar_type(encoder.get_vocab_size() - 1)).tobytes())
        return {"rows": len(texts), "tokens": len(ids), "files": [name]}


def read_tokenizer(name: str, eos_token: str | None) -> Tokenizer:
    """Load a tokenizer: `name` is a model on the hub, a folder, or a `tokenizer.json` file.

    Raises:
        ConfigError: there is no such tokenizer, `eos_token` is not in its vocabulary, or ordinary text is encoded to the id of
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
            f"--tokenizer {name}: no tokenizer.json of that name, nor a model on the hub ({one_line(error)})"
        ) from error
    fast.no_truncation()
    fast.no_padding()
    if eos_token is not None and fast.token_to_id(eos_token) is None:
        raise ConfigError(f"--eos {eos_token!r} is no token of {name}; give one of its own, such as {_some_special(fast)}")
    text = fast.to_str()
    settings = orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS)
    found = Tokenizer(name, text, eos_token, hashlib.sha256(settings).hexdigest())
    if eos_token is not None:
        _check_end(found, fast)
    return found


def _check_end(tokenizer: Tokenizer, fast: Any) -> None:
    """Raise ConfigError if the id of the EOS token also occurs within texts, so that it does not mark their end."""
    for text, why in ((str(tokenizer.eos_token), "is how its texts write it"), (_UNKNOWN, "stands for what it cannot write")):
        (encoded,) = TextEncoder(tokenizer).encode_batch([text])
        if encoded.ids[-1] in encoded.ids[:-1]:
            raise ConfigError(
                f"--eos {tokenizer.eos_token!r} {why} with {tokenizer.name}, so a trainer would end texts there; "
                f"give one of its special tokens, such as {_some_special(fast, tokenizer.eos_token)}"
            )


def _some_special(fast: Any, but: str | None = None) -> str:
    special = [token.content for token in fast.get_added_tokens_decoder().values() if token.special and token.content != but]
    return ", ".join(special[:5]) or "none: it has no special tokens"


def _documents(texts: Sequence[str]) -> Iterator[Any]:
    from datatrove.data import Document

    for number, text in enumerate(texts):
        yield Document(text=text, id=str(number))
