"""Files by path: links to folders, folders that cannot be read, saved datasets, and workdirs that lie where input is read."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pipeline.sources.datasets  # noqa: F401  before `closed` gives up the right to read packages
from pipeline.config import Corpus
from pipeline.errors import ConfigError, InputError
from pipeline.sources import InputFile
from pipeline.sources.input_files import cache_digests, digest, list_input_files
from pipeline.sources.listing import list_corpus
from pipeline.sources.readers import read_rows
from pipeline.storage import Folder

SAVED = {"type": "HuggingFaceDatasetReader", "load_from_disk": True}


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"id": "a", "text": "x"}\n')


def listed(root: Path, pattern: str, workdir: str | None = None) -> list[str]:
    listing = list_corpus(Corpus(paths=[str(root / pattern)]), workdir=None if workdir is None else str(root / workdir))
    return [os.path.relpath(url, root) for url, _ in listing.files]


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder `in` with a real folder and links: to a folder elsewhere, to itself, to nothing."""
    write(tmp_path / "real" / "a.jsonl")
    write(tmp_path / "in" / "sub" / "b.jsonl")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "knot").symlink_to("knot")
    (tmp_path / "in" / "dead").symlink_to(tmp_path / "nowhere")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "in")
    return tmp_path


BOTH = ["in/linked/a.jsonl", "in/sub/b.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*/*.jsonl", BOTH),
        ("in/lin*/*.jsonl", BOTH[:1]),
        ("in/[ls]*", BOTH),
        ("i?/linked", ["in/linked/a.jsonl", "in/linked/back/sub/b.jsonl"]),
        ("i?/linked/a.jsonl", BOTH[:1]),
        ("in/**/*.jsonl", BOTH),
        ("in/**/linked/*.jsonl", BOTH[:1]),
        ("in/*/**/*.jsonl", BOTH),
        ("in", BOTH),
    ],
)
def test_links_to_folders_are_followed_and_each_file_is_listed_once(linked: Path, pattern: str, expected: list[str]) -> None:
    assert listed(linked, pattern) == expected


def test_a_file_that_a_glob_matches_is_not_listed_again_by_a_link_to_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl")
    (tmp_path / "in" / "again.jsonl").symlink_to("a.jsonl")
    (tmp_path / "in" / "loop").symlink_to(".")
    assert listed(tmp_path, "in/[!x]*") == ["in/a.jsonl", "in/again.jsonl"]


def test_a_link_to_a_matched_folder_is_not_listed_again(tmp_path: Path) -> None:
    write(tmp_path / "in" / "z2024" / "a.jsonl")
    (tmp_path / "in" / "latest").symlink_to("z2024")
    for pattern in ("in/*", "in/*/*.jsonl", "in/**/*.jsonl"):
        assert listed(tmp_path, pattern) == ["in/z2024/a.jsonl"], pattern


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that this process may list, with a sub-folder `closed` that it may not, also if it runs as root."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write(root / "in" / "a.jsonl")
        write(root / "in" / "closed" / "b.jsonl")
        root.chmod(0o755)
        (root / "in" / "closed").chmod(0)
        user = os.geteuid()
        if not user:
            os.seteuid(65534)
        try:
            yield root
        finally:
            os.seteuid(user)
            (root / "in" / "closed").chmod(0o755)


@pytest.mark.parametrize("pattern", ["in", "in/**/*.jsonl", "in/*/*.jsonl", "i*"])
def test_a_folder_that_cannot_be_listed_is_an_error_that_names_it(closed: Path, pattern: str) -> None:
    with pytest.raises(InputError, match=r"^paths: \S+/in/closed cannot be listed: Permission denied; make it readable"):
        listed(closed, pattern)
    with pytest.raises(InputError, match="in/closed cannot be listed"):
        digest(str(closed / "in"), "dataset")


@pytest.mark.parametrize(
    ("pattern", "workdir"),
    [
        ("in/**/*.jsonl", "in/work"),
        ("in/**/*.parquet", "in/work/deep"),
        ("in/*/*.jsonl", "in/work"),
        ("in/*", "in/work/deep"),  # the folder in/work will match once it exists
        ("in/l*/*/*.jsonl", "real/work"),
        ("other/**/*.jsonl", "in/work"),
        ("in/**/*.jsonl", "other/work"),
    ],
)
def test_a_workdir_that_a_glob_can_reach_is_refused_before_anything_is_there(tmp_path: Path, pattern: str, workdir: str) -> None:
    for name in ("in/a/b.jsonl", "in/a/b.parquet", "in/b.jsonl", "real/a/b.jsonl"):
        write(tmp_path / name)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "other").symlink_to(tmp_path / "in")
    with pytest.raises(InputError, match=r"^paths: .* can match files in workdir \S+, .*; choose a workdir outside"):
        listed(tmp_path, pattern, workdir)


@pytest.mark.parametrize(
    ("pattern", "workdir"),
    [
        ("in/*.jsonl", "in/work"),
        ("in/20*/*.jsonl", "in/work"),
        ("in/20*/**/*.jsonl", "in/work"),
        ("in/**/*.jsonl", "work"),
        ("in/**/*.jsonl", "in-work"),
    ],
)
def test_a_workdir_that_a_glob_cannot_reach_is_accepted(tmp_path: Path, pattern: str, workdir: str) -> None:
    write(tmp_path / "in" / "a.jsonl")
    write(tmp_path / "in" / "2024" / "a.jsonl")
    assert listed(tmp_path, pattern, workdir)


def test_a_glob_at_a_url_that_reaches_the_workdir_is_refused() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/listing/in/a.jsonl", b"")
    corpus = Corpus(paths=["memory://listing/in/**/*.jsonl"])
    assert list_corpus(corpus, workdir="memory://listing/work").files == [("memory:///listing/in/a.jsonl", "jsonl")]
    with pytest.raises(InputError, match="can match files in workdir"):
        list_corpus(corpus, workdir="memory://listing/in/work")


def saved(folder: Path, **columns: list[str]) -> Any:
    from datasets import Dataset

    Dataset.from_dict(columns).save_to_disk(str(folder))
    return Corpus(paths=[str(folder)], reader=SAVED)


def texts(folder: Path, **reader: Any) -> list[str | None]:
    corpus = Corpus(paths=[str(folder)], reader=SAVED | reader)
    [(url, kind)] = list_corpus(corpus).files
    return [row.document.text if row.document else None for row in read_rows(InputFile(0, url, kind, ""), corpus)]


def test_a_saved_dataset_and_the_workdir_do_not_overlap(tmp_path: Path) -> None:
    corpus = saved(tmp_path / "ds", id=["a"], text=["x"])
    for workdir, message in (("ds/work", "choose a workdir outside"), ("ds", "choose a workdir outside"), (".", "another workdir")):
        with pytest.raises(InputError, match=message):
            list_corpus(corpus, workdir=str(tmp_path / workdir))
    assert len(list_corpus(corpus, workdir=str(tmp_path / "work")).files) == 1


def test_an_empty_saved_dataset_has_no_rows(tmp_path: Path) -> None:
    saved(tmp_path / "ds", id=[], text=[])
    assert texts(tmp_path / "ds") == []


def test_a_split_of_a_saved_dataset_is_read_by_its_name(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    splits = {name: Dataset.from_dict({"id": [name], "text": [f"of {name}"]}) for name in ("train", "test")}
    DatasetDict({**splits, "none": splits["test"].select([])}).save_to_disk(str(tmp_path / "ds"))
    assert texts(tmp_path / "ds", dataset_options={"split": "test"}) == ["of test"]
    assert texts(tmp_path / "ds", dataset_options={"split": "none"}) == []
    with pytest.raises(InputError, match="has the splits train, test, none; select one"):
        texts(tmp_path / "ds")
    with pytest.raises(InputError, match="has the splits train, test, none, but not 'dev'; select one"):
        texts(tmp_path / "ds", dataset_options={"split": "dev"})
    saved(tmp_path / "one", id=["a"], text=["x"])
    with pytest.raises(InputError, match=r"has no splits, but .* is 'train'; remove that setting"):
        texts(tmp_path / "one", dataset_options={"split": "train"})


@pytest.mark.parametrize(
    ("reader", "ignored"),
    [
        ({"streaming": True}, "streaming"),
        ({"dataset_options": {"split": "train", "revision": "main"}}, r"dataset_options\.revision"),
    ],
)
def test_options_that_load_from_disk_ignores_are_refused(reader: dict[str, Any], ignored: str) -> None:
    with pytest.raises(ConfigError, match=rf"^generalist\.reader: load_from_disk ignores {ignored}; remove"):
        list_corpus(Corpus(paths=["ds"], reader=SAVED | reader), setting="generalist.paths")


def test_a_file_that_changes_deep_in_a_dataset_changes_its_digest(tmp_path: Path) -> None:
    write(tmp_path / "ds" / "data" / "a.jsonl")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "ds" / "linked").symlink_to(tmp_path / "elsewhere")
    corpus = Corpus(paths=[str(tmp_path / "ds")], reader={"type": "HuggingFaceDatasetReader"})
    workdir = Folder(str(tmp_path / "work"))
    digests = []
    for change in ("ds/b.jsonl", "ds/data/a.jsonl", "elsewhere/b.jsonl"):
        with (tmp_path / change).open("a") as file:
            file.write('{"id": "b", "text": "y"}\n')
        [file_], stamps = list_input_files(corpus, workdir, setting="paths")
        cache_digests(workdir, stamps)
        digests.append(file_.digest)
    assert len(set(digests)) == 3


def test_a_file_of_a_dataset_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "dead.arrow").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot read \S+/ds/dead\.arrow: No such file"):
        digest(str(tmp_path / "ds"), "dataset")
