"""Model answers with verdicts assigned by hand."""

import json
import re
from typing import Any

from tests.support.processes import ROOT

JUDGED_ANSWERS: list[dict[str, Any]] = [
    json.loads(line) for line in (ROOT / "tests" / "support" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
]


PROMPT = (
    "Write the following text again in clear, correct, well-organised prose, in the manner of a Wikipedia article. Keep every "
    "fact, name, number and date, add none, and stay in the language of the text. Answer with the new text alone.\n\nText:\n"
)


def count_tokens(text: str) -> int:
    """Return an approximate number of model tokens: word pieces of up to six letters, CJK characters, and punctuation marks."""
    return len(re.findall(r"[\u3040-\u9fff]|[^\W\d_\u3040-\u9fff]{1,6}|\d{1,3}|[^\w\s]", text))
