"""A model's side of a conversation: its messages as tokens, and the tokens of its answers as text.

Both in tasks of ours, for any model: as `vllm.LLM.chat` does it, which is what the tests compare with.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pipeline import config
from pipeline.engine.exchange import Answer, Request
from pipeline.engine.tasks import Engine
from pipeline.errors import ConfigError, one_line


@dataclass(frozen=True)
class Chat:
    """What of a model, and of how it is sampled, decides on prompts and texts."""

    tokenizer: tuple[str, str | None, bool]  # model, revision, whether its code is trusted
    template: Mapping[str, Any]
    sampling: Mapping[str, Any]
    decoder: Any  # Ray's reference to the tokenizer as text, for its own library: importing transformers takes seconds; or None
    ends: frozenset[int]  # tokens that end an answer
    most_tokens: float  # of prompt and answer

    @classmethod
    def of(cls, engine: Engine, settings: config.Rephrase, model: str, revision: str | None) -> "Chat":
        """That of a model, a folder or a name on the hub.

        Raises:
            ConfigError: its tokenizer cannot be loaded, has no chat template, or cannot tell text from control tokens.
        """
        tokenizer = (model, revision, bool(settings.engine.get("trust_remote_code", False)))
        try:
            loaded = _tokenizer(*tokenizer)
        except (OSError, ValueError) as error:
            raise ConfigError(f"rephrase.model: the tokenizer of {model} cannot be loaded ({one_line(error)})") from error
        if not getattr(loaded, "chat_template", None):
            raise ConfigError(f"rephrase.model: {model} has no chat template; take an instruct model")
        if "sanitize_control_tokens" not in inspect.signature(loaded.apply_chat_template).parameters:
            raise ConfigError(
                f"rephrase.model: {type(loaded).__name__} of {model} (transformers {version('transformers')}) takes text that "
                "spells a control token for one, so a passage could end its prompt; install transformers>=5.23, or take a model "
                "whose tokenizer needs no code of its own"
            )
        fast = getattr(loaded, "backend_tokenizer", None)
        return cls(
            tokenizer=tokenizer,
            template=settings.chat_template_kwargs,
            sampling=settings.sampling,
            decoder=None if fast is None else engine.start().put(fast.to_str()),
            ends=_ends(loaded.eos_token_id, model, revision, settings.sampling),
            most_tokens=float(settings.engine.get("max_model_len") or "inf"),
        )

    @property
    def by_text(self) -> bool:
        """Whether the engine has to see the text: token by token, which costs its process a third of the time it has."""
        return bool(self.sampling.get("stop") or self.sampling.get("detokenize"))

    @property
    def asked(self) -> dict[str, Any]:
        """What the engine is told about sampling, but for the length of an answer."""
        return {**self.sampling, "detokenize": self.by_text, "output_kind": _Whole()}

    def prompt(self, request: Request) -> list[int]:
        """The tokens of a request, whose control tokens are those that the template writes.

        A passage that spells some ("</s>", "<|im_end|>", an added token that is part of the template) has them as the letters they
        are; all other text has the tokens that it always has. Markers that are no tokens of the model's, such as the [INST] of
        Llama 2, are text wherever they stand (docs/decisions/0021).

        Raises:
            Exception: a template raises what it likes, of what it does not like in a message.
        """
        ready = request.messages[-1]["role"] == "user"
        spelled = any(_added_tokens(*self.tokenizer).search(message.get("content", "")) for message in request.messages)
        tokens: list[int] = _tokenizer(*self.tokenizer).apply_chat_template(
            request.messages,
            tokenize=True,
            return_dict=False,
            add_generation_prompt=ready,
            continue_final_message=not ready,
            sanitize_control_tokens=spelled,  # only then: with thousands of added tokens it takes a fifth of a second
            **self.template,
        )
        return tokens

    def answers(self, rows: list[dict[str, Any]]) -> list[Answer]:
        """What an engine said: rows of key, text, tokens, max_tokens and num_input_tokens."""
        texts = [row["text"] for row in rows] if self.by_text else self._texts([row["tokens"] for row in rows])
        return [
            Answer(
                int(row["key"]),
                text,
                "length" if self._is_cut(row) else "stop",
                int(row["num_input_tokens"]),
                len(row["tokens"]),
            )
            for row, text in zip(rows, texts, strict=True)
        ]

    def _is_cut(self, row: dict[str, Any]) -> bool:
        """Whether an answer ended at a length, in vLLM's own order: first the token that ends it, then the length.

        A stop string or a repetition may end it before.
        """
        tokens = row["tokens"]
        full = len(tokens) >= row["max_tokens"] or row["num_input_tokens"] + len(tokens) >= self.most_tokens
        may_stop = self.sampling.get("stop") or self.sampling.get("repetition_detection")
        return tokens[-1] not in self.ends and (full or not may_stop)

    def _texts(self, answers: list[list[int]]) -> list[str]:
        """Text as vLLM gives it: without the token that ended it, or bytes that are no character."""
        ended = [tokens[-1] in self.ends and not self.sampling.get("include_stop_str_in_output") for tokens in answers]
        kept = [tokens[:-1] if end else tokens for tokens, end in zip(answers, ended, strict=True)]
        skip = bool(self.sampling.get("skip_special_tokens", True))
        if self.decoder is None:
            tokenizer = _tokenizer(*self.tokenizer)
            texts = tokenizer.batch_decode(kept, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        else:
            texts = _fast_tokenizer(self.decoder).decode_batch(kept, skip_special_tokens=skip)
        return [text.rstrip("\ufffd") for text in texts]


def _ends(eos_token_id: int | None, model: str, revision: str | None, sampling: Mapping[str, Any]) -> frozenset[int]:
    """The tokens at which vLLM ends an answer: the tokenizer's, those of generation_config.json, and those asked for."""
    from transformers import GenerationConfig

    tokens: list[int | None] = list(sampling.get("stop_token_ids") or [])
    if not sampling.get("ignore_eos"):
        tokens.append(eos_token_id)
        try:
            listed = GenerationConfig.from_pretrained(model, revision=revision or "main").eos_token_id
        except OSError:
            listed = None  # the model has no such file
        tokens += listed if isinstance(listed, list) else [listed]
    return frozenset(token for token in tokens if token is not None)


@functools.cache
def _tokenizer(model: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The model's tokenizer, once a process."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)


@functools.cache
def _added_tokens(model: str, revision: str | None, trust_remote_code: bool) -> re.Pattern[str]:
    """Any added token of the model's that a text could spell; runs of blanks are no control tokens, unless they are special."""
    added = _tokenizer(model, revision, trust_remote_code).added_tokens_decoder.values()
    spelled = sorted(re.escape(token.content) for token in added if token.special or not token.content.isspace())
    return re.compile("|".join(spelled) or r"(?!)")


@functools.lru_cache(maxsize=1)
def _fast_tokenizer(reference: Any) -> Any:
    import ray
    from tokenizers import Tokenizer

    return Tokenizer.from_str(ray.get(reference))


class _Whole:
    """Becomes vLLM's `RequestOutputKind.FINAL_ONLY` in the process of the engine, without an import of vLLM in others.

    The default hands over the text so far after each token, of which nothing is used: a third of the throughput of a small model.
    """

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _whole, ()


def _whole() -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.FINAL_ONLY
