"""vLLM engines on a real Ray, on the CPU, with a tiny random Llama; each takes twenty seconds to start, so they are few."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import config
from pipeline.engine import Engine, engine_pool, generation
from pipeline.engine.chat import Chat
from pipeline.engine.generation import generate
from pipeline.engine.llm_io import Answer, Failure, Request
from pipeline.errors import ConfigError, InputError, WorkerError
from tests.support.processes import wait_until
from tests.support.tiny_llama import make_tiny_llama

pytestmark = [
    *(pytest.mark.vllm, pytest.mark.ray, pytest.mark.slow),
    pytest.mark.filterwarnings("ignore"),  # modules that vLLM imports raise warnings
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),  # not imported here: that takes seconds
]

ENGINE = {"enforce_eager": True, "max_model_len": 256, "max_num_seqs": 32, "kv_cache_memory_bytes": 64 << 20}
BATCH = 8
TOP_KEY = (1 << 64) - 1  # the largest key; keys count down from here


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(ray_session: Any) -> Engine:
    return Engine(config.Engine())


@pytest.fixture(autouse=True)
def no_engine_left() -> Iterator[None]:
    """Wait until no vLLM process of the test is left; an orphan is a child of process 1."""
    before = set(vllm_processes(1))
    yield
    wait_until(lambda: not {*vllm_processes(), *vllm_processes(1)} - before, every_s=0.5)


def vllm_processes(parent: int | None = None) -> list[psutil.Process]:
    """Those below this process, Ray's among them; or the children of another."""
    found = psutil.Process(parent).children(recursive=parent is None)
    return [process for process in found if _is_vllm(process)]


def _is_vllm(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("VLLM::") and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def settings(model: str, **engine: Any) -> config.Rephrase:
    return config.Rephrase(model=model, engine={**ENGINE, **engine}, batch=BATCH, sampling={"temperature": 1.0, "seed": 0})


def blocks(num: int) -> list[list[int]]:
    """Numbers of prompts; the last block is smaller."""
    return [list(range(i, min(i + BATCH, num))) for i in range(0, num, BATCH)]


def request(number: int, poison: int | None = None) -> Request:
    content = f"Passage {number}: " + "the value of the argument " * (number % 7)
    return Request(TOP_KEY - number, [{"role": "system" if number == poison else "user", "content": content}], 8 + number % 40)


def read_numbers(block: list[int], poison: int | None) -> list[Request]:
    return [request(number, poison) for number in block]


def keep(answers: list[Answer], failures: list[Failure], poison: int | None) -> tuple[list[Answer], list[Failure]]:
    return answers, failures


def numbers(results: list[tuple[list[Answer], list[Failure]]]) -> list[int]:
    return [TOP_KEY - said.key for result in results for said in (*result[0], *result[1])]


LONG, EMPTY = 13 * BATCH + 5, 12 * BATCH + 5  # prompts that the engine, or the template, refuses


def read_some_bad(block: list[int], poison: int | None) -> list[Request]:
    requests = read_numbers(block, poison)
    for i, made in enumerate(requests):
        if made.key == TOP_KEY - LONG:
            requests[i] = Request(made.key, [{"role": "user", "content": "too long " * 300}], 8)
        if made.key == TOP_KEY - EMPTY:
            requests[i] = Request(made.key, [{"role": "nobody"}], 8)
    return requests


def test_prompts_get_an_answer_or_an_error_when_an_engine_is_killed(
    engine: Engine, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is killed is started again for the blocks that it did not hold."""
    monkeypatch.setattr(engine_pool, "_PROMPTS_IN_FLIGHT", 2 * BATCH)
    cfg = settings(model)
    cfg = cfg.model_copy(update={"chat_template_kwargs": {"shout": True}})
    asked = blocks(15 * BATCH)
    results, killed = [], False
    for result in generate(engine, asked, read=read_some_bad, store=keep, settings=cfg, model=model, title="t", shared=None):
        results.append(result)
        if not killed:
            (core,) = (process for process in vllm_processes() if process.name() == "VLLM::EngineCore")
            core.send_signal(signal.SIGKILL)
            killed = True
    found = numbers(results)
    missing = set(range(15 * BATCH)) - set(found)
    assert len(set(found)) == len(found)  # each once, and keys of 64 bits are exact
    assert len(missing) % BATCH == 0
    assert 0 < len(missing) <= 5 * BATCH  # what the engine held

    failures = {TOP_KEY - failure.key: failure for _, failed in results for failure in failed}
    assert failures.keys() == {LONG, EMPTY}
    assert "maximum context length is 256 tokens" in failures[LONG].error
    assert "chat template" in failures[EMPTY].error
    assert {failure.kind for failure in failures.values()} == {"prompt"}

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ends = 0
    for answer in (answer for answers, _ in results for answer in answers):
        asked = request(TOP_KEY - answer.key)
        prompt = tokenizer.apply_chat_template(asked.messages, tokenize=False, add_generation_prompt=True, shout=True)
        assert prompt.endswith("<|assistant|>SHOUT ")
        # One <s>, though both the template and the tokenizer could write it.
        assert answer.prompt_tokens == len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        assert 0 < answer.output_tokens <= asked.max_tokens
        if answer.finish_reason == "length":
            assert answer.output_tokens == asked.max_tokens
        else:
            ends += 1
            assert answer.finish_reason == "stop"
    assert engine.usage.tasks >= len(found) // BATCH - 2


def test_finish_reason_and_text_equal_those_of_vllm(engine: Engine, model: str) -> None:
    """Answers that end by the end token, by a token asked for, by a string, at the length, and at the model's length."""
    samplings: list[dict[str, Any]] = [
        {},
        {"stop_token_ids": list(range(100, 180))},
        {"stop": ["e", "a"]},
        {"ignore_eos": True},
        {"stop": ["value"], "stop_token_ids": list(range(300, 320))},
    ]
    code = """
import json, sys
import vllm
model, engine, samplings = json.loads(sys.argv[1])
llm = vllm.LLM(model, **engine)
found = []
for sampling in samplings:
    params = [vllm.SamplingParams(**sampling, temperature=1.0, seed=i, max_tokens=8 + 7 * i) for i in range(40)]
    messages = [[{"role": "user", "content": "a value " * i}] for i in range(40)]
    for p, output in zip(params, llm.chat(messages, params, use_tqdm=False)):
        said = output.outputs[0]
        found.append([len(output.prompt_token_ids), said.token_ids, p.max_tokens, said.finish_reason, said.text])
print(json.dumps(found))
"""
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # one process starts sooner
    command = [sys.executable, "-c", code, json.dumps([model, ENGINE, samplings])]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=500)
    found = json.loads(done.stdout.splitlines()[-1])
    reasons: list[tuple[str, str]] = []
    texts: list[tuple[str, str]] = []
    for i, (prompt_tokens, tokens, max_tokens, said, text) in enumerate(found):
        cfg = settings(model).model_copy(update={"sampling": samplings[i // 40]})
        chat = Chat.load(engine, cfg, model, None)
        row = {
            "key": "1",
            "text": text if "stop" in cfg.sampling else "",  # else the engine is asked for tokens alone
            "tokens": tokens,
            "max_tokens": max_tokens,
            "num_input_tokens": prompt_tokens,
        }
        (answer,) = chat.decode_answers([row])
        reasons.append((answer.finish_reason, said))
        texts.append((answer.text.strip(), text.strip()))
    assert all(ours == theirs for ours, theirs in reasons)
    assert {theirs for _, theirs in reasons} == {"stop", "length"}
    assert any(prompt + len(tokens) == ENGINE["max_model_len"] and len(tokens) < most for prompt, tokens, most, _, _ in found)
    assert all(ours == theirs for ours, theirs in texts)
    assert sum(len(theirs) > 20 for _, theirs in texts) > 100


def test_a_prompt_that_kills_engines_loses_only_its_own_block(engine: Engine, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison = 3 * BATCH + 2
    cfg = settings(model, logits_processors=["tests.support.poison:Poison"])
    asked = [block[:4] for block in blocks(6 * BATCH)]  # smaller than a batch, and never put together
    results = list(
        generate(
            engine,
            asked,
            read=read_numbers,
            store=keep,
            settings=cfg,
            model=model,
            title="t",
            one_at_a_time=True,
            shared=poison,
        )
    )
    assert sorted(numbers(results)) == sorted(number for block in asked if poison not in block for number in block)


def refuse(block: list[int], poison: int | None) -> list[Request]:
    raise InputError(f"block of {block[0]} is wrong")


def test_an_error_while_reading_requests_is_raised(engine: Engine, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the engine it goes as any row with an error does, so that none is started for it here."""
    monkeypatch.setattr(generation, "_build_processor", lambda _pool, _inputs: lambda requests: requests)
    with pytest.raises(InputError, match=r"^block of 0 is wrong$"):
        list(generate(engine, blocks(4), read=refuse, store=keep, settings=settings(model), model=model, title="t", shared=None))


def test_an_engine_that_does_not_start_ends_the_run(engine: Engine, model: str, tmp_path: Path) -> None:
    broken = make_tiny_llama(tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(WorkerError, match=r"could not be started.*Correct"):
        list(
            generate(
                engine, blocks(4), read=read_numbers, store=keep, settings=settings(broken), model=broken, title="t", shared=None
            )
        )


def test_an_unknown_vllm_argument_is_named(engine: Engine, model: str) -> None:
    cfg = settings(model, no_such_argument=1)
    with pytest.raises(ConfigError, match=r"^rephrase\.engine\.no_such_argument: "):
        list(generate(engine, blocks(4), read=read_numbers, store=keep, settings=cfg, model=model, title="t", shared=None))


def test_a_model_without_chat_template_is_rejected(engine: Engine, model: str, tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=re.escape(folder) + " has no chat template"):
        list(
            generate(
                engine, blocks(4), read=read_numbers, store=keep, settings=settings(folder), model=folder, title="t", shared=None
            )
        )


def test_without_blocks_ray_is_not_started() -> None:
    idle = Engine(config.Engine())
    assert list(generate(idle, [], read=read_numbers, store=keep, settings=settings("m"), model="m", title="t", shared=None)) == []
    assert not idle.started
