"""The files that start clusters, against schemas where there are some, else against our rules."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
SECRET = re.compile(r"(?:SECRET|TOKEN|PASSWORD|ACCESS_KEY|ROOT_USER)")
METRICS = {
    "ray_ltrp_units_done_total": {"stage", "run_id"},
    "ray_ltrp_units_failed_total": {"stage", "run_id"},
    "ray_ltrp_images_total": {"stage", "run_id", "outcome"},
    "ray_ltrp_stage_seconds_total": {"stage", "run_id", "part"},
}


def read(name: str) -> Any:
    return yaml.safe_load((DOCKER / name).read_text("utf-8"))


def services() -> dict[str, Any]:
    found = read("compose.yaml")["services"]
    assert isinstance(found, dict)
    return found


def checked_by_the_compose_schema(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)


def test_compose_is_valid_by_the_schema_of_compose(tmp_path: Path) -> None:
    done = checked_by_the_compose_schema(DOCKER / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    misspelt = tmp_path / "compose.yaml"
    text = (DOCKER / "compose.yaml").read_text("utf-8")
    misspelt.write_text(text.replace("healthcheck:", "healthchek:"))
    assert "healthchek" in checked_by_the_compose_schema(misspelt).stdout


def test_compose_has_a_head_two_workers_an_object_store_and_tensorboard() -> None:
    assert {"head", "worker", "minio", "tensorboard"} <= set(services())
    assert services()["worker"]["deploy"]["replicas"] == 2


def test_compose_publishes_every_port_on_localhost_only() -> None:
    published = [port for one in services().values() for port in one.get("ports", [])]
    assert published
    assert [p for p in published if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", str(p))] == []
    assert [name for name, one in services().items() if "network_mode" in one] == []


def test_compose_asks_for_every_secret_and_gives_none_a_default() -> None:
    given = [
        (name, key, value)
        for name, one in services().items()
        for key, value in one.get("environment", {}).items()
        if SECRET.search(key)
    ]
    assert len(given) > 5
    assert [g for g in given if not re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", g[2])] == []


def test_every_ray_of_compose_asks_for_the_token_and_builds_a_target_that_exists() -> None:
    targets = re.findall(r"^FROM .* AS (\w+)$", (DOCKER / "Dockerfile").read_text("utf-8"), re.M)
    for name in ("head", "worker"):
        one = services()[name]
        assert one["environment"]["RAY_AUTH_MODE"] == "token"
        assert one["build"]["target"] in targets
        assert (DOCKER / one["build"]["context"] / one["build"]["dockerfile"]).is_file()


def test_compose_names_only_services_and_volumes_that_it_has() -> None:
    compose = read("compose.yaml")
    for one in compose["services"].values():
        assert set(one.get("depends_on", {})) <= set(compose["services"])
        mounted = {volume.partition(":")[0] for volume in one.get("volumes", [])}
        assert mounted <= set(compose["volumes"])


def test_the_launchers_file_is_valid_by_the_schema_of_ray() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    cluster = read("cluster.yaml")
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    workers = [n for t, n in cluster["available_node_types"].items() if t != "head"]
    assert sum(worker["max_workers"] for worker in workers) <= cluster["max_workers"]
    market = workers[0]["node_config"]["InstanceMarketOptions"]["MarketType"]
    assert market == "spot"
    starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    starts = [line for line in starts if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def containers(group: dict[str, Any]) -> list[dict[str, Any]]:
    found = group["template"]["spec"]["containers"]
    assert isinstance(found, list)
    return found


def test_the_rayjob_has_what_kuberay_requires() -> None:
    # Required by RayJobSpec, RayClusterSpec, HeadGroupSpec and WorkerGroupSpec of ray.io/v1, and by
    # Kubernetes of every pod.
    job = read("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["name"]
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        for container in containers(group):
            assert container["name"]
            assert container["image"]
            assert container["resources"]["limits"]
        volumes = {v["name"] for v in group["template"]["spec"].get("volumes", [])}
        mounts = {m["name"] for c in containers(group) for m in c.get("volumeMounts", [])}
        assert mounts <= volumes
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"]
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_pods_of_the_rayjob_are_valid_by_the_schema_of_kubernetes() -> None:
    # KubeRay makes pods of the templates; its own schema is in no package that installs here.
    cluster = read("rayjob.yaml")["spec"]["rayClusterSpec"]
    version = kubernetes_validate.latest_version()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}}
        pod["spec"] = group["template"]["spec"]
        kubernetes_validate.validate(pod, version, strict=True)
        pod["spec"] = {**pod["spec"], "nodeSelektor": {}}
        with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelektor"):
            kubernetes_validate.validate(pod, version, strict=True)


def test_the_rayjob_scales_gpu_workers_on_spot_nodes_under_a_head_without_slots() -> None:
    cluster = read("rayjob.yaml")["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    assert "spot" in json.dumps(workers["template"]["spec"]["nodeSelector"])
    assert containers(workers)[0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_rayjob_names_the_version_of_ray_that_the_images_have() -> None:
    pins = configparser.ConfigParser(delimiters=("==",))
    pins.read_string("[pins]\n" + (ROOT / "constraints.txt").read_text("utf-8"))
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pins["pins"]["ray"]


@pytest.mark.parametrize("name", ["compose.yaml", "rayjob.yaml", "cluster.yaml", "slurm.sh"])
def test_no_file_holds_a_long_random_string(name: str) -> None:
    text = (DOCKER / name).read_text("utf-8")
    assert re.findall(r"\b(?=\w*\d)(?=\w*[A-Za-z])\w{24,}\b", text) == []


def test_the_dashboard_shows_exactly_the_metrics_of_a_run() -> None:
    dashboard = json.loads((DOCKER / "grafana-dashboard.json").read_text("utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert set(re.findall(r"\bray_\w+", " ".join(queries))) == set(METRICS)
    for query in queries:
        names = set(re.findall(r"\bray_\w+", query))
        allowed = set.intersection(*(METRICS[name] for name in names))
        for labels in re.findall(r"by \(([^)]*)\)", query):
            assert set(labels.split(", ")) <= allowed, query
        for name, selector in re.findall(r"(ray_\w+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)=", selector)) <= METRICS[name], query


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads((DOCKER / "grafana-dashboard.json").read_text("utf-8"))["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
