"""Kill drivers, workers, raylets and nodes of a real cluster at random times, and compare the shards with an undisturbed run's.

Three nodes on this machine run all stages, including near-duplicates, held-out text, titles and rewrites from an endpoint, and an
ending. Each kill happens in a randomly chosen step. When a run is done, its workdir is deleted and the run starts again, until the
requested number of kills is reached. If the driver was killed or a job failed, the same command is started again. Prints the number
of kills of each kind, the stages in which they happened, and whether all shards had the same bytes.

    python benchmarks/chaos.py --kills 100
"""

import argparse
import itertools
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.corpora import read_shard_bytes
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.nodes import KILL_KINDS, Kill, LocalCluster, make_all_stages_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    killed: list[Kill] = []
    gave_up = runs = different = 0
    kinds = itertools.cycle(KILL_KINDS)
    with tempfile.TemporaryDirectory(prefix="chaos") as name, FakeEndpoint() as fake, LocalCluster(3, seed=args.seed) as nodes:
        folder = Path(name)
        config = make_all_stages_config(folder, fake.url)
        file, workdir = folder / "run.yaml", Path(config["workdir"])
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        if nodes.start(file, folder / "clean.log").wait():
            sys.exit((folder / "clean.log").read_text(encoding="utf-8", errors="replace"))
        clean = read_shard_bytes(workdir)
        while len(killed) < args.kills:
            shutil.rmtree(workdir)
            some = list(itertools.islice(kinds, min(12, args.kills - len(killed))))
            log = folder / f"{runs}.log"
            of_run, stopped = nodes.run_with_kills(file, log, some, max_pause_s=3.0)
            same = read_shard_bytes(workdir) == clean
            killed, gave_up, runs, different = killed + of_run, gave_up + stopped, runs + 1, different + (not same)
            print(f"run {runs}: {len(of_run)} kills, {len(killed)} in total, {'same' if same else 'DIFFERENT'} bytes", flush=True)
    for kind in KILL_KINDS:
        print(f"{kind:8} {sum(kill.kind == kind for kill in killed):4}  {_stages(killed, kind)}")
    print(f"{runs} runs, {runs - different} with the bytes of the undisturbed run; {gave_up} jobs failed and were started again")
    sys.exit(1 if different else 0)


def _stages(killed: list[Kill], kind: str) -> str:
    stages = Counter(kill.stage for kill in killed if kill.kind == kind)
    return ", ".join(f"{stage} {count}" for stage, count in stages.most_common())


if __name__ == "__main__":
    main()
