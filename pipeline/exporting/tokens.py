"""Formats that hold token ids: Megatron's `.bin` and `.idx`, nanotron's `.ds` (both written by datatrove), OLMo-core's `.npy`."""

import os
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, one_line
from pipeline.exporting import Format, Shard, Tokenizer
from pipeline.storage import Folder


class _Tokenized(Format):
    """What both share: a step of datatrove's over the rows of a shard."""

    tokenized = True
    endings: tuple[str, ...]

    def write(self, shard: Shard, folder: Folder, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        assert tokenizer is not None
        from pipeline.refining.folders import put_whole

        texts = shard.table(["text"])["text"].to_pylist()
        with tempfile.TemporaryDirectory() as local, put_whole(folder) as place:
            path = os.path.join(local, "tokenizer.json")
            with open(path, "w", encoding="utf-8") as file:
                file.write(tokenizer.json)
            step = self.step(place, path, tokenizer.eos_token)
            step.tokenizer  # noqa: B018 read it while the file is there, and under its path
            step.tokenizer_name_or_path = tokenizer.name
            step.run(_documents(texts), rank=shard.number, world_size=shard.of)
        name = self.file(shard.number)
        tokens = int(step.stats["tokens"].total) if texts else 0
        return {"rows": len(texts), "tokens": tokens, "files": [f"{name}{ending}" for ending in self.endings]}

    @abstractmethod
    def step(self, place: str, path: str, eos_token: str | None) -> Any:
        """datatrove's writer to a folder of this machine, with the tokenizer at a path."""

    @abstractmethod
    def file(self, number: int) -> str:
        """The name of a shard's files, without their endings."""


class Megatron(_Tokenized):
    """An indexed dataset a shard, a row a document; `data_path.txt` is what `--data-path` takes."""

    name = "megatron"
    endings = (".bin", ".idx")

    def step(self, place: str, path: str, eos_token: str | None) -> Any:
        from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

        return MegatronDocumentTokenizer(place, tokenizer_name_or_path=path, eos_token=eos_token)

    def file(self, number: int) -> str:
        return f"{number:05d}_tokens"

    def finish(self, folder: Folder, manifest: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> list[str]:
        # Megatron blends what one path has: what comes one after the other (`schedule`) has a path each.
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
    """Token files with the ends of documents beside them, as nanotron's and datatrove's datasets read a folder."""

    name = "nanotron"
    endings = (".ds", ".ds.index", ".ds.metadata")

    def step(self, place: str, path: str, eos_token: str | None) -> Any:
        from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer

        return DocumentTokenizer(place, path, eos_token=eos_token, shuffle_documents=False)

    def file(self, number: int) -> str:
        return f"{number:05d}_unshuffled"


class OlmoCore(Format):
    """OLMo-core's token files: bare arrays of ids, documents one after the other, each with its end."""

    name = "olmo-core"
    tokenized = True
    needs_eos = True

    def write(self, shard: Shard, folder: Folder, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        from tokenizers import Tokenizer as Fast

        assert tokenizer is not None
        assert tokenizer.eos_token is not None
        fast = Fast.from_str(tokenizer.json)
        eos = fast.token_to_id(tokenizer.eos_token)
        texts = shard.table(["text"])["text"].to_pylist()
        encoded = fast.encode_batch(texts, add_special_tokens=False)
        ids = np.concatenate([np.array([*one.ids, eos], np.int64) for one in encoded] or [np.empty(0, np.int64)])
        name = f"{shard.number:05d}.npy"  # the name that OLMo-core gives them, though without NumPy's header
        folder.write_bytes(name, ids.astype(np.min_scalar_type(fast.get_vocab_size() - 1)).tobytes())
        return {"rows": len(texts), "tokens": len(ids), "files": [name]}


def read_tokenizer(name: str, eos_token: str | None) -> Tokenizer:
    """A tokenizer by the name of its model on the hub, a folder, or a `tokenizer.json`.

    Raises:
        ConfigError: there is none, or it does not know the token that is to end texts.
    """
    import hashlib

    import orjson
    from tokenizers import Tokenizer as Fast

    try:
        path = os.path.join(name, "tokenizer.json") if os.path.isdir(name) else name
        fast = Fast.from_file(path) if os.path.isfile(path) else Fast.from_pretrained(name)
    except Exception as error:  # tokenizers raises plain ones
        raise ConfigError(
            f"--tokenizer {name}: no tokenizer.json of that name, nor a model on the hub ({one_line(error)})"
        ) from error
    fast.no_truncation()
    fast.no_padding()
    if eos_token is not None and fast.token_to_id(eos_token) is None:
        raise ConfigError(f"--eos {eos_token!r} is no token of {name}; give one of its own, such as {_some_special(fast)}")
    text = fast.to_str()
    settings = orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS)
    return Tokenizer(name, text, eos_token, hashlib.sha256(settings).hexdigest())


def _some_special(fast: Any) -> str:
    special = [token.content for token in fast.get_added_tokens_decoder().values() if token.special]
    return ", ".join(special[:5]) or "none: it has no special tokens"


def _documents(texts: Sequence[str]) -> Iterator[Any]:
    from datatrove.data import Document

    for number, text in enumerate(texts):
        yield Document(text=text, id=str(number))
