"""Check whether runs can work here: Python, packages, machine, GPU, Ray, storage, input files and models, each with its fix.

Nothing is changed: a small file is written to the workdir and removed again, and JSON files of a model on the hub are downloaded.
"""

import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline import config
from pipeline.config import GENERALIST, Config
from pipeline.errors import CrispwrapError
from pipeline.storage import Folder
from pipeline.terminal.formatting import format_bytes

# What each extra of the package is for. `dev` is for work on the package itself.
EXTRAS = {
    "embed": "embedding with a transformer",
    "demo": "the bundled embedding model",
    "report": "report.html",
    "filters": "filters, and WARC files",
    "rephrase": "rewriting",
    "evidence": "comparing runs with proxy models",
    "s3": "s3:// storage",
}
_MIN_WORKER_BYTES = 1 << 30  # docs/scale.md: a worker with the default settings takes less
_MIN_TEMPORARY_BYTES = 5 << 30  # Ray spills objects there
_MIN_SHARED_BYTES = 1 << 30  # Ray's object store; Docker's default is 64 MB
_STORE_TRIALS = 5
_SLOW_STORE_S = 0.5

State = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Check:
    """What was checked and found. A warning costs speed or a feature; with a failure a run cannot work."""

    subject: str
    state: State
    found: str
    fix: str = ""


def run_checks(settings: Config | None) -> Iterator[Check]:
    """Yield the checks in order, each as soon as it is done; those of storage, inputs and models need the config of a run."""
    yield Check("Python", "ok", f"{platform.python_version()}, {platform.platform(terse=True)}")
    yield from check_packages(settings)
    yield from check_machine(settings.engine if settings else config.Engine())
    yield check_gpu()
    yield check_ray(settings.engine if settings else config.Engine())
    if settings:
        yield check_storage(settings)
        yield from check_inputs(settings)
        yield from check_models(settings)


def check_packages(settings: Config | None) -> Iterator[Check]:
    """Compare the installed packages with the requirements of crispwrap and of its extras."""
    required = [Requirement(text) for text in requires("crispwrap") or []]
    problems = _find_problems([one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})])
    fix = f"pip install {' '.join(repr(str(requirement)) for requirement, _ in problems)}"
    missing = ", ".join(f"{requirement.name} is {found or 'missing'}" for requirement, found in problems)
    yield Check("crispwrap", "failure" if problems else "ok", missing or version("crispwrap"), fix if problems else "")
    needed = list_needed_extras(settings) if settings else set()
    for extra, purpose in EXTRAS.items():
        problems = _find_problems([one for one in required if _belongs_to(one, extra)])
        wrong = [f"{requirement.name} {found} (needs {requirement.specifier})" for requirement, found in problems if found]
        install = f'pip install "crispwrap[{extra}]"'
        subject = f"crispwrap[{extra}]"
        if not problems:
            yield Check(subject, "ok", f"installed: {purpose}")
        elif extra in needed:
            wrong += [f"{requirement.name} (missing)" for requirement, found in problems if not found]
            yield Check(subject, "failure", f"this config needs it: {', '.join(wrong)}", install)
        elif wrong:
            yield Check(subject, "warning", f"other versions than required: {', '.join(wrong)}", install)
        else:
            yield Check(subject, "ok", f"not installed, only needed for {purpose}")


def _belongs_to(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement is one of an extra's own, and not another extra that it includes."""
    marker = requirement.marker
    is_of_extra = marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
    return is_of_extra and canonicalize_name(requirement.name) != "crispwrap"


def _find_problems(required: list[Requirement]) -> list[tuple[Requirement, str]]:
    """The requirements that are not met, each with the installed version, or "" if there is none."""
    problems = []
    for requirement in required:
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = ""
        if not found or not requirement.specifier.contains(found, prereleases=True):
            problems.append((requirement, found))
    return problems


def list_needed_extras(settings: Config) -> set[str]:
    """The extras without which a run of this config fails."""
    corpora = [settings.generalist, *settings.specialists.values()]
    urls = [settings.workdir, *(path for corpus in corpora for path in corpus.paths)]
    model = settings.embed.model
    needed = {
        "embed": model != "lsi",
        "demo": "bundled:" in model or model == "lsi",
        "filters": any(settings.resolve_steps(corpus)[0] for corpus in corpora)
        or any(".warc" in url or ".wet" in url for url in urls),
        "rephrase": settings.rephrase is not None,
        "s3": any(url.startswith("s3://") for url in urls),
    }
    return {extra for extra, is_needed in needed.items() if is_needed}


def check_machine(engine: config.Engine) -> Iterator[Check]:
    """Cores and memory that this process may use, and space for temporary files and for Ray's objects in shared memory."""
    cores = os.cpu_count() or 1
    workers = engine.workers or cores  # as the engine starts Ray
    available = min(psutil.virtual_memory().available, _read_memory_limit())
    found = f"{cores} cores, {format_bytes(available)} of memory available"
    if available < workers * _MIN_WORKER_BYTES:
        fix = f"free memory, or set engine.workers to {max(1, int(available // _MIN_WORKER_BYTES))}"
        yield Check("machine", "warning", f"{found}, for {workers} workers", fix)
    else:
        yield Check("machine", "ok", found)
    temporary = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    for name, path, least, fix in (
        (
            "temporary files",
            temporary,
            _MIN_TEMPORARY_BYTES,
            "free space there, or set TMPDIR to a folder with a short path elsewhere",
        ),
        ("shared memory", "/dev/shm", _MIN_SHARED_BYTES, "in a container, run it with --shm-size=2g; Ray is slow without"),
    ):
        if os.path.isdir(path):
            free = shutil.disk_usage(path).free
            is_enough = free >= least
            yield Check(name, "ok" if is_enough else "warning", f"{format_bytes(free)} free in {path}", "" if is_enough else fix)


def _read_memory_limit() -> float:
    """The memory limit of this process's control group in bytes; infinity if there is none."""
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            return float(file.read())
    except (OSError, ValueError):  # no control groups, or `max`
        return float("inf")


def check_gpu() -> Check:
    """GPUs of this machine and their driver, and whether torch can use them."""
    if shutil.which("nvidia-smi") is None:
        return Check("GPU", "ok", "none on this machine: embedding and rewriting run on the CPU, or on GPUs of the Ray cluster")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode:
        return Check("GPU", "failure", f"nvidia-smi fails: {' '.join(done.stdout.split())}", "install or restart NVIDIA's driver")
    gpus = "; ".join(done.stdout.strip().splitlines())
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        return Check("GPU", "ok", gpus)
    if "+cpu" in torch_version:
        return Check(
            "GPU", "warning", f"{gpus}; torch {torch_version} cannot use it", "pip install torch from PyPI, which has CUDA"
        )
    return Check("GPU", "ok", gpus)


def check_ray(engine: config.Engine) -> Check:
    """Join the Ray cluster that a run would join, or start Ray as a run would, and shut it down."""
    from pipeline.engine import Engine

    try:
        with Engine(engine) as started:
            ray = started.start()
            resources = ray.cluster_resources()
            nodes = sum(node["Alive"] for node in ray.nodes())
    except CrispwrapError as error:
        return _fail("Ray", error)
    gpus = f", {resources['GPU']:.0f} GPUs" if resources.get("GPU") else ""
    return Check(
        "Ray", "ok", f"{ray.__version__}, {nodes} node{'s' if nodes > 1 else ''}, {resources.get('CPU', 0):.0f} cores{gpus}"
    )


def check_storage(settings: Config) -> Check:
    """Write, read and remove a small file in the workdir, several times."""
    folder = Folder(settings.workdir)
    is_new = folder.is_local and not os.path.exists(folder.path)
    seconds = []
    try:
        for _ in range(_STORE_TRIALS):
            name, started = f"doctor-{uuid.uuid4().hex}", time.monotonic()
            folder.write_bytes(name, b"ok")
            folder.read_bytes(name)
            folder.remove(name)
            seconds.append(time.monotonic() - started)
        free = f", {format_bytes(shutil.disk_usage(folder.path).free)} free" if folder.is_local else ""
    except CrispwrapError as error:
        return _fail("workdir", error)
    finally:
        if is_new and os.path.isdir(folder.path):
            os.rmdir(folder.path)
    latency = statistics.median(seconds)
    found = f"{folder.url}: a small file is written, read and removed in {1000 * latency:.0f} ms{free}"
    if latency > _SLOW_STORE_S:
        return Check("workdir", "warning", found, "use storage near the workers: a run writes a file for each part and step")
    return Check("workdir", "ok", found)


def check_inputs(settings: Config) -> Iterator[Check]:
    """List the input files of each corpus."""
    from pipeline.sources.listing import list_corpus

    for name, corpus in {GENERALIST: settings.generalist, **settings.specialists}.items():
        setting = f"{name}.paths" if name == GENERALIST else f"specialists.{name}.paths"
        try:
            files = list_corpus(corpus, setting=setting, workdir=settings.workdir).files
        except CrispwrapError as error:
            yield _fail(setting, error)
        else:
            yield Check(setting, "ok", f"{len(files):,} file{'s' if len(files) != 1 else ''}")


def check_models(settings: Config) -> Iterator[Check]:
    """Find the embedding model, and the model that rewrites."""
    from pipeline import embedders

    try:
        source = embedders.identify(settings.embed)["source"]
    except CrispwrapError as error:
        yield _fail("embed.model", error)
    else:
        commit = f", commit {source['commit']}" if "commit" in source else ""
        yield Check("embed.model", "ok", f"{settings.embed.model}{commit}")
    if settings.rephrase is None:
        return
    from pipeline.rewriting.endpoint import check_endpoint, list_models
    from pipeline.rewriting.language_model import resolve_model

    try:
        if settings.rephrase.endpoint:
            check_endpoint(settings.rephrase.endpoint)
            models = list_models(settings.rephrase.endpoint)
            if settings.rephrase.model in models:
                yield Check("rephrase.model", "ok", f"{settings.rephrase.model} at {settings.rephrase.endpoint.url}")
            else:
                found = f"{settings.rephrase.endpoint.url} has no model {settings.rephrase.model}"
                yield Check("rephrase.model", "failure", found, f"set rephrase.model to one of: {', '.join(models)}")
        else:
            yield Check("rephrase.model", "ok", resolve_model(settings.rephrase).source)
    except CrispwrapError as error:
        yield _fail("rephrase.model", error)


def _fail(subject: str, error: CrispwrapError) -> Check:
    """A failure from an error, whose message ends with the fix."""
    found, _, fix = str(error).rpartition("; ")
    return Check(subject, "failure", found or fix, fix if found else "")
