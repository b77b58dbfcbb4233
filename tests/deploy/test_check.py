"""`smart-serve check`: what would be placed where, and a sentence for all that is missing."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import deploy
from deploy.hardware import accelerator_of, local_nodes
from deploy.placement import Demand, Node, place
from smart_serve.cli import main

CONFIGS = Path(deploy.__file__).parent / "configs"
BIG = (
    Node(name="a", cpus=64, gpus=8, accelerator_type="H100"),
    Node(name="b", cpus=32, gpus=4, accelerator_type="L40S"),
    Node(name="c", cpus=16),
)


def nodes_file(folder: Path, nodes: tuple[Node, ...]) -> str:
    path = folder / "nodes.json"
    path.write_bytes(msgspec.json.encode(nodes))
    return str(path)


def pools(tmp_path: Path, *words: str, nodes: tuple[Node, ...] = BIG) -> int:
    return main(["check", *words, "--nodes", nodes_file(tmp_path, nodes), "--json"])


def test_a_placement_is_told_and_nothing_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = 'pools=[{"name": "h", "accelerator_type": "H100", "num_gpus": 2, "num_replicas": 3}]'
    assert pools(tmp_path, asked, "ingress_replicas=2") == 0
    told = json.loads(capsys.readouterr().out)
    where = {one["demand"]["deployment"]: one["nodes"] for one in told["placed"]}
    assert where["target-h"] == {"a": 3}
    # What needs no GPU leaves the nodes with GPUs alone.
    assert where["ingress"] == {"c": 2}
    assert set(where) == {"ingress", "router", "vision-encoder", "drafter", "target-h"}
    assert told["problems"] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (['pools=[{"name": "x", "accelerator_type": "B200", "num_gpus": 1}]'], "H100, L40S"),
        (['pools=[{"label_selector": {"zone": "in(a,b)"}}]'], "node of zone=in(a,b), and"),
        (['pools=[{"name": "x", "num_gpus": 9}]'], "which no node has at all"),
        (['pools=[{"name": "x", "num_gpus": 4, "num_replicas": 4}]'], "1 of 4 replicas"),
        (["pools=[{}]", "ingress_replicas=20", "ingress_cpus=6"], "is left on no node"),
        (["modle=bundled"], "modle"),
        (["policy=magic"], "policy 'magic'"),
        (["model=/nowhere/at/all"], "/nowhere/at/all is not on this machine"),
        (["drafter=draft_model:/nowhere"], "drafter /nowhere is not on this machine"),
        (["api_keys_file=/nowhere"], "API keys file /nowhere cannot be read"),
        (["no-such-file.yaml"], "cannot be read"),
        (["drafter"], "cannot be read"),
        (["drafter=ngram", "policy"], "key=value"),
    ],
)
def test_every_problem_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert pools(tmp_path, *words) == 1
    out, err = capsys.readouterr()
    assert sentence in err
    assert [f"problem: {one}" for one in json.loads(out)["problems"]] == err.splitlines()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("applications: [", "is not YAML"),
        ("[]", "is no Serve configuration"),
        ("applications: [{import_path: other:app}]", "no application with import_path"),
        ("applications: [{import_path: deploy.app:build, args: {pools: [{gpus: 1}]}}]", "gpus"),
    ],
)
def test_a_file_that_is_wrong_is_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    path = tmp_path / "app.yaml"
    path.write_text(text)
    assert pools(tmp_path, str(path)) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_shipped_fits_a_cluster_that_is_large_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: Path
) -> None:
    assert main(["check", str(path), "--nodes", nodes_file(tmp_path, BIG)]) in (0, 1)
    out, err = capsys.readouterr()
    # Only what this machine has no files of is missing.
    assert all("is not on this machine" in line for line in err.splitlines())
    assert all(": 0 to " in line for line in out.splitlines() if "nowhere" in line)


def test_a_pool_that_is_scaled_needs_room_for_its_fewest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = '{"accelerator_type": "B200", "num_gpus": 1, "min_replicas": 0, "max_replicas": 9}'
    asked = ["check", f"pools=[{pool}]", "--nodes", nodes_file(tmp_path, BIG)]
    assert main(asked) == 0
    assert "target-default: 0 to 9 × (0.5 CPU, 1 GPU B200) on nowhere" in capsys.readouterr().out


def test_this_machine_is_a_cluster_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    (node,) = local_nodes()
    assert node.cpus >= 1
    assert main(["check", "drafter=ngram", "--local"]) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_without_a_cluster_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "drafter=ngram", "--address", "127.0.0.1:1"]) == 1
    assert "no Ray cluster answers" in capsys.readouterr().err


def test_devices_have_ray_s_names() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H200": "H200",
        "NVIDIA L4": "L4",
        "NVIDIA L40S": "L40S",
        "NVIDIA A100-SXM4-80GB": "A100",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000",
        "Something else": None,
    }
    assert {name: accelerator_of(name) for name in names} == names


SHARES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])
KINDS = st.sampled_from([None, "H100", "L4"])
LABEL = {"label_selector": {"ray.io/accelerator-type": "!H100"}}
CHOICES = st.sampled_from([{}, {"accelerator_type": "H100"}, {"accelerator_type": "L4"}, LABEL])
DEMANDS = st.lists(
    st.builds(
        Demand,
        deployment=st.uuids().map(str),
        replicas=st.integers(1, 4),
        cpus=st.sampled_from([0.5, 1.0, 4.0]),
        gpus=SHARES,
        nodes=CHOICES,
    ),
    max_size=5,
)
NODES = st.lists(
    st.builds(
        Node,
        name=st.uuids().map(str),
        cpus=st.sampled_from([2.0, 8.0]),
        gpus=st.integers(0, 3),
        accelerator_type=KINDS,
    ),
    max_size=4,
)


@given(DEMANDS, NODES)
def test_no_node_is_given_more_than_it_has(demands: list[Demand], nodes: list[Node]) -> None:
    placed = place(demands, nodes)
    assert [one.demand for one in placed] == demands
    for node in nodes:
        here = [(one.demand, one.nodes.get(node.name, 0)) for one in placed]
        assert sum(demand.cpus * count for demand, count in here) <= node.cpus
        assert sum(demand.gpus * count for demand, count in here) <= node.gpus
        for demand in (demand for demand, count in here if count):
            wanted = demand.nodes.get("accelerator_type", node.accelerator_type)
            assert wanted == node.accelerator_type
            assert demand.nodes != LABEL or node.accelerator_type != "H100"
    # What alone would fit is never refused by an empty cluster.
    for one in placed:
        alone = place([msgspec.structs.replace(one.demand, replicas=1)], nodes)[0]
        assert alone.missing == 0 or one.missing == one.demand.replicas
