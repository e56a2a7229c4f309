"""A tiny Llama with random weights, created in seconds without a download; vLLM runs it like a real model.

python -m tests.support.tiny_llama /tmp/tiny
"""

import inspect
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

# Modules of the standard library with long docstrings, on which the tokenizer is trained.
_MODULES = (
    "argparse",
    "asyncio",
    "collections",
    "decimal",
    "email",
    "functools",
    "logging",
    "os",
    "pathlib",
    "statistics",
    "typing",
)
_SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "<s>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if shout is defined and shout %}SHOUT {% endif %}{% endif %}"
)


def read_docstrings() -> Iterator[str]:
    """Yield the docstrings of the classes and functions in some modules of the standard library, ordered by name."""
    for name in _MODULES:
        module = __import__(name)
        for _, member in sorted(vars(module).items(), key=lambda item: item[0]):
            if inspect.isclass(member) or inspect.isfunction(member):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # typing.io warns on attribute access
                    text = inspect.getdoc(member)
                if text:
                    yield text


def make_tiny_llama(
    folder: Path, *, seed: int = 0, vocabulary: int = 1024, hidden: int = 64, layers: int = 2, positions: int = 1024
) -> str:
    """Write weights, a fast BPE tokenizer and a chat template to the folder, and return it; equal arguments give equal bytes."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_docstrings(), trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(folder)

    config = transformers.LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    print(json.dumps({"folder": make_tiny_llama(Path(sys.argv[1]))}))
