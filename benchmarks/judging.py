"""The time to check an answer of about 300 tokens, against a limit of 2 ms, without the time of the language detector.

.venv/bin/python benchmarks/judging.py [--repeats 30]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.rewriting import filters
from pipeline.rewriting.filters import HeldOut, judge_answer
from pipeline.rewriting.styles import Style
from tests.support.answers import JUDGED_ANSWERS, PROMPT, count_tokens

LIMIT_MS = 2.0
HELD_OUT_NGRAMS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    setattr(filters, "detect_language", lambda _: ("und", 0.0))  # noqa: B010 - the time of the detector is not measured
    long = max((row for row in JUDGED_ANSWERS if row["language"] == "en" and not row["reason"]), key=lambda row: len(row["answer"]))
    row = {key: f"{long[key]} {JUDGED_ANSWERS[0][key]}" for key in ("answer", "source")}
    held_out = HeldOut(np.sort(np.random.default_rng(0).integers(0, 2**63, HELD_OUT_NGRAMS, dtype=np.uint64)))
    took = []
    for i in range(args.repeats):
        # New texts in each repeat, as in a run, so that no cache contains them.
        answer, source = f"{row['answer']} {i} so it is told.", f"{row['source']} Told {i} times."
        begun = time.perf_counter()
        judge_answer(
            answer,
            style=Style(about="of the benchmark", prompt="{text}"),
            source=source,
            source_tokens=count_tokens(source),
            finish_reason="stop",
            instructions=PROMPT,
            examples=[JUDGED_ANSWERS[0]["answer"]],
            count=lambda text: len(text) // 5,
            held_out=held_out,
        )
        took.append(1e3 * (time.perf_counter() - begun))
    median = statistics.median(took)
    print(
        f"{count_tokens(row['answer'])} tokens checked in {median:.2f} ms (median of {len(took)}, best {min(took):.2f}): "
        f"{median / LIMIT_MS:.2f} of {LIMIT_MS:g} ms"
    )


if __name__ == "__main__":
    main()
