"""A Slurm of one node on loopback, with two fake GPUs, for the duration of a test session."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from leapbench.records.commit import CODE, INPUTS

BINARIES = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
SBIN = "/usr/sbin:/sbin"
# CPUs are declared, not counted: jobs that sleep may share a core. A requeue waits until the credential expires.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/munge.sock,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={root}/ctld
SlurmdSpoolDir={root}/slurmd
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=10
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES = "AutoDetect=off\nNodeName={host} Name=gpu File=/dev/null,/dev/zero\n"


def unavailable() -> str | None:
    """Why no cluster can be started here, None if one can."""
    missing = [name for name in BINARIES if _which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "the daemons are started as root"


class SlurmCluster:
    """`with SlurmCluster() as cluster:` gives `cluster.env`, with which sbatch and squeue find the daemons."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="lb", dir="/tmp"))  # munge's socket must have a short name
        self.host = socket.gethostname().partition(".")[0]
        self.env = {**os.environ, "SLURM_CONF": str(self.root / "etc/slurm.conf"), "OMP_NUM_THREADS": "1"}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SlurmCluster:
        for name in ("etc", "ctld", "slurmd", "log", "munge"):
            (self.root / name).mkdir()
        self.root.chmod(0o755)
        (self.root / "munge").chmod(0o755)
        key = self.root / "etc/munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        memory = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20 * 0.9)
        conf = CONF.format(host=self.host, ports=_free_ports(), root=self.root, memory=memory)
        (self.root / "etc/slurm.conf").write_text(conf)
        (self.root / "etc/gres.conf").write_text(GRES.format(host=self.host))
        try:
            munge = self.root / "munge"
            self._start(
                "munged", "-F", f"--key-file={key}", f"--socket={munge}/munge.sock", f"--pid-file={munge}/munged.pid",
                f"--log-file={munge}/munged.log", f"--seed-file={munge}/seed",
            )  # fmt: skip
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D")
            self._wait_for_node()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if len(self.daemons) == 3:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it retries while a job is ending
                subprocess.run(["scancel", "-u", "root"], env=self.env, capture_output=True, timeout=30)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def restart_controller(self, away_s: float = 0.0) -> None:
        """Kill slurmctld with -9, wait, and restart it from its saved state."""
        controller = self.daemons[1]
        controller.kill()
        controller.wait()
        time.sleep(away_s)
        self._start("slurmctld", "-D", index=1)

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints."""
        result = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=30, check=True)
        return result.stdout.strip()

    def _start(self, name: str, *arguments: str, index: int | None = None) -> None:
        path = _which(name)
        assert path is not None
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            daemon = subprocess.Popen([path, *arguments], env=self.env, stdout=log, stderr=log)
        if index is None:
            self.daemons.append(daemon)
        else:
            self.daemons[index] = daemon

    def _wait_for_node(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            result = subprocess.run(
                ["sinfo", "-h", "-o", "%t"], env=self.env, capture_output=True, text=True, timeout=60
            )
            if result.stdout.strip() == "idle":
                return
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-1500:] for path in (self.root / "log").iterdir())
                raise RuntimeError(f"Slurm did not start: {result.stdout}{result.stderr}\n{logs}")
            time.sleep(0.1)


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SBIN}")


def _free_ports() -> list[int]:
    sockets = [socket.socket() for _ in range(2)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


def checkout(project: Path, folder: Path) -> Path:
    """A git repository at `folder` whose only commit is the code of `project` in its current state."""
    for part in (*CODE, *INPUTS, "scripts"):
        source, target = project / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    (folder / ".gitignore").write_text("__pycache__/\nresults/code/\n")
    commit(folder)
    return folder


def commit(folder: Path) -> str:
    """Commit everything in `folder`; the commit."""
    git = ("git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "test")):
        subprocess.run([*git, *command], check=True, capture_output=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
