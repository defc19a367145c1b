"""Fresh Pythons that need not import torch: forked from the test's process, which has.

In the child the package is imported anew, without run-time type checks, and warnings are shown as Python shows them.
"""

import asyncio
import importlib
import os
import sys
import warnings
from collections.abc import Mapping, Sequence

import pytest
from interrupted import FORK


def forget_the_tests() -> None:
    """In the child: no package of ours, no type checks, warnings as at the start."""
    importlib.reload(warnings)
    sys.meta_path[:] = [finder for finder in sys.meta_path if "Jaxtyping" not in type(finder).__name__]
    for name in [name for name in sys.modules if name.split(".")[0] == "causal_circuits"]:
        if name != "causal_circuits._native":  # a process can load it once
            del sys.modules[name]


def run_kernel(command: Sequence[str], folder: str, environment: Mapping[str, str]) -> None:
    """In the child: do what `python -m ipykernel_launcher -f FILE` does."""
    forget_the_tests()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update({name: value for name, value in environment.items() if not name.startswith("PYTEST_")})
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    asyncio.set_event_loop(asyncio.new_event_loop())
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(argv=list(command[3:]))


class ForkedKernel:
    """What jupyter_client asks of a subprocess.Popen."""

    stdin = stdout = stderr = None

    def __init__(self, command: Sequence[str], *, cwd: str, env: Mapping[str, str], **rest: object) -> None:
        self.process = FORK.Process(target=run_kernel, args=(command, str(cwd), dict(env)))
        self.process.start()
        self.pid = self.process.pid
        os.setpgid(self.pid, self.pid)  # signals for the kernel's group are not for the tests

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def terminate(self) -> None:
        self.process.terminate()


def fork_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that jupyter_client starts from now on are forked."""
    from jupyter_client.provisioning import local_provisioner

    monkeypatch.setattr(local_provisioner, "launch_kernel", ForkedKernel)
