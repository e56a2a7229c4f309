"""Each export read back with the trainer's own library: the same rows, and disjoint complete shares for 1, 2 and 3 ranks."""

import gc
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ConfigError, InputError
from pipeline.execution.step import Step
from pipeline.exporting.catalogue import FORMATS
from pipeline.graph import runner
from pipeline.graph.build import build_graph
from pipeline.stages.publish import is_published, publish_shards
from pipeline.storage import Folder
from tests.support.corpora import make_topic_config
from tests.support.processes import ROOT, free_port, make_torchvision_stub_environment
from tests.support.table_readers import assert_same_rows, list_folder_readers, list_glob_readers, list_parquet_only_readers

# Trainers' libraries leave files open for the garbage collector.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]
RANKS = (1, 2, 3)
EOS = "[SEP]"


@pytest.fixture(scope="module")
def finished_config(tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> dict[str, Any]:
    """The config of a finished run with several shards."""
    config = make_topic_config(tmp_path_factory.mktemp("exports"), 80)
    runner.curate(config)
    return config


@pytest.fixture(scope="module")
def rows(finished_config: dict[str, Any]) -> list[dict[str, Any]]:
    shards = build_graph(finished_config).shards
    found = [row for name in shards.names(".parquet") for row in shards.read_table(name).to_pylist()]
    assert len(shards.names(".parquet")) >= 4
    assert len({row["id"] for row in found}) == len(found) > 200
    return found


def token_ids(tokenizer: str, texts: list[str]) -> list[tuple[int, ...]]:
    """With the tokenizers library: the ids of each text, and the token at its end."""
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(tokenizer)
    fast.no_truncation()
    fast.no_padding()
    end = fast.token_to_id(EOS)
    return [(*fast.encode(text, add_special_tokens=False).ids, end) for text in texts]


def write_export(config: dict[str, Any], to: str, output: Path, **settings: Any) -> Step:
    step, folder = runner.export(config, to=to, output=str(output), **settings)
    assert folder.url == str(output)
    return step


def check_shares(read: Callable[[int, int], Iterator[Any]], expected: list[Any]) -> None:
    """Check that the ranks read disjoint shares, and together everything once."""
    for world_size in RANKS:
        parts = [list(read(rank, world_size)) for rank in range(world_size)]
        together = Counter(item for part in parts for item in part)
        assert together == Counter(expected), f"{world_size} ranks"


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    """Close the files that a test leaves open before the next test starts."""
    yield
    gc.collect()


def test_shards_are_read_by_parquet_readers(finished_config: dict[str, Any], rows: list[dict[str, Any]], tmp_path: Path) -> None:
    shards = Path(build_graph(finished_config).shards.path)
    assert_same_rows(list_folder_readers(shards, tmp_path), rows)
    assert_same_rows(list_glob_readers(shards, tmp_path), rows)


def test_a_parquet_export_is_read_by_parquet_readers(
    finished_config: dict[str, Any], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_export(finished_config, "huggingface", tmp_path / "hf")
    data, cache = tmp_path / "hf" / "data", tmp_path / "cache"
    for readers in (list_folder_readers, list_glob_readers, list_parquet_only_readers):
        assert_same_rows(readers(data, cache), rows)
    # The dataset card is read by `datasets` and the hub only.
    assert_same_rows({"datasets": list_folder_readers(tmp_path / "hf", cache)["datasets"]}, rows)


def test_shards_published_by_an_earlier_version_stay_and_their_manifest_is_renamed(
    finished_config: dict[str, Any],
) -> None:
    planned = build_graph(finished_config)
    shards = Path(planned.shards.path)
    before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in shards.iterdir() if path.suffix == ".parquet"}
    manifest = (shards / "_manifest.json").read_bytes()
    (shards / "_manifest.json").rename(shards / "manifest.json")
    outputs = {path: path.stat().st_mtime_ns for step in planned.steps for path in Path(step.folder.path).rglob("*")}
    runner.curate(finished_config)
    assert {path: path.stat().st_mtime_ns for path in outputs} == outputs
    assert {path.name: (path.read_bytes(), path.stat().st_ino) for path in shards.glob("*.parquet")} == before
    assert sorted(path.name for path in shards.iterdir()) == ["_manifest.json", *sorted(before)]
    assert (shards / "_manifest.json").read_bytes() == manifest


@pytest.mark.parametrize("former", ["of this run", "of another"])
def test_publishing_resumes_after_a_kill_at_any_write(
    finished_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, former: str
) -> None:
    """Killed before each write in turn; the folder first contains what an earlier version published."""
    corpus, shards = build_graph(finished_config).shards_step, tmp_path / "shards"
    shutil.copytree(build_graph(finished_config).shards.path, shards)
    expected = {path.name: path.read_bytes() for path in shards.iterdir()}
    manifest = json.loads(expected["_manifest.json"])
    if former == "of another":
        (shards / "shard-00000.parquet").write_bytes(b"of another")
        manifest |= {"fingerprint": "0" * 16, "shards": [{**manifest["shards"][0], "name": "shard-99999.parquet"}]}
        (shards / "shard-99999.parquet").write_bytes(b"of another")
    (shards / "manifest.json").write_text(json.dumps(manifest))
    (shards / "_manifest.json").unlink()
    folder, calls = Folder(str(shards)), 0

    class KillError(Exception):
        pass

    def counted(method: Any) -> Any:
        def call(self: Folder, *arguments: Any) -> Any:
            nonlocal calls
            calls -= 1
            if calls < 0:
                raise KillError
            return method(self, *arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("link", "remove", "write_json"):
            patch.setattr(Folder, name, counted(getattr(Folder, name)))
        for number in range(100):
            calls = number
            assert not is_published(corpus, folder)
            try:
                publish_shards(corpus, folder)
            except KillError:
                for name in ("manifest.json", "_manifest.json"):  # a manifest lists only existing files
                    named = (folder.read_json(name) or {"shards": []})["shards"]
                    assert all(folder.exists(shard["name"]) for shard in named)
            else:
                break
    assert number >= 2
    assert is_published(corpus, folder)
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == expected


def test_huggingface_is_read_by_datasets(finished_config: dict[str, Any], rows: list[dict[str, Any]], tmp_path: Path) -> None:
    from datasets import load_dataset
    from datasets.distributed import split_dataset_by_node

    write_export(finished_config, "huggingface", tmp_path / "hf")
    data = load_dataset(str(tmp_path / "hf"), split="train", streaming=True)

    def read(rank: int, world_size: int) -> Iterator[tuple[str, str]]:
        for row in split_dataset_by_node(data, rank=rank, world_size=world_size):
            yield row["id"], row["text"]

    check_shares(read, [(row["id"], row["text"]) for row in rows])
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert f"| rows | {len(rows):,} |" in card
    from huggingface_hub import DatasetCard

    assert DatasetCard(card).data.to_dict()["configs"][0]["data_files"][0]["split"] == "train"


def test_jsonl_and_webdataset_are_read(finished_config: dict[str, Any], rows: list[dict[str, Any]], tmp_path: Path) -> None:
    import webdataset
    import zstandard

    write_export(finished_config, "jsonl", tmp_path / "jsonl")
    lines = [
        line
        for path in sorted((tmp_path / "jsonl").glob("*.zst"))
        for line in zstandard.decompress(path.read_bytes(), 1 << 26).splitlines()
    ]
    assert [json.loads(line) for line in lines] == [{**row, "metadata": json.loads(row["metadata"])} for row in rows]

    write_export(finished_config, "webdataset", tmp_path / "tars")
    tars = sorted(str(path) for path in (tmp_path / "tars").glob("*.tar"))

    def read(rank: int, world_size: int) -> Iterator[tuple[str, str]]:
        mine = tars[rank::world_size]
        for item in webdataset.WebDataset(mine, shardshuffle=False) if mine else ():
            yield json.loads(item["json"])["id"], item["txt"].decode()

    check_shares(read, [(row["id"], row["text"]) for row in rows])


@pytest.mark.filterwarnings("ignore::UserWarning")  # about missing GPU libraries
def test_megatron_is_read_by_megatron(
    finished_config: dict[str, Any], rows: list[dict[str, Any]], tokenizer: str, tmp_path: Path
) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    step = write_export(finished_config, "megatron", tmp_path / "meg", tokenizer=tokenizer, eos_token=EOS)
    expected = token_ids(tokenizer, [row["text"] for row in rows])
    assert max(map(len, expected)) > 16
    paths = [line.split() for line in (tmp_path / "meg" / "data_path.txt").read_text().splitlines()]
    found: list[tuple[int, ...]] = []
    for weight, prefix in paths:
        dataset = IndexedDataset(str(tmp_path / "meg" / prefix))
        of_shard = [tuple(dataset[i].tolist()) for i in range(len(dataset))]
        assert float(weight) == pytest.approx(sum(map(len, of_shard)) / sum(map(len, expected)), abs=1e-6)
        assert dataset.document_indices.tolist() == list(range(len(of_shard) + 1))
        found += of_shard
    assert found == expected
    assert step.manifest["tokens"] == sum(map(len, expected))
    indexed = [IndexedDataset(str(tmp_path / "meg" / prefix)) for _, prefix in paths]

    def read(rank: int, world_size: int) -> Iterator[tuple[int, ...]]:
        from torch.utils.data import ConcatDataset, DistributedSampler

        together: Any = ConcatDataset(indexed)  # type: ignore[arg-type]
        mine = DistributedSampler(together, world_size, rank, shuffle=False, drop_last=False)
        return (tuple(together[i].tolist()) for i in list(mine)[: len(range(rank, len(together), world_size))])

    check_shares(read, expected)


def test_nanotron_is_read_by_datatrove(
    finished_config: dict[str, Any], rows: list[dict[str, Any]], tokenizer: str, tmp_path: Path
) -> None:
    from datatrove.utils.dataset import DatatroveFolderDataset

    write_export(finished_config, "nanotron", tmp_path / "ds", tokenizer=tokenizer, eos_token=EOS)
    expected = [token for ids in token_ids(tokenizer, [row["text"] for row in rows]) for token in ids]
    dataset = DatatroveFolderDataset(str(tmp_path / "ds"), seq_len=7, shuffle=False)
    whole = [tuple(dataset[i]["input_ids"].tolist()) for i in range(len(dataset))]
    by_file = [len(ids) for ids in whole]
    assert set(by_file) == {8}
    # Sequences of 8 tokens do not overlap; each file contributes all its complete ones.
    flat = [token for ids in whole for token in ids]
    assert len(flat) >= len(expected) - 8 * 20
    texts = " ".join(map(str, expected))
    assert all(" ".join(map(str, ids)) in texts for ids in whole)
    metadata = next((tmp_path / "ds").glob("*.metadata")).read_text()
    assert metadata.splitlines()[0] == f"{tokenizer}|2"

    def read(rank: int, world_size: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        return ((i, whole[i]) for i in range(rank, len(dataset), world_size))

    check_shares(read, list(enumerate(whole)))


READ_MDS = """
import json, sys
from streaming import StreamingDataset
data = StreamingDataset(local=sys.argv[1], shuffle=False, batch_size=1)
print(json.dumps([(data[i]["id"], data[i]["text"]) for i in range(len(data))]))
"""


@pytest.fixture(scope="module")
def mds(finished_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Exports by one worker and by two, in their own processes (`make_torchvision_stub_environment`)."""
    folder = tmp_path_factory.mktemp("mds")
    config = folder / "run.yaml"
    for workers in (1, 2):
        config.write_text(yaml.safe_dump(finished_config | {"engine": {"address": "local", "workers": workers}}))
        job = [sys.executable, "jobs/export.py", "--config", str(config), "--to", "mds", "--output", str(folder / str(workers))]
        done = subprocess.run(job, cwd=ROOT, env=make_torchvision_stub_environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        step = build_graph(finished_config).workdir.child("export")
        for name in step.names():
            step.child(name).remove_all()
    return [folder / "1", folder / "2"]


def test_mds_is_read_by_streaming(mds: list[Path], rows: list[dict[str, Any]]) -> None:
    command = [sys.executable, "-c", READ_MDS, str(mds[0])]
    read = subprocess.run(command, env=make_torchvision_stub_environment(), capture_output=True, text=True, check=True)
    assert [tuple(one) for one in json.loads(read.stdout)] == [(row["id"], row["text"]) for row in rows]
    one, two = ({path.relative_to(out): path.read_bytes() for path in out.rglob("*.zstd")} for out in mds)
    assert one == two != {}


READ_MDS_AS_A_RANK = """
import json, sys
from streaming import StreamingDataset
data = StreamingDataset(local=sys.argv[1], shuffle=False, batch_size=1)
print(json.dumps([row["id"] for row in data]))
"""


def test_mds_is_shared_by_ranks(mds: list[Path], rows: list[dict[str, Any]]) -> None:
    environment = make_torchvision_stub_environment(MASTER_ADDR="127.0.0.1")
    for world_size in (2, 3):
        port = str(free_port())
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", READ_MDS_AS_A_RANK, str(mds[1])],
                env=environment
                | {"MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world_size)),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for rank in range(world_size)
        ]
        found = Counter(identifier for rank in ranks for identifier in json.loads(rank.communicate()[0]))
        assert set(found) == {row["id"] for row in rows}
        # Every rank gets equally many rows: if they cannot be divided evenly, streaming repeats some.
        assert sum(found.values()) == -(-len(rows) // world_size) * world_size


def test_an_export_is_the_same_for_any_number_of_workers_and_after_a_kill(
    finished_config: dict[str, Any], tokenizer: str, tmp_path: Path
) -> None:
    for to, form in FORMATS.items():
        if to == "mds":
            continue  # above
        settings = {"tokenizer": tokenizer, "eos_token": EOS} if form.tokenized else {}
        step = write_export(finished_config, to, tmp_path / to, **settings)
        before = {name: step.folder.read_bytes(name) for name in step.folder.files() if name != "usage.json"}
        for name in ["manifest.json", *step.manifest["shards"][1]["files"]]:
            step.folder.remove(name)
        again = write_export(finished_config | {"engine": {"workers": 1}}, to, tmp_path / to, **settings)
        assert {name: again.folder.read_bytes(name) for name in again.folder.files() if name != "usage.json"} == before


def test_a_folder_with_other_content_is_not_changed(finished_config: dict[str, Any], tokenizer: str, tmp_path: Path) -> None:
    write_export(finished_config, "jsonl", tmp_path / "out")
    with pytest.raises(InputError, match=r"contains an export of another run or with other settings \(jsonl\); name another"):
        write_export(finished_config, "webdataset", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match=r"contains files that are not an export \(thesis.txt\)"):
        write_export(finished_config, "jsonl", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_interrupted_export_resumes(finished_config: dict[str, Any], tmp_path: Path) -> None:
    step = write_export(finished_config, "jsonl", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    # First as an earlier version left the folder, then as a kill leaves it.
    (tmp_path / "out" / "_manifest.json").rename(tmp_path / "out" / "manifest.json")
    write_export(finished_config, "jsonl", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / "_manifest.json").unlink()
    (tmp_path / "out" / "shard-00001.jsonl.zst").unlink()
    (tmp_path / "out" / "_begun.json").write_text(json.dumps({"fingerprint": step.fingerprint}))
    write_export(finished_config, "jsonl", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_an_output_that_cannot_be_written_is_found_first(topics: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for output, message in ((tmp_path / "file", "is a file; name a folder"), (tmp_path / "file" / "below", "cannot be written")):
        with pytest.raises(InputError, match=f"--output {output} {message}"):
            runner.export(topics, to="jsonl", output=str(output))
    assert not Path(topics["workdir"]).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "megatrn"}, "no such format (did you mean megatron?)"),
        ({"to": "megatron"}, "choose a tokenizer with --tokenizer"),
        ({"to": "jsonl", "eos_token": "x"}, "does not accept --tokenizer or --eos"),
        ({"to": "megatron", "tokenizer": "/nowhere/at-all"}, "--tokenizer /nowhere/at-all is neither a tokenizer.json"),
    ],
)
def test_errors_in_an_export_are_found_before_anything_runs(topics: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        runner.export(topics, **settings)
    assert message in str(raised.value)


def test_an_unknown_token_and_a_missing_library(topics: dict[str, Any], tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--eos '<eos>' is not a token of .*; choose one of its special tokens: \[PAD\]"):
        runner.export(topics, to="megatron", tokenizer=tokenizer, eos_token="<eos>")
    monkeypatch.setitem(sys.modules, "streaming", None)
    with pytest.raises(ConfigError, match=r'pip install "crispwrap\[mds\]"'):
        runner.export(topics, to="mds")


def test_the_job(finished_config: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(finished_config | {"engine": {"address": "local"}}))
    job = [sys.executable, "jobs/export.py", "--config", str(config), "--to"]
    done = subprocess.run([*job, "jsonl", "--output", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"jsonl: {tmp_path / 'out'}" in done.stdout
    wrong = subprocess.run([*job, "parquet"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
