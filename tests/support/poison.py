"""A logits processor that kills its vLLM process when a prompt contains the token of a system message."""

import os
import signal
from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor

POISON = 5  # <|system|> of tests/support/tiny_llama.py


class Poison(LogitsProcessor):
    def __init__(self, *config: Any) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        for _, _, prompt_tokens, _ in batch_update.added if batch_update else ():
            if POISON in prompt_tokens:
                os.kill(os.getpid(), signal.SIGKILL)

    def apply(self, logits: Any) -> Any:
        return logits
