"""Compare the sha256 of every shard at two commits, for every estimator and sampling method: no refactoring may change it.

    CRISPWRAP_CORPORA=../shared/corpora python benchmarks/same_shards.py BASE [--config FILE]...

Each commit is checked out into a temporary folder, and `jobs/sample.py` runs there, on the same machine, so that the hardware is
the same. By default, the configs are the demo's and one for the shared corpora. Exits with status 1 if a digest differs.
"""

import argparse
import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from corpus import corpus_file

ESTIMATORS = ("density", "dsir", "classifier", "nearest", "crisp", "natural", "top-cluster", "shuffled")
DRAWS = ("rounded", "multinomial")
CORPORA = """
workdir: unused
generalist: {{paths: ["{generalist}"], limit: 3000}}
specialists:
  recipes: {{paths: ["{recipes}"], limit: 150}}
  legal: {{paths: ["{legal}"], limit: 30, share: 2}}
prepare: {{part_documents: 500}}
dedup: {{}}
decontaminate: {{held_out: {{recipes: {{paths: ["{held_out}"], limit: 50}}}}}}
window: {{tokens: 256}}
embed: {{model: "static:bundled:all-MiniLM-L6-v2"}}
cluster: {{branching: 8, depth: 2}}
sample: {{budget_tokens: 150_000, shard_bytes: 200_000}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="commit to compare with")
    parser.add_argument("--head", default="HEAD", help="commit to compare")
    parser.add_argument("--config", action="append", help="config to run; can be given several times")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        configs = [Path(path).resolve() for path in args.config or []] or [
            Path("configs/demo.yaml").resolve(),
            write_corpora(scratch),
        ]
        digests = [
            digest_shards(commit, configs, Path(scratch) / name) for name, commit in (("base", args.base), ("head", args.head))
        ]
    base, head = digests
    different = sorted(name for name in base.keys() | head.keys() if base.get(name) != head.get(name))
    for name in different:
        print(f"differs: {name}: {base.get(name)} at {args.base}, {head.get(name)} at {args.head}")
    print(f"{len(head) - len(different)} of {len(head)} files have the same sha256 as at {args.base}")
    sys.exit(bool(different) or not head)


def write_corpora(scratch: str) -> Path:
    """Write a config for the shared corpora, with two specialists, decontamination, near-duplicates and the static embedder."""
    files = {
        "generalist": corpus_file(),
        "recipes": corpus_file("specialists/recipes/sample.jsonl.zst"),
        "legal": corpus_file("specialists/legal_contracts/sample.jsonl.zst"),
        "held_out": corpus_file("specialists/recipes/test.jsonl.zst"),
    }
    path = Path(scratch) / "corpora.yaml"
    path.write_text(CORPORA.format(**files))
    return path


def digest_shards(commit: str, configs: list[Path], folder: Path) -> dict[str, str]:
    """Return the sha256 of each shard at this commit, by config, estimator, sampling method and name."""
    checkout = folder / "checkout"
    subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(checkout), commit], check=True)
    try:
        return {
            f"{config.stem} {estimator} {draw} {name}": digest
            for config, estimator, draw in itertools.product(configs, ESTIMATORS, DRAWS)
            for name, digest in run_and_digest(checkout, config, folder / config.stem, estimator, draw).items()
        }
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(checkout)], check=True)


def run_and_digest(checkout: Path, config: Path, workdir: Path, estimator: str, draw: str) -> dict[str, str]:
    """Return the sha256 of each shard of one run, or the exit status if the config is rejected; exit if the run fails."""
    settings = [f"workdir={workdir}", f"weights.estimator={estimator}", f"sample.draw={draw}"]
    command = [sys.executable, str(checkout / "jobs" / "sample.py"), "--config", str(config)]
    done = subprocess.run(
        [*command, *itertools.chain.from_iterable(("--set", one) for one in settings)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
    )
    if done.returncode == 2:  # for example, a budget that the cluster of `top-cluster` cannot fill
        return {"exit status": "2"}
    if done.returncode:
        sys.exit(f"{config.name}, {estimator}, {draw} in {checkout}: exit status {done.returncode}\n{done.stderr}")
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((workdir / "shards").glob("shard-*.parquet"))
    }


if __name__ == "__main__":
    main()
