"""The statements of SECURITY.md: secrets, file names outside a folder, pickles, control characters, tokens."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import parse_config
from pipeline.errors import ConfigError, StorageError, replace_controls
from pipeline.graph.runner import curate
from pipeline.storage import Folder
from tests.support.processes import ROOT

PACKAGE = ROOT / "pipeline"


@pytest.mark.parametrize(
    ("section", "settings", "setting"),
    [
        ("rephrase", {"model": "m", "engine": {"hf_token": "hf_x"}}, "rephrase.engine.hf_token"),
        (
            "generalist",
            {"paths": ["a.jsonl"], "reader": {"type": "JsonlReader", "o": {"api-key": "x"}}},
            "generalist.reader.o.api-key",
        ),
        ("prepare", {"steps": [{"type": "URLFilter", "password": "x"}]}, "prepare.steps.password"),
        ("generalist", {"paths": ["https://me:word@host/a.jsonl"]}, "generalist.paths"),
        ("workdir", "s3://key:secret@bucket/run", "workdir"),
        ("generalist", {"paths": ["https://ghp_x@host/a.jsonl"]}, "generalist.paths"),
        ("generalist", {"paths": ["https://host/a.jsonl?sig=x&b=1"]}, "generalist.paths"),
        ("generalist", {"paths": ["a"], "reader": {"dataset_options": {"token": "x"}}}, "generalist.reader.dataset_options.token"),
        ("prepare", {"steps": [{"headers": {"Authorization": "Bearer x"}}]}, "prepare.steps.headers.Authorization"),
        ("prepare", {"steps": [{"account_key": "x"}]}, "prepare.steps.account_key"),
        ("prepare", {"steps": [{"openaiApiKey": "x"}]}, "prepare.steps.openaiApiKey"),
        ("prepare", {"steps": [{"password": 12345}]}, "prepare.steps.password"),
        ("prepare", {"steps": [{"aws_session_token": "x"}]}, "prepare.steps.aws_session_token"),
    ],
)
def test_a_secret_in_the_config_is_rejected_by_name_and_not_shown(
    topics: dict[str, Any], section: str, settings: Any, setting: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(topics | {section: settings})
    assert str(raised.value).startswith(setting)
    assert str(raised.value).removeprefix(setting) in {
        " contains a secret, which manifests would store: set it in the environment of every worker",
        " is a URL with a user, password or key, which manifests and messages would show: set it in the environment",
    }
    assert not {"hf_x", "word", "key:secret"} & set(str(raised.value).replace(setting, "").split())


def test_settings_with_names_similar_to_secrets_are_accepted(topics: dict[str, Any]) -> None:
    endpoint = {"url": "http://127.0.0.1:1/v1", "api_key_env": "OPENAI_API_KEY"}
    engine = {"max_num_batched_tokens": 4096, "tokenizer": "x", "hf_token": None, "eos_token": "</s>", "image_token": 7}
    topics["generalist"] |= {"text_key": "text", "paths": ["abfs://container@account.dfs.core.windows.net/a.jsonl", "s3://b/a?b=1"]}
    config = topics | {"rephrase": {"model": "m", "backend": "endpoint", "endpoint": endpoint, "engine": engine}}
    assert parse_config(config).rephrase


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a//b", ".", "", "a\\b", "a\0b", "a/.."])
@pytest.mark.parametrize("url", ["memory://run", "local"])
def test_a_file_name_outside_its_folder_is_rejected(tmp_path: Path, url: str, name: str) -> None:
    folder = Folder(url if "://" in url else str(tmp_path / "run"))
    for operation in (folder.read_bytes, folder.exists, folder.remove, folder.read_table, folder.child, folder.read_json):
        with pytest.raises(StorageError, match="is not a valid file name in"):
            operation(name)
    with pytest.raises(StorageError, match="is not a valid file name in"):
        folder.write_bytes(name, b"x")
    assert not (tmp_path / "x").exists()


@pytest.mark.ray
def test_a_manifest_with_a_file_name_outside_its_folder_ends_the_run(topics: dict[str, Any], ray_session: Any) -> None:
    done = curate(topics)
    sampled = done.step("sample")
    outside = Path(topics["workdir"]).parent / "mine.parquet"
    outside.write_bytes(b"mine")
    manifest = sampled.folder.read_json("manifest.json")
    shard = manifest["shards"][0]
    relative = os.path.relpath(outside, sampled.folder.path)
    sampled.folder.write_json("manifest.json", manifest | {"shards": [shard | {"name": relative}]})
    done.shards.remove("_manifest.json")
    with pytest.raises(StorageError, match=r"mine.parquet' is not a valid file name in .*; delete the manifest that contains it"):
        curate(topics)
    assert outside.read_bytes() == b"mine"


def test_no_file_of_a_workdir_is_unpickled() -> None:
    """Only engine/generation.py pickles, between the processes of one run; arrays are read without objects."""
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names} | {getattr(node, "module", None) or ""}
                forbidden = {"pickle", "joblib", "dill", "shelve", "marshal"} & names
                assert not forbidden or name == "engine/generation.py", f"{name} imports {forbidden}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert called != "torch.load", name
                if called == "np.load":
                    assert arguments["allow_pickle"] == "False", name
                assert arguments.get("trust_remote_code", "False") in ("False", "trust_remote_code"), name


def test_control_characters_in_text_do_not_reach_the_terminal(tmp_path: Path) -> None:
    assert replace_controls("a\x1b[2Jb\u202ec\td\n") == "a�[2Jb�c\td\n"
    workdir = tmp_path / "run\x1b[2J"  # the message has its name as it is
    workdir.write_text("a file", encoding="utf-8")
    settings = {
        "workdir": str(workdir),
        "generalist": {"paths": ["web.jsonl"]},
        "specialists": {"a": {"paths": ["a.jsonl"]}},
        "sample": {"budget_tokens": 10},
        "embed": {"model": "lsi"},
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "curate.py"), "--config", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert f"workdir {tmp_path}/run�[2J is a file" in done.stderr
    assert "\x1b" not in done.stderr


START_RAY = """
import os, ray, sys
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_MODE"], flush=True)
sys.stdin.readline()
"""
JOIN_RAY = """
import sys
from pipeline.config import Engine as Settings
from pipeline.engine import Engine
with Engine(Settings(address=sys.argv[1])) as engine:
    engine.start()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_own_ray_requires_a_token_and_joining_a_ray_without_one_warns(tmp_path: Path) -> None:
    clean_environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(tmp_path)}
    for mode in (None, "disabled"):
        environment = clean_environment | ({"RAY_AUTH_MODE": mode} if mode else {})
        with subprocess.Popen([sys.executable, "-c", START_RAY], env=environment, stdin=-1, stdout=-1, text=True) as head:
            assert head.stdin
            assert head.stdout
            address, found = head.stdout.readline().split()
            assert found == (mode or "token")
            other_environment = clean_environment | {
                "RAY_AUTH_MODE": mode or "token",
                "RAY_AUTH_TOKEN": "f" * 64,
                "PYTHONPATH": str(ROOT),
            }
            joined = subprocess.run(
                [sys.executable, "-c", JOIN_RAY, address], env=other_environment, capture_output=True, text=True, check=False
            )
            head.stdin.close()
        if mode is None:
            assert joined.returncode != 0
            assert "answers but refuses the connection" in joined.stderr
        else:
            assert joined.returncode == 0, joined.stderr
            assert "has no token authentication" in joined.stderr
