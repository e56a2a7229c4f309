"""Title the named clusters: a language model gets the terms of each cluster and excerpts of its windows.

Titles are for people only; nothing is computed from them. So a model that gives no usable title is no error, and the settings of
titles are not part of the fingerprint of any later step.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import Config
from pipeline.engine import Engine
from pipeline.engine.exchange import Failure
from pipeline.errors import RunError
from pipeline.execution.step import Step
from pipeline.rewriting import model as models
from pipeline.rewriting import titles
from pipeline.rewriting.answers import FOLDER
from pipeline.rewriting.endpoint import check
from pipeline.stages.asking import Asking
from pipeline.stages.weights import texts_of_leaves
from pipeline.storage import Folder
from pipeline.tables import TITLE_REQUESTS, TITLES

_GROUP = "titles"
# Share of the prompts that may fail by the server's fault (one always may). With more, the server must be down.
_MOST_FAILED = 0.1


def titles_step(config: Config, windows: Step, assigned: Step, weighted: Step) -> Step:
    """Build the step that titles the leaves of `names.parquet` from generalist text.

    Raises:
        UserError: the model or its endpoint is not available.
    """
    settings = config.rephrase
    assert settings
    if settings.endpoint:
        check(settings.endpoint)
    model = models.resolve(settings)
    generator = models.generator(settings, model)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        names = weighted.folder.read_table("names.parquet").to_pylist()
        terms = {row["leaf"]: row["terms"] for row in names}
        texts = texts_of_leaves(engine, windows, assigned, list(terms), seed=config.seed, title="excerpts")
        asked = _requests(terms, {leaf: [text for _, text in found] for leaf, found in texts.items()}, generator)
        requests = folder.child("requests")
        requests.write_table(f"{_GROUP}.parquet", asked, TITLE_REQUESTS, {"rows": len(asked)})
        # A separate store: titles from a server do not show that it ever rewrote a passage (`Asking.answer`).
        store = windows.workdir.child(f"{FOLDER}/{generator}/{_GROUP}")
        asking = Asking(engine, settings, model, titles.read_prompts, requests, store)
        index, failed = asking.answer([_GROUP], title="titles", max_bad_fraction=1.0)
        _refuse_dead(failed, len(asked))
        answered = asked.filter(pa.array(~np.isin(asked["key"].to_numpy(), np.array(sorted(failed), np.uint64))))
        answers = index.read(store, answered["key"].to_numpy())
        judged = {
            row["leaf"]: titles.judge(answer["text"], answer["finish_reason"], row["terms"], row["excerpts"])
            for row, answer in zip(answered.to_pylist(), answers.to_pylist(), strict=True)
        }
        titled = {leaf: found.title for leaf, found in judged.items() if found.title}
        table = pa.table({"leaf": list(titled), "title": list(titled.values())}, schema=TITLES)
        folder.write_table("titles.parquet", table, TITLES)
        untitled = Counter(found.reason for found in judged.values() if found.reason)
        untitled["no_answer"] += len(asked) - len(answered)
        return {
            "model": settings.model,
            "revision": model.revision,
            "sampling": settings.sampling,
            "clusters": len(asked),
            "titles": len(titled),
            "untitled": {reason: untitled[reason] for reason in titles.REASONS if untitled[reason]},
        }

    return Step(
        stage="titles",
        version=1,
        settings={"generator": generator, "wording": titles.wording_hash(), "seed": config.seed},
        inputs={"windows": windows, "assignments": assigned, "weights": weighted},
        workdir=windows.workdir,
        work=work,
    )


def _requests(terms: Mapping[int, str], texts: Mapping[int, Sequence[str]], generator: str) -> pa.Table:
    rows = []
    for leaf in sorted(terms):
        excerpts = [found for text in texts.get(leaf, ()) if (found := titles.excerpt(text))][: titles.NUM_EXCERPTS]
        key = titles.answer_key(generator, terms[leaf], excerpts)
        rows.append({"key": key, "leaf": leaf, "terms": terms[leaf], "excerpts": excerpts})
    return pa.Table.from_pylist(rows, schema=TITLE_REQUESTS)


def _refuse_dead(failed: Mapping[int, Failure], num_asked: int) -> None:
    """Raise if so many prompts failed by the server's fault that it must be down. A step marked done would never retry them.

    Raises:
        RunError: more than one prompt, and more than a tenth of them, failed by the server's fault.
    """
    down = [failure.error for failure in failed.values() if failure.kind == "backend"]
    if len(down) > max(1, _MOST_FAILED * num_asked):
        raise RunError(
            f"titles: {len(down):,} of {num_asked:,} prompts have no answer ({down[0]}); start or mend rephrase.model or its "
            "endpoint and run again, answers are kept; or set rephrase.titles: false, to do without titles"
        )
