"""Types commands for the tests of the manual: a process of the installed package, which imports
what commands import once, and forks for each of them.

    python -P typist.py      reads a JSON object a line from its input, and answers with one each

Request: ``{"words": [...], "cwd": ..., "output": FILE}`` for ``silc-bench WORDS``, or ``"program"``
in place of ``words`` for lines of Python. Answer: ``{"code": EXIT_CODE, "seconds": CPU}``.
"""

import importlib
import json
import os
import resource
import sys
import traceback

PRELOADED = (
    "silc_bench.cli.app",
    "silc_bench.trainer.loop",
    "silc_bench.evaluation.evaluate",
    "silc_bench.tasks.catalogue",
    "silc_bench.reports.leaderboard",
    "silc_bench.reports.forms.frame",
    "torch.utils.tensorboard",
    "torchvision.transforms",
    "sklearn.linear_model",
    "scipy.stats",
    "open_clip",
    "transformers",
)


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    print(json.dumps({"package": sys.modules["silc_bench"].__file__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        before = _cpu_of_children()
        child = os.fork()
        if child == 0:
            os._exit(_type(request))
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        answer = {"code": code, "seconds": round(_cpu_of_children() - before, 2)}
        print(json.dumps(answer), flush=True)


def _type(request: dict) -> int:
    """In the forked process: its exit code."""
    os.chdir(request["cwd"])
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, ours in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(stream, ours)
    try:
        if "program" in request:
            sys.path.insert(0, "")
            exec(compile(request["program"], "<page>", "exec"), {"__name__": "__main__"})
            return 0
        sys.argv = ["silc-bench", *request["words"]]
        importlib.import_module("silc_bench.cli.app").main()
        return 0
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
