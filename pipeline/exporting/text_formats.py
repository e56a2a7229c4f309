"""Formats that keep the text: Parquet with a dataset card, JSON Lines, WebDataset tar files, MosaicML MDS."""

import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import zstandard

from pipeline.exporting import Format, Shard, Tokenizer
from pipeline.exporting.card import render_card
from pipeline.storage import Folder


class HuggingFace(Format):
    """Parquet files and a dataset card that `datasets` loads from a folder or the hub: copies of the shards, renamed."""

    name = "huggingface"

    def write(self, shard: Shard, folder: Folder, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        del tokenizer
        name = f"train-{shard.number:05d}-of-{shard.num_shards:05d}.parquet"
        folder.child("data").write_bytes(name, shard.source.read_bytes(shard.name))
        return {"rows": shard.source.read_facts(shard.name)["rows"], "files": [f"data/{name}"]}

    def finish(self, folder: Folder, manifest: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> list[str]:
        del parts
        folder.write_bytes("README.md", render_card(manifest).encode())
        return ["README.md"]


class Jsonl(Format):
    """JSON Lines, compressed with zstd: the columns of the shards, `metadata` as an object."""

    name = "jsonl"

    def write(self, shard: Shard, folder: Folder, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        del tokenizer
        rows = [_embed_metadata(row) for row in shard.read_table().to_pylist()]
        lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        name = f"shard-{shard.number:05d}.jsonl.zst"
        folder.write_bytes(name, zstandard.ZstdCompressor(write_checksum=True).compress(lines))
        return {"rows": len(rows), "files": [name]}


class WebDataset(Format):
    """Tar files with a pair KEY.txt and KEY.json for each row, as `webdataset` reads them."""

    name = "webdataset"

    def write(self, shard: Shard, folder: Folder, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        del tokenizer
        name, sink = f"shard-{shard.number:05d}.tar", io.BytesIO()
        rows = shard.read_table().to_pylist()
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, row in enumerate(rows):
                other_columns = {key: value for key, value in _embed_metadata(row).items() if key != "text"}
                key = f"{shard.number:05d}{number:08d}"  # no dots: webdataset takes everything after the first dot as the extension
                for extension, data in (("json", orjson.dumps(other_columns)), ("txt", row["text"].encode())):
                    entry = tarfile.TarInfo(f"{key}.{extension}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        folder.write_bytes(name, sink.getvalue())
        return {"rows": len(rows), "files": [name]}

    def finish(self, folder: Folder, manifest: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> list[str]:
        del manifest
        sizes = {part["files"][0]: part["rows"] for part in parts}
        folder.write_bytes("sizes.json", json.dumps(sizes, indent=1).encode())  # the file name that webdataset's tools use
        return ["sizes.json"]


class Mds(Format):
    """MDS (Mosaic Data Shard) files for MosaicML's `streaming`, which also writes them."""

    name = "mds"
    extra = "mds"
    _COLUMNS = ("id", "text", "source", "cluster", "metadata")

    def check(self) -> None:
        import streaming  # noqa: F401

    def write(self, shard: Shard, folder: Folder, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        del tokenizer
        from streaming import MDSWriter

        from pipeline.storage import upload_on_exit

        subfolder = f"{shard.number:05d}"
        columns = {name: "int" if name == "cluster" else "str" for name in self._COLUMNS}
        rows = shard.read_table(self._COLUMNS).to_pylist()
        with upload_on_exit(folder) as local_folder:
            out = os.path.join(local_folder, subfolder)
            with MDSWriter(out=out, columns=columns, compression="zstd", hashes=["sha256"], progress_bar=False) as writer:
                for row in rows:
                    writer.write(row)
            files = [f"{subfolder}/{name}" for name in sorted(os.listdir(out))]
        return {"rows": len(rows), "files": files}

    def finish(self, folder: Folder, manifest: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> list[str]:
        del manifest
        merged: dict[str, Any] = {}
        for part in parts:
            subfolder = part["files"][0].partition("/")[0]
            index = folder.read_json(f"{subfolder}/index.json")
            for shard in index["shards"]:
                for kind in ("raw_data", "zip_data"):
                    if shard[kind]:
                        shard[kind]["basename"] = f"{subfolder}/{shard[kind]['basename']}"
            merged = {"version": index["version"], "shards": [*merged.get("shards", []), *index["shards"]]}
        folder.write_bytes("index.json", json.dumps(merged, sort_keys=True).encode())
        return ["index.json"]


def _embed_metadata(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "metadata": orjson.Fragment(row["metadata"])}
