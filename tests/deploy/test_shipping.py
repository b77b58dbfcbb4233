"""What is shipped beside the code: the manifests for Kubernetes, and the image."""

from __future__ import annotations

import importlib.util
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

import deploy
from deploy.args import AppArgs
from deploy.proxy import NODE

ROOT = Path(deploy.__file__).resolve().parents[1]
KUBERAY = ROOT / "deploy" / "kuberay"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")

# The fields of ray.io/v1 that KubeRay 1.6 knows; the API server drops any other without a word.
SERVICE_FIELDS = {
    *("managedBy", "rayClusterDeletionDelaySeconds", "serveService", "upgradeStrategy", "suspend"),
    *("serveConfigV2", "rayClusterConfig", "excludeHeadPodFromServeSvc"),
}
CLUSTER_FIELDS = {
    *("authOptions", "suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations"),
    *("enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec", "rayVersion"),
    "workerGroupSpecs",
}
HEAD_FIELDS = {
    *("template", "headService", "enableIngress", "resources", "labels", "rayStartParams"),
    "serviceType",
}
WORKER_FIELDS = {
    *("suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds"),
    *("resources", "labels", "rayStartParams", "template", "scaleStrategy", "numOfHosts"),
}


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    manifest = yaml.safe_load((KUBERAY / "rayservice.yaml").read_text("utf-8"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    spec: dict[str, Any] = manifest["spec"]
    return spec


@pytest.fixture(scope="module")
def serve_config(service: dict[str, Any]) -> ServeDeploySchema:
    return ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))


@pytest.fixture(scope="module")
def args(serve_config: ServeDeploySchema) -> AppArgs:
    (application,) = serve_config.applications
    assert application.import_path == "deploy.app:build"
    return AppArgs.model_validate(application.args)


def pods(service: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(metadata, spec) of the head's pod and of each worker group's."""
    cluster = service["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["metadata"], group["template"]["spec"]


def test_the_service_has_fields_that_the_operator_knows(service: dict[str, Any]) -> None:
    cluster = service["rayClusterConfig"]
    assert set(service) <= SERVICE_FIELDS
    assert set(cluster) <= CLUSTER_FIELDS
    assert set(cluster["headGroupSpec"]) <= HEAD_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER_FIELDS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    # The operator passes them to a command line.
    assert all(isinstance(v, str) for v in cluster["headGroupSpec"]["rayStartParams"].values())
    assert cluster["rayVersion"] == ray.__version__


def test_the_service_is_the_shipped_configuration(serve_config: ServeDeploySchema) -> None:
    shipped = yaml.safe_load((ROOT / "deploy" / "configs" / "mixed-gpus.yaml").read_text("utf-8"))
    (wanted,) = ServeDeploySchema.model_validate(shipped).applications
    (application,) = serve_config.applications
    own = {"api_keys_file", "log_format"}
    args = {name: value for name, value in application.args.items() if name not in own}
    assert application.model_copy(update={"args": args}) == wanted


def test_every_part_has_a_worker_group_with_room(service: dict[str, Any], args: AppArgs) -> None:
    groups = service["rayClusterConfig"]["workerGroupSpecs"]
    assert {one["groupName"] for one in groups} == {pool.name for pool in args.pools}
    parts = [(pool, pool.bounds, pool.num_gpus) for pool in args.pools]
    parts.append((args.drafter_nodes, args.bounds("drafter"), args.drafter_gpus))
    parts.append((args.vision_nodes, args.bounds("vision"), args.vision_gpus))
    for bound, field in ((0, "minReplicas"), (1, "maxReplicas")):
        for group in groups:
            device = group["labels"]["ray.io/accelerator-type"]
            needed = sum(
                bounds[bound] * gpus
                for nodes, bounds, gpus in parts
                if nodes.accelerator_type == device
            )
            assert 0 < needed <= gpus_of(group) * group[field], (device, field)


def test_the_autoscaler_knows_what_a_group_brings(service: dict[str, Any], args: AppArgs) -> None:
    groups = {one["groupName"]: one for one in service["rayClusterConfig"]["workerGroupSpecs"]}
    for pool in args.pools:
        group = groups[pool.name]
        assert group["labels"]["ray.io/accelerator-type"] == pool.accelerator_type
        assert f"accelerator_type:{pool.accelerator_type}" in group["resources"]


def gpus_of(group: dict[str, Any]) -> int:
    (container,) = group["template"]["spec"]["containers"]
    return int(container["resources"]["limits"]["nvidia.com/gpu"])


def test_ports_agree(service: dict[str, Any], serve_config: ServeDeploySchema) -> None:
    text = (KUBERAY / "network-policy.yaml").read_text("utf-8")
    policy = next(yaml.safe_load_all(text))["spec"]
    opened = {
        one["port"]
        for rule in (*policy["ingress"], *policy["egress"])
        for one in rule.get("ports", ())
    }
    of_pods = {
        port["containerPort"]
        for _, spec in pods(service)
        for container in spec["containers"]
        for port in container["ports"]
    }
    assert serve_config.http_options.port in of_pods & opened
    assert opened <= of_pods | {53}
    labels = policy["podSelector"]["matchLabels"].items()
    assert all(labels <= metadata["labels"].items() for metadata, _ in pods(service))


def test_pods_have_no_more_rights_than_they_need(service: dict[str, Any], args: AppArgs) -> None:
    assert service["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    for _, spec in pods(service):
        assert spec["securityContext"]["runAsNonRoot"]
        is_head = spec["containers"][0]["name"] == "ray-head"
        assert is_head or not spec["automountServiceAccountToken"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["resources"]["limits"]["memory"]
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert set(mounts) == volumes
            assert str(args.api_keys_file).startswith(mounts["api-keys"])
            assert args.model.startswith(mounts["models"])


def test_streams_have_time_to_end(service: dict[str, Any], args: AppArgs) -> None:
    for group in service["rayClusterConfig"]["workerGroupSpecs"]:
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > args.drain_s


def test_no_secret_is_in_a_manifest() -> None:
    for path in KUBERAY.iterdir():
        kinds = [one["kind"] for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
        assert "Secret" not in kinds


def test_what_the_image_copies_is_there() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    sources = [word for line in copied for word in line.split()[:-1]]
    assert {"pyproject.toml", "deploy/constraints.txt"} <= set(sources)
    assert [name for name in sources if not (ROOT / name).exists()] == []
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= set(sources)


def test_the_image_runs_without_rights_and_holds_no_secret() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert all(re.match(r"python:3\.1[123]-", stage) for stage in stages)
    last = stages[-1]
    assert re.search(r"^USER (?!root|0)\w+$", last, re.MULTILINE)
    assert last.index("USER ") > last.index("RUN useradd")
    assert not re.search(r"(?i)^(ARG|ENV) .*(key|token|secret|password)", DOCKERFILE, re.MULTILINE)


def test_what_the_image_installs_is_pinned() -> None:
    installs = re.findall(r"pip install .+", DOCKERFILE)
    assert installs
    assert all("--constraint deploy/constraints.txt" in line for line in installs)


def test_what_the_image_runs_exists() -> None:
    (command,) = re.findall(r"^CMD \[\"([\w-]+)\"", DOCKERFILE, re.MULTILINE)
    scripts = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    module, function = re.findall(rf"^{command} = \"(.+):(.+)\"$", scripts, re.MULTILINE)[0]
    assert importlib.util.find_spec(module) is not None
    assert function == "main"
    names = set(re.findall(r"\b(SMART_SERVE_\w+)=", DOCKERFILE))
    known = (ROOT / "deploy" / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert names
    assert all(f"`{name}`" in known for name in names)
    here = sysconfig.get_path("scripts")
    for name, value in NODE.items():
        assert f"{name}={value.replace(here, '/opt/venv/bin')}" in DOCKERFILE
