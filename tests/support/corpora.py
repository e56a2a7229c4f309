"""Small corpora on disk, and the configs of runs on them."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

TOPICS = {
    "cooking": "flour butter sugar oven bake dough whisk cream salt pepper onion garlic simmer boil pan recipe vanilla yeast",
    "law": "court contract party clause liability plaintiff defendant statute appeal judge ruling tort evidence counsel breach",
    "space": "orbit planet rocket telescope galaxy star lunar astronaut gravity comet solar satellite nebula launch mission",
    "music": "chord melody rhythm guitar violin orchestra tempo concert song singer album harmony piano drum lyric bass",
}


def make_topic_documents(topic: str, count: int, seed: int = 0, words: int = 120) -> list[dict[str, Any]]:
    """Return documents whose words belong to one topic, so that the mixture of a corpus is known."""
    chooser = random.Random(f"{topic}-{seed}")
    vocabulary = [*TOPICS[topic].split(), "the", "and", "with", "for", "from", "into"]
    return [
        {"id": f"{topic}-{seed}-{i}", "text": " ".join(chooser.choices(vocabulary, k=words)) + ".", "source": topic}
        for i in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_warc(path: Path, *pages: tuple[Any, ...], cut: int = 0, wet: bool = False, identified: bool = True) -> Path:
    """Write a WARC or WET file: a `warcinfo` record, then a record for each page (url, content, content type, HTTP headers ...).

    The last `cut` bytes of the file are missing. With `identified`, records have a WARC-Identified-Payload-Type header, as in
    newer crawls; without it, the only content type is the one in the HTTP headers.
    """
    records = [b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 4\r\n\r\ninfo\r\n\r\n"]
    for url, content, kind, *lines in pages:
        http = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Type: {kind}", *lines])
        body = content if wet else http.encode() + b"\r\n\r\n" + content
        head = {
            "WARC-Type": "conversion" if wet else "response",
            "WARC-Record-ID": f"<urn:uuid:{url}>",
            "WARC-Target-URI": url,
            "WARC-Date": "2026-11-20T00:00:00Z",
            **({"WARC-Identified-Payload-Type": kind.partition(";")[0]} if identified else {}),
            "Content-Type": kind if wet else "application/http; msgtype=response",
            "Content-Length": str(len(body)),
        }
        header_lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        records.append(b"WARC/1.0\r\n" + header_lines.encode() + b"\r\n" + body + b"\r\n\r\n")
    data = b"".join(gzip.compress(record) if path.suffix == ".gz" else record for record in records)
    path.write_bytes(data[: len(data) - cut])
    return path


def make_topic_config(folder: Path, documents: int) -> dict[str, Any]:
    """Write documents with URLs about each topic, and return the config of a small run on them with several shards."""
    for topic in TOPICS:
        write_jsonl(
            folder / f"{topic}.jsonl", [{**row, "url": f"http://{row['id']}"} for row in make_topic_documents(topic, documents)]
        )
    return {
        "workdir": str(folder / "run"),
        "generalist": {"paths": [str(folder / "*.jsonl")]},
        "specialists": {"legal": {"paths": [write_jsonl(folder / "law.json", make_topic_documents("law", 20, seed=1))]}},
        "window": {"tokens": 64},
        "embed": {"model": "lsi", "dim": 8},
        "cluster": {"branching": 4, "depth": 1, "min_windows": 16},
        "sample": {"budget_tokens": 20_000, "shard_bytes": 20_000},
    }


def read_shard_bytes(workdir: str | Path) -> dict[str, bytes]:
    """Return the contents of the published shards and their manifest, by file name."""
    return {path.name: path.read_bytes() for path in sorted((Path(workdir) / "shards").iterdir())}
