"""Starts command lines as real processes that need not import torch anew: a process that has, and forks for each.

Reads one JSON request a line: {"script", "argv", "cwd", "log", "kill_at", "draw"}; answers with the number of the new
process, and, once it has ended, with its exit status as `waitpid` tells it. `kill_at` names the moment at which the
new process sends SIGKILL to itself: ["step", N], before the N-th step of the optimiser; ["before", NAME, N] or
["after", NAME, N], around the N-th renaming of a finished file to NAME. Without `draw`, pictures are empty files.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = (
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "PIL.Image",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "training.trainer",
    "training.tester",
    "train_reconstruct",
    "test_reconstruct",
    "ensemble_reconstruct",
)


def kill_myself():
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kind, *what):
    seen = 0
    if kind == "step":
        import torch

        step = torch.optim.Adam.step

        def counted(self, *args, **options):
            nonlocal seen
            seen += 1
            if seen == what[0]:
                kill_myself()
            return step(self, *args, **options)

        torch.optim.Adam.step = counted
        return
    replace = os.replace

    def watched(source, target, **options):
        nonlocal seen
        seen += Path(target).name == what[0] or what[0] == "*"
        meant = seen == what[1] and (Path(target).name == what[0] or what[0] == "*")
        if meant and kind == "before":
            kill_myself()
        replace(source, target, **options)
        if meant and kind == "after":
            kill_myself()

    os.replace = watched


def child(request):
    for number, flags in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        os.dup2(os.open(request["log"] if number else os.devnull, flags | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.chdir(request["cwd"])
    if not request["draw"]:
        from matplotlib.figure import Figure

        Figure.savefig = lambda self, path, **options: Path(path).write_bytes(b"-")
    if request["kill_at"]:
        arm(*request["kill_at"])
    sys.argv = [request["script"], *request["argv"]]
    module = importlib.import_module(request["script"].removesuffix(".py"))
    from common.cli import run_command

    code = run_command(module.main)
    sys.stdout.flush()
    os._exit(code)


def main():
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    sys.stdout.reconfigure(line_buffering=True)
    sys.path.insert(0, str(ROOT))
    for name in PRELOADED:
        importlib.import_module(name)
    for line in requests:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitpid(request["wait"], 0)[1], file=answers)
            continue
        pid = os.fork()
        if not pid:
            child(request)
        print(pid, file=answers)


if __name__ == "__main__":
    main()
