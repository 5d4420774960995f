"""Where evidence comes from: the machine and the versions, without a path of it.

`python bench/environment.py` prints it as JSON. `evidence.py` asks in a process of its own, since one that
has once talked to a GPU keeps a share of it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from codehash import ROOT

Environment = dict[str, str]
CODE = ("kernels", "sigscale", "bench", "examples", "tests", "pyproject.toml")


def machine() -> Environment:
    """What this process sees; without a GPU `gpu` is empty."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return {
        "gpu": gpu,
        "driver": _driver() if gpu else "",
        "cuda": torch.version.cuda or torch.version.hip or "",
        "cpu": f"{processor()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "triton": installed("triton"),
        "sigscale": installed("sigscale"),
        "python": platform.python_version(),
    }


def asked() -> Environment:
    """`machine`, from another process."""
    script = str(Path(__file__).resolve())
    answer = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SystemExit(f"{answer.stderr.strip()}\nthe machine's description failed: does torch import?")
    return dict(json.loads(answer.stdout.splitlines()[-1]))


def commit(root: Path = ROOT) -> str:
    """The commit that is checked out, and whether the code has changes on top of it."""
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return "unknown"

    def asked_git(*arguments: str) -> str:
        answer = subprocess.run([git, *arguments], cwd=root, capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    dirty = " and changes" if asked_git("status", "--porcelain", "--", *CODE) else ""
    return (asked_git("rev-parse", "HEAD") or "unknown") + dirty


def slug(environment: Environment) -> str:
    """The device as the beginning of a folder's name: nvidia-h200; cpu."""
    return re.sub(r"[^a-z0-9]+", "-", (environment["gpu"] or "cpu").lower()).strip("-")


def device(environment: Environment) -> str:
    """The device that is measured, in words."""
    cpu = f"{environment['cpu']}, torch.get_num_threads() = {environment['threads']}"
    return environment["gpu"] or cpu


def processor() -> str:
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", about, re.MULTILINE)
    return found[1] if found else platform.machine()


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return lines[0] if lines else "unknown"


if __name__ == "__main__":
    print(json.dumps(machine()))
