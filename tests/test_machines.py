"""What docs/processes.md shows of several machines: the Slurm script, the Kubernetes file and the simulated table.

Linters find nothing in the examples, and do find a mistake that is put in; the script is run against stand-ins for the
commands of Slurm.
"""

from __future__ import annotations

import copy
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import torch
import torchvision
import yaml

from swa_cli.recipe import load

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs/examples"
SCRIPT = EXAMPLES / "slurm.sbatch"
KUBERNETES = "1.34"
DIRECTIVES = {  # long options of sbatch that a job of this kind may have, as its manual lists them
    *("account", "array", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency", "error"),
    *("exclude", "exclusive", "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "job-name", "mail-type"),
    *("mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "nodelist", "nodes", "no-requeue", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "partition", "qos", "requeue", "reservation", "signal", "time", "time-min"),
}
JOBSET = {  # keys of jobset.x-k8s.io/v1alpha2, from its api/jobset/v1alpha2/jobset_types.go, but for the Job inside
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        *("replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator"),
        *("managedBy", "ttlSecondsAfterFinished", "volumeClaimPolicies"),
    },
    "spec.network": {"enableDNSHostnames", "subdomain", "publishNotReadyAddresses"},
    "spec.failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "spec.replicatedJobs": {"name", "groupName", "template", "replicas", "dependsOn"},
}
RESTARTS = ("Recreate", "BlockingRecreate", "InPlaceRestart")


def shellcheck(text: str) -> list[int]:
    """The numbers of the findings in a bash script."""
    words = [str(Path(sys.executable).with_name("shellcheck")), "--shell=bash", "--format=json", "-"]
    ended = subprocess.run(words, input=text, capture_output=True, text=True)
    return [each["code"] for each in json.loads(ended.stdout)]


def directives(text: str) -> dict[str, str]:
    """The options that sbatch reads: those before the first command."""
    head = re.match(r"(?:#.*\n|\n)*", text)
    assert head is not None
    lines = re.findall(r"^#SBATCH (.*)$", head[0], re.MULTILINE)
    assert len(lines) == text.count("#SBATCH"), "one stands after the first command, where it does nothing"
    found = [re.fullmatch(r"--([a-z-]+)(?:=(\S+))?", line) for line in lines]
    assert all(found), lines
    return {match[1]: match[2] for match in found if match}


# --- Slurm


def test_the_slurm_script_has_no_finding() -> None:
    """shellcheck, which finds a variable without quotes."""
    text = SCRIPT.read_text()
    assert shellcheck(text) == []
    assert 2086 in shellcheck(text.replace('scontrol requeue "$SLURM_JOB_ID"', "scontrol requeue $SLURM_JOB_ID"))


def test_each_directive_is_an_option_of_sbatch() -> None:
    """Names against the manual of sbatch; the signal comes before the time is over by more than a save may take."""
    found = directives(SCRIPT.read_text())
    assert found.keys() <= DIRECTIVES
    target, seconds = re.fullmatch(r"(\w+:\w+)@(\d+)", found["signal"]).groups()  # type: ignore[union-attr]
    (timeout,) = re.findall(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", SCRIPT.read_text())
    assert (target, found["ntasks-per-node"], found["open-mode"]) == ("B:USR1", "1", "append")
    assert int(timeout) < int(seconds)


STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then echo one; echo two; else echo "$@" >> requeued; fi',
    # It stands for the run: it ends with the code in `end`, or when scancel has said TERM; `last` is its last step.
    "srun": """\
echo "$@" > words
mkdir -p "$RUN" && touch "$RUN/recipe.yaml"
for _ in {1..3000}; do
  if [ -e stopped ] && [ ! -e last ]; then exit 143; fi
  if [ -e stopped ] || [ "$(cat end 2> /dev/null)" = 0 ]; then touch "$RUN/result.json"; exit 0; fi
  if [ -e end ]; then exit "$(cat end)"; fi
  sleep 0.01
done
exit 9""",
    "scancel": 'echo "$@" > stopped',
}


@pytest.fixture
def job(tmp_path: Path) -> Callable[[], subprocess.Popen[bytes]]:
    """Start the script as Slurm starts it, as job 7 of two machines with two GPUs each."""
    for name, text in STAND_INS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    slurm = {"JOB_ID": "7", "JOB_NODELIST": "[one-two]", "NNODES": "2", "GPUS_ON_NODE": "2"}
    environment = {f"SLURM_{key}": value for key, value in slurm.items()} | {"RUN": "runs/job-7/latest"}
    environment["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return lambda: subprocess.Popen(["bash", SCRIPT, "my recipe.yaml"], cwd=tmp_path, env=environment)


def wait_for(path: Path) -> str:
    """What is in a file, once it is there and whole."""
    until = time.monotonic() + 60
    while not path.is_file() or not path.read_text().endswith("\n"):
        assert time.monotonic() < until, path
        time.sleep(0.01)
    return path.read_text()


def test_a_late_job_is_saved_queued_again_and_continued(tmp_path: Path, job) -> None:
    """USR1: TERM to the steps and a requeue under the same number; begun again, the same run is resumed."""
    with job() as process:
        first = wait_for(tmp_path / "words")
        wait_for_run(tmp_path)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=60) == 143
    assert "--nnodes 2 --nproc-per-node 2 " in first
    assert "--rdzv-endpoint one:29500 " in first
    assert first.endswith(" -m swa_cli train my recipe.yaml -o runs/job-7\n")
    assert (tmp_path / "stopped").read_text() == "--signal=TERM 7\n"
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    for name in ("words", "stopped"):
        (tmp_path / name).unlink()
    with job() as process:
        assert wait_for(tmp_path / "words").endswith(" -m swa_cli train --resume runs/job-7/latest\n")
        (tmp_path / "end").write_text("0")
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 7\n", "a finished run is not queued again"


def test_a_run_that_ends_as_its_time_does_is_not_queued_again(tmp_path: Path, job) -> None:
    """USR1 in the last step, after which the run is finished: exit 0, and no requeue."""
    (tmp_path / "last").touch()
    with job() as process:
        wait_for(tmp_path / "words")
        wait_for_run(tmp_path)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "stopped").exists()
    assert not (tmp_path / "requeued").exists()


def wait_for_run(folder: Path) -> None:
    until = time.monotonic() + 60
    while not (folder / "runs/job-7/latest/recipe.yaml").is_file():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_failed_job_is_not_queued_again(tmp_path: Path, job) -> None:
    """A run that ends with 1 by itself: the code of the job, and no requeue."""
    (tmp_path / "end").write_text("1")
    with job() as process:
        assert process.wait(timeout=60) == 1
    assert not (tmp_path / "requeued").exists()


# --- Kubernetes


def documents() -> dict[str, Any]:
    """The objects of the Kubernetes file by their kinds."""
    return {each["kind"]: each for each in yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())}


def check_jobset(jobset: dict[str, Any]) -> None:
    """Check the keys of a JobSet against those of its type, and the Job inside against the schema of Kubernetes."""
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    for path, known in JOBSET.items():
        found: Any = jobset
        for key in filter(None, path.split(".")):
            found = found[key]
        for each in found if isinstance(found, list) else [found]:
            assert each.keys() <= known, path
    assert jobset["spec"]["failurePolicy"]["restartStrategy"] in RESTARTS
    for each in jobset["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": each["name"]}, **each["template"]}
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_the_kubernetes_file_is_valid() -> None:
    """Against the schemas of Kubernetes and the type of a JobSet; a misspelled key at each level is found."""
    found = documents()
    assert found.keys() == {"PersistentVolumeClaim", "ConfigMap", "JobSet"}
    for kind in ("PersistentVolumeClaim", "ConfigMap"):
        kubernetes_validate.validate(found[kind], KUBERNETES, strict=True)
    check_jobset(found["JobSet"])

    def misspelled(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        changed = copy.deepcopy(found["JobSet"])
        change(changed["spec"])
        return changed

    with pytest.raises(AssertionError, match="spec"):
        check_jobset(misspelled(lambda spec: spec.update(maxRestarts=3)))
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        check_jobset(misspelled(lambda spec: spec["replicatedJobs"][0]["template"]["spec"].update(backofLimit=0)))


def test_the_parts_of_the_kubernetes_file_fit_together() -> None:
    """Host name, numbers of pods and GPUs, volumes and timeouts against each other; the queue; shellcheck."""
    found = documents()
    jobset = found["JobSet"]
    (group,) = jobset["spec"]["replicatedJobs"]
    job, pod = group["template"]["spec"], group["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (script,) = container["args"]
    assert jobset["metadata"]["labels"].keys() == {"kueue.x-k8s.io/queue-name"}
    host = f"{jobset['metadata']['name']}-{group['name']}-0-0.{jobset['spec']['network']['subdomain']}"
    assert f"--master-addr {host} --master-port {container['ports'][0]['containerPort']} " in script
    assert job["parallelism"] == job["completions"] == int(re.findall(r"--nnodes (\d+)", script)[0])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(re.findall(r"--nproc-per-node (\d+)", script)[0])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == found["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["recipe"]["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    (timeout,) = (each["value"] for each in container["env"])
    assert int(timeout) < pod["terminationGracePeriodSeconds"]
    assert shellcheck(script) == []


def test_the_recipe_of_the_kubernetes_file_loads(tmp_path: Path) -> None:
    """The ConfigMap against the loader of recipes; its batch is whole for each GPU."""
    found = documents()
    path = tmp_path / "recipe.yaml"
    path.write_text(found["ConfigMap"]["data"][path.name])
    recipe = load.load(path, []).recipe
    (group,) = found["JobSet"]["spec"]["replicatedJobs"]
    (container,) = group["template"]["spec"]["template"]["spec"]["containers"]
    gpus = group["template"]["spec"]["completions"] * container["resources"]["limits"]["nvidia.com/gpu"]
    assert recipe.train.batch_size % gpus == 0


# --- the simulated table


def test_the_simulated_table_is_that_of_its_script() -> None:
    """docs/processes.md against docs/scaling.py, line by line."""
    script = runpy.run_path(str(ROOT / "docs/scaling.py"))
    table = "\n".join(script["rows"]())
    assert table.count("\n") == 7
    assert f"\n\n{table}\n\n" in (ROOT / "docs/processes.md").read_text()


def test_the_simulation_is_the_closed_form() -> None:
    """Steps against the ring's 2 (N - 1) / N x bytes / bandwidth, the parameters against torchvision's ResNet-50."""
    script = runpy.run_path(str(ROOT / "docs/scaling.py"))
    with torch.device("meta"):
        network = torchvision.models.resnet50()
    num_bytes = 4 * sum(parameter.numel() for parameter in network.parameters())
    compute = script["BATCH"] / script["IMAGES_PER_SECOND"]
    for gpus, gigabits in ((16, 10), (1024, 25)):
        exchange = 2 * (gpus - 1) / gpus * num_bytes / (gigabits / 8 * 1e9)
        plain, hidden = (
            script["step_s"](gpus=gpus, gigabits=gigabits, overlaps=overlaps) for overlaps in (False, True)
        )
        assert plain == pytest.approx(compute + exchange)
        assert hidden == pytest.approx(compute / 3 + max(2 / 3 * compute, exchange))
