"""`pydocs://`: docstrings of what is installed, found without importing it."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import Corpus
from pipeline.errors import InputError
from pipeline.sources import InputFile, Row, pydocs
from pipeline.sources.input_files import digest
from pipeline.sources.listing import list_files
from pipeline.sources.readers import read_rows

DOC = "A sentence that fills the docstring until it is long enough to be kept. " * 4


@pytest.fixture(scope="module")
def stdlib() -> list[Row]:
    return list(pydocs.read_rows("pydocs://stdlib"))


def install(site: Path, name: str, files: dict[str, str | bytes]) -> None:
    """A distribution on disk, as pip leaves one."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, f"{name}-1.0.dist-info/METADATA"]))


def documents(rows: list[Row]) -> dict[str, tuple[str, dict[str, object]]]:
    return {row.document.id: (row.document.text, json.loads(row.document.metadata)) for row in rows if row.document}


@pytest.mark.slow
def test_the_standard_library_is_found_with_its_docstrings(stdlib: list[Row]) -> None:
    found = documents(stdlib)
    text, metadata = found["json.dumps"]
    assert text == inspect.getdoc(json.dumps)
    assert metadata == {"kind": "function", "file": "json/__init__.py", "line": metadata["line"]}
    assert found["pathlib.PurePath"][1]["kind"] == "class"
    assert found["json"][1]["kind"] == "module"
    assert {row.document.source for row in stdlib if row.document} >= {"json", "asyncio", "argparse"}
    assert [row.number for row in stdlib] == list(range(len(stdlib)))
    assert len(found) == sum(row.document is not None for row in stdlib) > 1000
    assert len({text for text, _ in found.values()}) == len(found)
    assert min(len(text) for text, _ in found.values()) >= pydocs.MIN_CHARACTERS
    assert not any("test" in str(metadata["file"]).split("/") for _, metadata in found.values())


def test_nothing_is_imported_in_order_to_be_read() -> None:
    code = """
import sys
from pipeline.sources import pydocs
ids = {row.document.id for row in pydocs.read_rows("pydocs://networkx") if row.document}
assert "networkx.classes.graph.Graph" in ids
print([name for name in sys.modules if name.startswith("networkx")])
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_rows_of_a_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f'''"""{DOC}module"""
if True:
    def f():
        """{DOC}first"""
else:
    def f():
        """{DOC}second"""
class A:
    """{DOC}class"""
    async def m(self):
        """{DOC}method \\d"""
        def inner():
            """{DOC}inner"""
    def copy(self):
        """{DOC}first"""
    def short(self):
        """Too short to say anything."""
'''
    nul, surrogate = f'"""{DOC}\\0"""\n', f'"""{DOC}\\ud800"""\n'
    install(
        tmp_path,
        "Fake_Dist",
        {
            "fake/__init__.py": source,
            "fake/tests/a.py": source,
            "fake/_vendor/b.py": source,
            "fake/test_c.py": source,
            "conftest.py": source,
            "../bin/d.py": source,
            "fake/old.py": f'print "x" """{DOC}"""',
            "fake/nul.py": nul,
            "fake/surrogate.py": surrogate,
            "fake/deep.py": f"x = {'(' * 5000}{')' * 5000}\n" + f'"""{DOC}"""',
            "fake/latin.py": f'# -*- coding: latin-1 -*-\n"""{DOC}é"""'.encode("latin-1"),
            "fake/gone.py": "",
        },
    )
    (tmp_path / "fake" / "gone.py").unlink()
    monkeypatch.syspath_prepend(tmp_path)
    corpus = Corpus(paths=["pydocs://fake-dist"])
    [(url, kind)] = list_files(corpus)
    assert (url, kind) == ("pydocs://fake-dist", "pydocs")
    rows = list(read_rows(InputFile(0, url, kind, digest(url, kind)), corpus))
    found = documents(rows)
    assert list(found) == ["fake", "fake.f", "fake.f#2", "fake.A", "fake.A.m", "fake.A.m.inner", "fake.latin"]
    assert found["fake.f#2"][1]["line"] == 7
    assert found["fake.latin"][0].endswith("é")
    assert [(row.problem.reason, row.problem.id) for row in rows if row.problem] == [
        ("not_python", None),
        ("nul_byte", "fake.nul"),
        ("not_python", None),
        ("invalid_utf8", "fake.surrogate"),
    ]
    assert {row.document.source for row in rows if row.document} == {"fake"}


def test_digest_is_of_the_record_and_of_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for folder, body in (("one", "a"), ("two", "a"), ("three", "b")):
        site = tmp_path / folder
        install(site, "fakepkg", {"fakepkg.py": f'"""{DOC}"""', f"{body}.py": ""})
        with monkeypatch.context() as patch:
            patch.syspath_prepend(site)
            digests.append(digest("pydocs://fakepkg", "pydocs"))
    assert digests[0] == digests[1] != digests[2]
    assert digests[0].startswith("fakepkg==1.0 record:")


def test_specifications_choose_by_distribution_or_import_name() -> None:
    everything = pydocs.expand("pydocs://")
    assert everything == sorted(everything)
    assert {"pydocs://stdlib", "pydocs://numpy", "pydocs://scikit-learn"} <= set(everything)
    assert pydocs.expand("pydocs://sklearn, NumPy") == ["pydocs://numpy", "pydocs://scikit-learn"]
    assert set(everything) - set(pydocs.expand("pydocs://-scikit_learn,-numpy,-notinstalled")) == {
        "pydocs://numpy",
        "pydocs://scikit-learn",
    }


def test_an_unknown_package_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"generalist\.paths: .*'nunpy'.*did you mean numpy\?"):
        list_files(Corpus(paths=["pydocs://nunpy"]), setting="generalist.paths")
    with pytest.raises(InputError, match="excludes every package"):
        pydocs.expand("pydocs://numpy,-numpy")
    with pytest.raises(InputError, match="the package is not installed"):
        digest("pydocs://gone", "pydocs")


def test_a_limit_takes_a_fair_and_stable_sample(stdlib: list[Row]) -> None:
    corpus = Corpus(paths=["pydocs://stdlib"], limit=60)
    file = InputFile(0, "pydocs://stdlib", "pydocs", "")
    rows = list(read_rows(file, corpus))
    assert len(rows) == 60
    assert rows == list(read_rows(file, corpus))
    sources = {row.document.source for row in rows if row.document}
    assert len(sources) > 5
    assert sources <= {row.document.source for row in stdlib if row.document}
    assert not all(source < "c" for source in sources)
