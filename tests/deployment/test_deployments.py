"""Compose, cluster launcher and KubeRay files: no engine or cluster runs here, so they are rendered and validated."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.processes import ROOT

DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
KUBERNETES = "1.34"


def read_yaml_documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DOCKER / name).read_text(encoding="utf-8")))


def render_compose(folder: Path, *files: str) -> dict[str, Any]:
    """Return the files as podman-compose renders them: merged, with variables substituted."""
    # podman-compose calls podman only for its version.
    podman = folder / "podman"
    podman.write_text("#!/bin/sh\necho podman version 4.9.0\n", encoding="utf-8")
    podman.chmod(0o755)
    file_options = [part for name in files for part in ("-f", str(DOCKER / name))]
    command = [BIN / "podman-compose", "--profile", "job", *file_options, "config"]
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "WORKER_CPUS": "7", "WORKERS": "5"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rendered = yaml.safe_load(done.stdout)
    assert isinstance(rendered, dict)
    return rendered


def test_compose_files_are_valid() -> None:
    check = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    files = [DOCKER / "compose.yaml", DOCKER / "compose.gpu.yaml"]
    done = subprocess.run([*check, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")])
def test_compose_cluster_has_a_token_and_is_reachable_only_from_this_machine(files: tuple[str, ...], tmp_path: Path) -> None:
    rendered = render_compose(tmp_path, *files)
    services = rendered["services"]
    assert set(services) == {"head", "worker", "job"}
    target = "gpu" if len(files) == 2 else "cpu"
    assert rendered["secrets"] == {"ray_token": {"file": "./ray_token"}}
    for service in services.values():
        assert service["build"]["target"] == target
        assert service["image"] == f"crispwrap:{target}"
        assert service["user"] == "1000:1000"
        assert service["cap_drop"] == ["ALL"]
        assert service["secrets"] == ["ray_token"]
        # The path, never the token: an environment shows in `docker inspect`.
        assert service["environment"] == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray_token"}
        assert service["volumes"] == ["runs:/runs"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert not {"network_mode", "privileged", "pid", "ipc"} & set(service)
    assert services["head"]["ports"] == ["127.0.0.1:8265:8265"]
    assert "--num-cpus=7" in services["worker"]["command"]
    assert int(services["worker"]["deploy"]["replicas"]) == (1 if target == "gpu" else 5)
    assert services["job"]["depends_on"] == {name: {"condition": "service_healthy"} for name in ("head", "worker")}
    assert services["worker"]["depends_on"] == {"head": {"condition": "service_healthy"}}
    reserved = services["worker"]["deploy"].get("resources", {}).get("reservations", {}).get("devices")
    assert reserved == ([{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}] if target == "gpu" else None)


def test_object_store_fits_into_the_shared_memory_of_its_container(tmp_path: Path) -> None:
    for name in ("head", "worker"):
        service = render_compose(tmp_path, "compose.yaml")["services"][name]
        amount, unit = re.fullmatch(r"(\d+)(mb|gb)", service["shm_size"]).groups()  # type: ignore[union-attr]
        (store,) = [part.partition("=")[2] for part in service["command"] if part.startswith("--object-store-memory=")]
        assert int(store) < int(amount) * {"mb": 2**20, "gb": 2**30}[unit]


def test_job_commands_use_files_of_the_image_and_a_workdir_on_shared_storage(tmp_path: Path) -> None:
    job = render_compose(tmp_path, "compose.yaml")["services"]["job"]["command"]
    for command in (job, read_yaml_documents("rayjob.yaml")[1]["spec"]["entrypoint"].split()):
        paths = re.findall(r"/app/(\S+)", " ".join(command))
        assert len(paths) == 2
        assert all((ROOT / path).is_file() for path in paths)
        assert "workdir=/runs/" in " ".join(command)


def test_cluster_launcher_file_is_valid_and_mounts_the_token_as_a_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = read_yaml_documents("cluster.yaml")
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    with pytest.raises(Exception, match="instance_type"):
        validate_config({**prepared, "instance_type": "m5.large"})  # checks that the validator rejects invalid input
    # Ray's defaults would install another Ray.
    assert [prepared[f"{kind}setup_commands"] for kind in ("", "head_", "worker_")] == [[], [], []]
    assert prepared["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "--env RAY_AUTH_MODE=token" in prepared["docker"]["run_options"]
    head, workers = " ".join(prepared["head_start_ray_commands"]), " ".join(prepared["worker_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "$RAY_HEAD_IP" in workers
    types = prepared["available_node_types"]
    assert set(types) == {"head", "cpu", "gpu"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    for name in ("cpu", "gpu"):
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert prepared["max_workers"] >= sum(types[name]["max_workers"] for name in ("cpu", "gpu"))


# Fields of ray.io/v1 that the file may have, of KubeRay's API reference (1.6 and 1.7); pod templates are Kubernetes' own.
RAYJOB = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "clusterSelector",
    "deletionStrategy",
    "entrypoint",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "jobId",
    "managedBy",
    "metadata",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
}
RAYCLUSTER = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "headServiceAnnotations",
    "managedBy",
    "rayVersion",
    "suspend",
    "workerGroupSpecs",
}
AUTH = {"mode", "secretName", "enableK8sTokenAuth"}
AUTOSCALER = {
    "env",
    "envFrom",
    "idleTimeoutSeconds",
    "image",
    "imagePullPolicy",
    "resources",
    "securityContext",
    "upscalingMode",
    "version",
    "volumeMounts",
}
HEAD = {"enableIngress", "headService", "rayStartParams", "serviceType", "template"}
WORKER = {
    "groupName",
    "idleTimeoutSeconds",
    "maxReplicas",
    "minReplicas",
    "numOfHosts",
    "rayStartParams",
    "replicas",
    "scaleStrategy",
    "suspend",
    "template",
}


def read_pod_templates() -> dict[str, dict[str, Any]]:
    spec = read_yaml_documents("rayjob.yaml")[1]["spec"]
    cluster = spec["rayClusterSpec"]
    return {
        "submitter": spec["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        **{group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]},
    }


def test_rayjob_has_only_known_fields_and_a_token_from_a_secret() -> None:
    claim, job = read_yaml_documents("rayjob.yaml")
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert set(spec) <= RAYJOB
    assert set(cluster) <= RAYCLUSTER
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER
    assert set(cluster["headGroupSpec"]) <= HEAD
    assert all(set(group) <= WORKER for group in cluster["workerGroupSpecs"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert set(cluster["authOptions"]) <= AUTH
    assert cluster["authOptions"]["mode"] == "token"
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert spec["submissionMode"] in {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["enableInTreeAutoscaling"] is True
    assert "engine.workers=" in spec["entrypoint"]  # otherwise a run requests no more than the existing cores
    # The user creates the Secret: a file with a secret might be committed.
    assert {document["kind"] for document in read_yaml_documents("rayjob.yaml")} == {"PersistentVolumeClaim", "RayJob"}


@pytest.mark.parametrize("name", ["submitter", "head", "cpu", "gpu"])
def test_pods_are_valid_and_do_not_run_as_root(name: str) -> None:
    template = read_pod_templates()[name]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template["spec"]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    with pytest.raises(
        kubernetes_validate.ValidationError, match="restartpolicy"
    ):  # checks that the validator rejects invalid input
        kubernetes_validate.validate({**pod, "spec": {**pod["spec"], "restartpolicy": "Never"}}, KUBERNETES, strict=True)
    user = pod["spec"]["securityContext"]
    assert user["runAsNonRoot"] is True
    assert user["runAsUser"] == 1000
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert container["image"].endswith("-gpu" if name == "gpu" else "-cpu")
    if name != "submitter":
        for probe in ("readinessProbe", "livenessProbe"):
            assert container[probe]["exec"]["command"] == ["python", "/app/docker/healthy.py"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/runs"}
