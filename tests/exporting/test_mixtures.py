"""Groups of text and their weights: against the allocation, and sampled by each trainer's own library."""

import gc
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from scipy.stats import chisquare

from pipeline.errors import ConfigError
from pipeline.exporting.mixtures import MIXTURE_FORMATS
from pipeline.graph import runner
from pipeline.graph.build import build_graph
from pipeline.mixture.tree_shape import find_leaf_nodes
from pipeline.mixture.weighted_groups import GroupCounts, assign_bands, find_nodes_at, group_keys, split_key
from pipeline.storage import Folder
from pipeline.tables import GROUPED
from tests.support.corpora import make_topic_config
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.processes import ROOT, make_torchvision_stub_environment
from tests.support.table_readers import assert_same_rows, list_folder_readers, list_parquet_only_readers
from tests.support.trees import make_random_tree

# Trainers' libraries leave files open for the garbage collector.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]
NUM_SAMPLES = 20_000
EOS = "[SEP]"


@given(st.lists(st.floats(0, 100), min_size=1))
def test_bands_are_powers_of_two_above_one_epoch(epochs: list[float]) -> None:
    for e, band in zip(epochs, assign_bands(np.array(epochs)), strict=True):
        assert band == 0 if e <= 1 else 2.0 ** (band - 1) < e * (1 + 1e-12) <= 2.0**band * (1 + 1e-9)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(0, 4))
def test_the_node_of_a_leaf_at_a_level_is_its_ancestor(seed: int, level: int) -> None:
    tree = make_random_tree(np.random.default_rng(seed), depth=3)
    for leaf, node in enumerate(find_nodes_at(tree, level)):
        up = int(find_leaf_nodes(tree)[leaf])
        while tree.level_V[up] > level:
            up = int(tree.parent_V[up])
        assert node == up


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 300), max_size=4))
def test_groups_counted_in_parts_equal_those_of_the_whole(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    node_N, epochs_N, tokens_N = rng.integers(0, 4, 300), rng.exponential(1.0, 300) ** 2, rng.integers(1, 500, 300)
    epochs_N[rng.random(300) < 0.2] = 0
    key_N = group_keys(node_N, epochs_N)
    whole = GroupCounts.of_part(key_N, epochs_N, tokens_N)
    edges = sorted({0, 300, *cuts})
    slices = [slice(a, b) for a, b in pairwise(edges)]
    rng.shuffle(slices)
    parts = [GroupCounts.of_part(key_N[part], epochs_N[part], tokens_N[part]) for part in slices]
    added = GroupCounts.combine([GroupCounts.combine(parts[:1]), *parts[1:]])
    for name in ("key_G", "max_epochs_G", "tokens_G", "documents_G"):
        np.testing.assert_array_equal(getattr(added, name), getattr(whole, name))
    for row, key in enumerate(whole.key_G):
        node, band = split_key(int(key))
        inside = (node_N == node) & (assign_bands(epochs_N) == band) & (epochs_N > 0)
        assert whole.allocated_documents_G[row] == pytest.approx(epochs_N[inside].sum(), rel=1e-4)
        assert whole.allocated_tokens_G[row] == pytest.approx((epochs_N * tokens_N)[inside].sum(), rel=1e-4)
        assert whole.max_epochs_G[row] == epochs_N[inside].max()
        if band:  # repeats each window at most twice as often as allocated
            assert whole.certain_epochs_G[row] <= 2 * epochs_N[inside].min()


@pytest.fixture(scope="module")
def finished_config(tmp_path_factory: pytest.TempPathFactory, ray_session: Any) -> dict[str, Any]:
    """The config of a finished run, with repeated specialist text and natural text."""
    del ray_session
    config = make_topic_config(tmp_path_factory.mktemp("mixtures"), 120)
    config["cluster"]["depth"] = 2
    config["weights"] = {"natural_share": 0.4}
    config["sample"]["budget_tokens"] = 60_000
    runner.curate(config)
    return config


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    """Close the files that a test leaves open before the next test starts."""
    yield
    gc.collect()


def write_mixture(config: dict[str, Any], mixture: str, output: Path, **more: Any) -> dict[str, Any]:
    """Write a mixture; return the content of its `mixture.json`."""
    _, folder = runner.export_mixture(config, mixture=mixture, output=str(output), **more)
    assert folder.url == str(output)
    description: dict[str, Any] = json.loads((output / "mixture.json").read_text(encoding="utf-8"))
    assert sum(group["weight"] for group in description["groups"]) == pytest.approx(1)
    assert len(description["groups"]) >= 5
    assert any(group["passes"] > 1 for group in description["groups"])
    return description


def groups_by_id(folder: Path, description: dict[str, Any]) -> dict[str, str]:
    """The group of each document of a mixture in Parquet."""
    return {
        row["id"]: group["name"]
        for group in description["groups"]
        for file in group["files"]
        for row in Folder(str(folder)).read_table(file, ["id"]).to_pylist()
    }


def check_weights(sampled: Counter[str], description: dict[str, Any]) -> None:
    """Check that 20,000 samples follow the weights (chi-square test)."""
    total = sum(sampled.values())
    assert abs(total - NUM_SAMPLES) <= len(description["groups"])  # OLMo-core rounds each source
    expected = [total * group["weight"] for group in description["groups"]]
    assert chisquare([sampled[group["name"]] for group in description["groups"]], expected).pvalue > 0.01


@pytest.mark.parametrize("level", [0, 1, 2])
def test_groups_contain_each_window_once_in_proportion_to_the_allocation(
    finished_config: dict[str, Any], tmp_path: Path, level: int
) -> None:
    step, _ = runner.export_mixture(finished_config, mixture="huggingface", level=level, output=str(tmp_path / "out"))
    grouped = step.inputs["groups"]
    sampled = build_graph(finished_config).step("sample").folder
    draws, of_leaves = sampled.child("draws"), sampled.read_table("allocation.parquet")
    expected = {
        key: e
        for name in draws.names(".parquet")
        for key, e in zip(*draws.read_table(name, ["key", "expected"]).to_pydict().values(), strict=True)
    }
    seen: set[str] = set()
    for group in grouped.manifest["groups"]:
        rows = [row for file in group["files"] for row in grouped.folder.read_table(file["name"]).to_pylist()]
        assert len(rows) == group["documents"]
        assert seen.isdisjoint(row["id"] for row in rows)
        seen |= {row["id"] for row in rows}
        if not rows:
            continue
        epochs = np.array([row["epochs"] for row in rows])
        assert set(assign_bands(epochs)) == {0 if "-x" not in group["name"] else int(np.log2(int(group["name"].split("-x")[1])))}
        # What was kept, each by its chance: as many as are wanted over the passes of the one that is wanted most.
        passes = max(epochs.max(), 0.5)
        assert group["wanted_documents"] / passes == pytest.approx(len(rows), abs=5 * len(rows) ** 0.5 + 3)
    total = sum(group["wanted_tokens"] for group in grouped.manifest["groups"])
    assert total == pytest.approx(of_leaves["allocated_tokens"].to_numpy().sum(), rel=1e-4)
    assert sum(group["wanted_documents"] for group in grouped.manifest["groups"]) == pytest.approx(sum(expected.values()), rel=1e-4)
    nodes = {group["node"] for group in grouped.manifest["groups"]}
    assert nodes == {0} if level == 0 else len(nodes) > 3
    assert grouped.folder.read_table(grouped.folder.names(".parquet")[0]).schema.equals(GROUPED)


def test_datasets_samples_by_the_probabilities(finished_config: dict[str, Any], tmp_path: Path) -> None:
    """With the code in the README of the export."""
    description = write_mixture(finished_config, "huggingface", tmp_path / "hf")
    text = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("…", str(tmp_path / "hf")), names)
    sampled = list(islice(names["data"], NUM_SAMPLES))
    group_of = groups_by_id(tmp_path / "hf", description)
    check_weights(Counter(group_of[row["id"]] for row in sampled), description)
    # Other Parquet readers can read the folder of a group.
    group = description["groups"][0]
    rows = [row for file in group["files"] for row in Folder(str(tmp_path / "hf")).read_table(file).to_pylist()]
    for readers in (list_folder_readers, list_parquet_only_readers):
        assert_same_rows(readers(tmp_path / "hf" / group["name"], tmp_path / "cache"), rows)


SAMPLE_MDS = """
import json, sys, yaml
from streaming import Stream, StreamingDataset
streams = yaml.safe_load(open("streams.yaml"))["streams"]
data = StreamingDataset(
    streams=[Stream(**one) for one in streams.values()], epoch_size=int(sys.argv[1]), shuffle=True, batch_size=1
)
print(json.dumps([row["id"] for row in data]))
"""


def test_streaming_samples_by_the_proportions(finished_config: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(finished_config | {"engine": {"address": "local"}}))
    job = [sys.executable, "jobs/export.py", "--config", str(config), "--mixture", "mds", "--output", str(tmp_path / "mds")]
    done = subprocess.run(job, cwd=ROOT, env=make_torchvision_stub_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    description = json.loads((tmp_path / "mds" / "mixture.json").read_text(encoding="utf-8"))
    command = [sys.executable, "-c", SAMPLE_MDS, str(NUM_SAMPLES)]
    read = subprocess.run(
        command, cwd=tmp_path / "mds", env=make_torchvision_stub_environment(), capture_output=True, text=True, check=True
    )
    # The documents are the same as in the Hugging Face mixture, whose files show the group of each.
    group_of = groups_by_id(tmp_path / "hf", write_mixture(finished_config, "huggingface", tmp_path / "hf"))
    check_weights(Counter(group_of[identifier] for identifier in json.loads(read.stdout)), description)


@pytest.mark.filterwarnings("ignore::UserWarning")  # about missing GPU libraries
def test_megatron_samples_by_the_weights_of_the_data_path(finished_config: dict[str, Any], tokenizer: str, tmp_path: Path) -> None:
    from megatron.core.datasets.blended_dataset import BlendedDataset
    from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split, get_blend_from_list

    description = write_mixture(finished_config, "megatron", tmp_path / "meg", tokenizer=tokenizer, eos_token=EOS)
    words = (tmp_path / "meg" / "data_path.txt").read_text().split()
    prefixes, weights = get_blend_from_list(words)
    assert weights is not None

    class Sequences:
        """What BlendedDataset needs of a dataset: its split and its length."""

        index_split = Split.train

        def __init__(self, prefix: str) -> None:
            self.data = IndexedDataset(str(tmp_path / "meg" / prefix))
            self.unique_identifiers = {"prefix": prefix}

        def __len__(self) -> int:
            return 10 * NUM_SAMPLES

    config = BlendedMegatronDatasetConfig(random_seed=0, sequence_length=8)
    blended = BlendedDataset([Sequences(prefix) for prefix in prefixes], weights, NUM_SAMPLES, config)
    sampled = Counter(prefixes[number].split("/")[0] for number in blended.dataset_index.tolist())
    check_weights(sampled, description)
    for group in description["groups"]:  # the shares are of the trainer's tokens
        own = [Sequences(prefix).data for prefix in prefixes if prefix.startswith(f"{group['name']}/")]
        assert sum(int(data.sequence_lengths.sum()) for data in own) == group["tokens"]
    wanted = [group["tokens"] * group["passes"] for group in description["groups"]]
    assert [group["weight"] for group in description["groups"]] == pytest.approx([one / sum(wanted) for one in wanted], rel=1e-3)


@pytest.mark.filterwarnings("ignore::ImportWarning")  # from the cloud clients that it imports
def test_olmo_core_samples_by_the_target_ratios(finished_config: dict[str, Any], tokenizer: str, tmp_path: Path) -> None:
    from olmo_core.data.source_mixture import SourceMixtureDatasetConfig, SourceMixtureList
    from olmo_core.data.types import NumpyDatasetDType
    from tokenizers import Tokenizer

    description = write_mixture(finished_config, "olmo-core", tmp_path / "olmo", tokenizer=tokenizer, eos_token=EOS)
    sources = yaml.safe_load((tmp_path / "olmo" / "mixture.yaml").read_text())["sources"]
    fast = Tokenizer.from_file(tokenizer)
    fast.no_truncation()
    end = fast.token_to_id(EOS)
    for source, group in zip(sources, description["groups"], strict=True):
        ids = np.concatenate([np.fromfile(tmp_path / "olmo" / path, np.uint16) for path in source["paths"]])
        assert (ids == end).sum() == group["documents"]
        assert len(ids) == group["tokens"]
        source["paths"] = [str(tmp_path / "olmo" / path) for path in source["paths"]]
    config = SourceMixtureDatasetConfig(
        source_list=SourceMixtureList.from_dict({"sources": sources}),
        requested_tokens=NUM_SAMPLES,
        global_batch_size=4,
        render_tables=False,
        quiet=True,
    )
    mixture = config.build(npdtype=NumpyDatasetDType.uint16.as_np_dtype(), sequence_length=1)
    sampled = Counter({outcome.name: sum(path.tokens for path in outcome.path_tokens) for outcome in mixture.sources})
    check_weights(sampled, description)


def test_nanotron_and_levanter_files_contain_every_group(finished_config: dict[str, Any], tokenizer: str, tmp_path: Path) -> None:
    """Against the documented file formats; decision 0015 describes how they were sampled."""
    from datatrove.utils.dataset import DatatroveFolderDataset

    description = write_mixture(finished_config, "nanotron", tmp_path / "nano", tokenizer=tokenizer, eos_token=EOS)
    (stage,) = yaml.safe_load((tmp_path / "nano" / "mixture.yaml").read_text())["data_stages"]
    dataset = stage["data"]["dataset"]
    assert dataset["dataset_weights"] == [group["weight"] for group in description["groups"]]
    for folder, group in zip(dataset["dataset_folder"], description["groups"], strict=True):
        held = DatatroveFolderDataset(str(tmp_path / "nano" / folder), seq_len=3, recursive=False, token_size=2)
        assert group["tokens"] - 4 * len(group["files"]) <= 4 * len(held) <= group["tokens"]

    description = write_mixture(finished_config, "levanter", tmp_path / "lev")
    assert description["unit"] == "weights are shares of the sampled tokens, by the embedder's tokenizer"
    data = yaml.safe_load((tmp_path / "lev" / "mixture.yaml").read_text())["data"]
    assert data["train_weights"] == {group["name"]: group["weight"] for group in description["groups"]}
    assert min(data["train_weights"].values()) * data["mixture_block_size"] > 1  # otherwise Levanter's blocks never contain it
    for name, component in data["components"].items():
        held = [Folder(str(tmp_path / "lev")).read_table(url, ["text"]) for url in component["source"]["train_urls"]]
        (group,) = (group for group in description["groups"] if group["name"] == name)
        assert sum(map(len, held)) == group["documents"]


def test_a_mixture_is_the_same_for_any_number_of_workers_and_after_a_kill(
    finished_config: dict[str, Any], tokenizer: str, tmp_path: Path
) -> None:
    for name, mixture in MIXTURE_FORMATS.items():
        if name == "mds":
            continue  # needs its own processes
        more = {"tokenizer": tokenizer, "eos_token": EOS} if mixture.group_format.tokenized else {}
        step, _ = runner.export_mixture(finished_config, mixture=name, output=str(tmp_path / name), **more)
        steps = (step, step.inputs["groups"])
        before = [{file: one.folder.read_bytes(file) for file in one.folder.files() if file != "usage.json"} for one in steps]
        for killed in steps:  # as if killed while the second file was written
            killed.folder.remove("manifest.json")
        steps[1].folder.remove("group-00001.parquet")
        file = step.manifest["shards"][1]["files"][0]
        for group in step.manifest["groups"]:
            if step.folder.child(group["name"]).exists(file):
                step.folder.child(group["name"]).remove(file)
        again, _ = runner.export_mixture(
            finished_config | {"engine": {"workers": 1}}, mixture=name, output=str(tmp_path / name), **more
        )
        steps = (again, again.inputs["groups"])
        assert [
            {file: one.folder.read_bytes(file) for file in one.folder.files() if file != "usage.json"} for one in steps
        ] == before


def test_rewrites_form_their_own_groups(topics: dict[str, Any], tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        topics["weights"] = {"max_epochs": 1.0, "bootstrap": 10}
        endpoint = {"url": fake.url, "retries": 0}
        topics["rephrase"] = {"model": "fake", "backend": "endpoint", "endpoint": endpoint, "batch": 16, "titles": False}
        step, _ = runner.export_mixture(topics, mixture="huggingface", output=str(tmp_path / "out"))
    groups = step.inputs["groups"].manifest["groups"]
    rewritten = [group for group in groups if group["origin"] == "rephrased"]
    assert rewritten
    assert all(group["name"].endswith("-rephrased") for group in rewritten)
    planned = build_graph(topics).step("sample").manifest
    assert sum(group["wanted_tokens"] for group in rewritten) == pytest.approx(planned["tokens_by_origin"]["rephrased"], rel=0.05)


def test_each_level_has_its_folder_and_omitted_groups_are_reported(finished_config: dict[str, Any]) -> None:
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING")
    few = finished_config | {"sample": finished_config["sample"] | {"budget_tokens": 600}}
    few |= {"workdir": f"{finished_config['workdir']}-few"}
    folders = [runner.export_mixture(few, mixture="levanter", level=level)[1] for level in (1, 2)]
    assert [folder.url.rpartition("/")[2] for folder in folders] == ["levanter-level-1", "levanter-level-2"]
    assert folders[1].read_json("_manifest.json")["left_out_share"] > 0.01
    with pytest.raises(ConfigError, match="each group is allocated less than one document"):
        runner.export_mixture(
            few | {"sample": finished_config["sample"] | {"budget_tokens": 1}, "workdir": f"{finished_config['workdir']}-none"},
            mixture="levanter",
        )
    logger.remove(sink)
    assert any("of the allocated tokens are omitted" in line for line in messages)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mixture": "olmocore"}, "--mixture olmocore: no such format (did you mean olmo-core?)"),
        ({"mixture": "olmo-core", "tokenizer": "x"}, "--mixture olmo-core needs an end-of-text token"),
        ({"mixture": "levanter", "eos_token": "x"}, "--mixture levanter writes text, not token ids"),
        ({"mixture": "levanter", "level": 9}, "--level is 9, but the tree has only levels 0 to"),
    ],
)
def test_errors_in_a_mixture_are_found_before_anything_runs(topics: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        runner.export_mixture(topics, **more)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --to FORMAT"),
        (["--to", "jsonl", "--mixture", "mds"], "give either --to FORMAT"),
        (["--to", "jsonl", "--level", "1"], "--level needs --mixture"),
    ],
)
def test_the_job_needs_either_shards_or_a_mixture(
    finished_config: dict[str, Any], tmp_path: Path, options: list[str], message: str
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(finished_config))
    job = [sys.executable, "jobs/export.py", "--config", str(config), *options]
    done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
