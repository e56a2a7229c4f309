"""Title the named clusters: a language model gets the terms of each cluster and excerpts of its windows.

Titles are for people only; nothing is computed from them. So it is not an error if a model gives no usable title, and the settings
of titles are not part of the fingerprint of any later step.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import Config
from pipeline.engine import Engine
from pipeline.engine.llm_io import Failure
from pipeline.errors import RunError
from pipeline.execution.step import Step
from pipeline.rewriting import language_model, titles
from pipeline.rewriting.answers import ANSWERS_FOLDER
from pipeline.rewriting.endpoint import check_endpoint
from pipeline.stages.request_sender import RequestSender
from pipeline.stages.weights import read_leaf_texts
from pipeline.storage import Folder
from pipeline.tables import TITLE_REQUESTS, TITLES

_GROUP = "titles"
# Share of the prompts that may fail because of the server (one always may). With more, the server must be down.
_MAX_FAILED_SHARE = 0.1


def titles_step(config: Config, windows: Step, assigned: Step, weighted: Step) -> Step:
    """Build the step that titles the leaves of `names.parquet` from generalist text.

    Raises:
        UserError: the model or its endpoint is not available.
    """
    settings = config.rephrase
    assert settings
    if settings.endpoint:
        check_endpoint(settings.endpoint)
    model = language_model.resolve_model(settings)
    generator = language_model.fingerprint_generator(settings, model)

    def work(engine: Engine, folder: Folder) -> dict[str, Any]:
        names = weighted.folder.read_table("names.parquet").to_pylist()
        terms = {row["leaf"]: row["terms"] for row in names}
        hashed_texts = read_leaf_texts(engine, windows, assigned, list(terms), seed=config.seed, title="excerpts")
        texts = {leaf: [text for _, text in of_leaf] for leaf, of_leaf in hashed_texts.items()}
        requests = _build_requests(terms, texts, generator)
        requests_folder = folder.child("requests")
        requests_folder.write_table(f"{_GROUP}.parquet", requests, TITLE_REQUESTS, {"rows": len(requests)})
        # A separate store: titles from a server do not show that it ever rewrote a passage (`RequestSender.send`).
        store = windows.workdir.child(f"{ANSWERS_FOLDER}/{generator}/{_GROUP}")
        sender = RequestSender(engine, settings, model, titles.build_prompts, requests_folder, store)
        index, failures = sender.send([_GROUP], title="titles", max_bad_fraction=1.0)
        _check_server_alive(failures, len(requests))
        answered = requests.filter(pa.array(~np.isin(requests["key"].to_numpy(), np.array(sorted(failures), np.uint64))))
        answers = index.read_answers(store, answered["key"].to_numpy())
        results = {
            row["leaf"]: titles.extract_title(answer["text"], answer["finish_reason"], row["terms"], row["excerpts"])
            for row, answer in zip(answered.to_pylist(), answers.to_pylist(), strict=True)
        }
        titled = {leaf: result.title for leaf, result in results.items() if result.title}
        table = pa.table({"leaf": list(titled), "title": list(titled.values())}, schema=TITLES)
        folder.write_table("titles.parquet", table, TITLES)
        untitled = Counter(result.reason for result in results.values() if result.reason)
        untitled["no_answer"] += len(requests) - len(answered)
        return {
            "model": settings.model,
            "revision": model.revision,
            "sampling": settings.sampling,
            "clusters": len(requests),
            "titles": len(titled),
            "untitled": {reason: untitled[reason] for reason in titles.REASONS if untitled[reason]},
        }

    return Step(
        stage="titles",
        version=1,
        settings={"generator": generator, "wording": titles.hash_wording(), "seed": config.seed},
        inputs={"windows": windows, "assignments": assigned, "weights": weighted},
        workdir=windows.workdir,
        work=work,
    )


def _build_requests(terms: Mapping[int, str], texts: Mapping[int, Sequence[str]], generator: str) -> pa.Table:
    rows = []
    for leaf in sorted(terms):
        excerpts = [excerpt for text in texts.get(leaf, ()) if (excerpt := titles.sanitise_excerpt(text))][: titles.NUM_EXCERPTS]
        key = titles.compute_answer_key(generator, terms[leaf], excerpts)
        rows.append({"key": key, "leaf": leaf, "terms": terms[leaf], "excerpts": excerpts})
    return pa.Table.from_pylist(rows, schema=TITLE_REQUESTS)


def _check_server_alive(failures: Mapping[int, Failure], num_requests: int) -> None:
    """Raise if so many prompts failed because of the server that it must be down. A step marked done would never retry them.

    Raises:
        RunError: more than one prompt, and more than a tenth of them, failed because of the server.
    """
    errors = [failure.error for failure in failures.values() if failure.kind == "backend"]
    if len(errors) > max(1, _MAX_FAILED_SHARE * num_requests):
        raise RunError(
            f"titles: {len(errors):,} of {num_requests:,} prompts have no answer ({errors[0]}); check rephrase.model or its "
            "endpoint and run again (answers are kept), or set rephrase.titles: false"
        )
