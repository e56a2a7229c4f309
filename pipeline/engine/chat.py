"""The chat format of a model: messages to prompt tokens, and answer tokens to text.

Both run in this package's own Ray tasks and give what `vllm.LLM.chat` gives; the tests compare the two.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pipeline import config
from pipeline.engine.llm_io import Answer, Request
from pipeline.engine.tasks import Engine
from pipeline.errors import ConfigError, one_line


@dataclass(frozen=True)
class Chat:
    """The tokenizer, chat template and sampling parameters of a model.

    Attributes:
        tokenizer: model, revision, and whether the model's own code is trusted.
        template: arguments of the chat template.
        sampling: sampling parameters as configured.
        tokenizer_ref: Ray reference to the fast tokenizer as JSON, or None without one. The `tokenizers` library loads it, because
            importing transformers takes seconds.
        end_tokens: tokens that end an answer.
        max_model_tokens: maximum of prompt and answer tokens together.
    """

    tokenizer: tuple[str, str | None, bool]
    template: Mapping[str, Any]
    sampling: Mapping[str, Any]
    tokenizer_ref: Any
    end_tokens: frozenset[int]
    max_model_tokens: float

    @classmethod
    def load(cls, engine: Engine, settings: config.Rephrase, model: str, revision: str | None) -> "Chat":
        """Load the tokenizer of a model, which is a folder or a name on the hub.

        Raises:
            ConfigError: the tokenizer cannot be loaded, has no chat template, or cannot tell text from control tokens.
        """
        tokenizer = (model, revision, bool(settings.engine.get("trust_remote_code", False)))
        try:
            loaded = _load_tokenizer(*tokenizer)
        except (OSError, ValueError) as error:
            raise ConfigError(f"rephrase.model: the tokenizer of {model} cannot be loaded ({one_line(error)})") from error
        if not getattr(loaded, "chat_template", None):
            raise ConfigError(f"rephrase.model: {model} has no chat template; use an instruct model")
        if "sanitize_control_tokens" not in inspect.signature(loaded.apply_chat_template).parameters:
            raise ConfigError(
                f"rephrase.model: {type(loaded).__name__} of {model} (transformers {version('transformers')}) cannot "
                "distinguish a control token from text that spells it, so a passage could end its prompt; install "
                "transformers>=5.23, or use a model whose tokenizer does not need custom code"
            )
        fast_tokenizer = getattr(loaded, "backend_tokenizer", None)
        return cls(
            tokenizer=tokenizer,
            template=settings.chat_template_kwargs,
            sampling=settings.sampling,
            tokenizer_ref=None if fast_tokenizer is None else engine.start().put(fast_tokenizer.to_str()),
            end_tokens=_find_end_tokens(loaded.eos_token_id, model, revision, settings.sampling),
            max_model_tokens=float(settings.engine.get("max_model_len") or "inf"),
        )

    @property
    def needs_text(self) -> bool:
        """Whether vLLM itself has to decode the answer token by token, which costs its process a third of its time."""
        return bool(self.sampling.get("stop") or self.sampling.get("detokenize"))

    @property
    def sampling_params(self) -> dict[str, Any]:
        """vLLM's sampling parameters, without the maximum length of an answer."""
        return {**self.sampling, "detokenize": self.needs_text, "output_kind": _FinalOutputOnly()}

    def tokenize_prompt(self, request: Request) -> list[int]:
        """Return the tokens of a request. Only the template writes control tokens.

        A passage that spells a control token ("</s>", "<|im_end|>", an added token that is part of the template) is tokenized as
        plain letters; all other text has its usual tokens. Markers that are not tokens of the model, such as [INST] of Llama 2, are
        text everywhere (docs/decisions/0021).

        Raises:
            Exception: a template may raise any exception for a message that it rejects.
        """
        expects_answer = request.messages[-1]["role"] == "user"
        spells_control_token = any(
            _added_token_pattern(*self.tokenizer).search(message.get("content", "")) for message in request.messages
        )
        tokens: list[int] = _load_tokenizer(*self.tokenizer).apply_chat_template(
            request.messages,
            tokenize=True,
            return_dict=False,
            add_generation_prompt=expects_answer,
            continue_final_message=not expects_answer,
            sanitize_control_tokens=spells_control_token,  # takes 0.2 s with many added tokens
            **self.template,
        )
        return tokens

    def decode_answers(self, rows: list[dict[str, Any]]) -> list[Answer]:
        """Return the answers of rows with key, text, tokens, max_tokens and num_input_tokens."""
        texts = [row["text"] for row in rows] if self.needs_text else self._decode([row["tokens"] for row in rows])
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
        """Whether an answer was cut at a maximum length.

        As in vLLM, an end token is checked before the length; a stop string or a detected repetition may end the answer earlier.
        """
        tokens = row["tokens"]
        is_full = len(tokens) >= row["max_tokens"] or row["num_input_tokens"] + len(tokens) >= self.max_model_tokens
        may_stop = self.sampling.get("stop") or self.sampling.get("repetition_detection")
        return tokens[-1] not in self.end_tokens and (is_full or not may_stop)

    def _decode(self, answers: list[list[int]]) -> list[str]:
        """Decode answers as vLLM does: without the end token, and without trailing bytes that are not a character."""
        ended = [tokens[-1] in self.end_tokens and not self.sampling.get("include_stop_str_in_output") for tokens in answers]
        kept = [tokens[:-1] if end else tokens for tokens, end in zip(answers, ended, strict=True)]
        skip = bool(self.sampling.get("skip_special_tokens", True))
        if self.tokenizer_ref is None:
            tokenizer = _load_tokenizer(*self.tokenizer)
            texts = tokenizer.batch_decode(kept, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        else:
            texts = _load_fast_tokenizer(self.tokenizer_ref).decode_batch(kept, skip_special_tokens=skip)
        return [text.rstrip("\ufffd") for text in texts]


def _find_end_tokens(eos_token_id: int | None, model: str, revision: str | None, sampling: Mapping[str, Any]) -> frozenset[int]:
    """The tokens at which vLLM ends an answer: from the tokenizer, generation_config.json and `stop_token_ids`."""
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
def _load_tokenizer(model: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The model's tokenizer, loaded once per process."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)


@functools.cache
def _added_token_pattern(model: str, revision: str | None, trust_remote_code: bool) -> re.Pattern[str]:
    """Match any added token that a text could spell. Runs of blanks count only if they are special tokens."""
    added = _load_tokenizer(model, revision, trust_remote_code).added_tokens_decoder.values()
    spelled = sorted(re.escape(token.content) for token in added if token.special or not token.content.isspace())
    return re.compile("|".join(spelled) or r"(?!)")


@functools.lru_cache(maxsize=1)
def _load_fast_tokenizer(reference: Any) -> Any:
    import ray
    from tokenizers import Tokenizer

    return Tokenizer.from_str(ray.get(reference))


class _FinalOutputOnly:
    """Unpickles as vLLM's `RequestOutputKind.FINAL_ONLY` in the engine's process; other processes need not import vLLM.

    By default vLLM returns the text so far after each token, which is not used here and costs a third of a small model's
    throughput.
    """

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _final_output_only, ()


def _final_output_only() -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.FINAL_ONLY
