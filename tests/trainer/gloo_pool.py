"""A few processes that answer as ranks of a gloo group, started once (seconds) for all tests.

``pool.run(3, function, *args)`` -> [result of rank 0, of rank 1, of rank 2]. Functions and
arguments are pickled, so a function must be at the top of a module that a new process finds, as
those of this folder are.

``lives`` does the same in processes that end with the function.
"""

from __future__ import annotations

import os
import traceback

import forked
import torch
import torch.distributed as dist


class GlooPool:
    def __init__(self, size):
        self._pipes, self._processes = [], []
        for _ in range(size):
            mine, theirs = forked.context.Pipe()
            process = forked.context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self._pipes.append(mine)
            self._processes.append(process)

    def run(self, world, function, *args, **kwargs):
        """``function`` in a group of the first ``world`` processes.

        AssertionError with the tracebacks of ranks that failed.
        """
        return self._run(world, True, function, args, kwargs)

    def run_as_torchrun(self, world, function, *args, **kwargs):
        """The same with torchrun's variables set and no group yet."""
        return self._run(world, False, function, args, kwargs)

    def _run(self, world, has_group, function, args, kwargs):
        # As torchrun's agent does, this process holds the store, at a port that the system chose
        # and that nobody can take.
        self._store = _store()
        for rank, pipe in enumerate(self._pipes[:world]):
            pipe.send((self._store.port, has_group, rank, world, function, args, kwargs))
        return _answers(self._pipes[:world])

    def close(self):
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.join(5)
            process.kill()


def lives(world, function, *args, **kwargs):
    """As ``run_as_torchrun``, in processes that end when the function does.

    [answer of rank 0, ...]; of one that ended without an answer, its exit code. At the end of a
    process its connections close, and others may wait for that. A pool does not close them where
    weights are shared, because PyTorch keeps the groups of DTensors in its caches.
    """
    store = _store()
    pipes, processes = [], []
    for rank in range(world):
        mine, theirs = forked.context.Pipe()
        work = (theirs, store.port, False, rank, world, function, args, kwargs)
        process = forked.context.Process(target=_live, args=work, daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    try:
        return _answers(pipes, processes)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _answers(pipes, processes=None):
    """AssertionError where one failed. EOFError where one has ended, if it is not a process."""
    answers = []
    for rank, pipe in enumerate(pipes):
        assert pipe.poll(forked.SECONDS), f"rank {rank} of {len(pipes)} hangs"
        try:
            answers.append(pipe.recv())
        except EOFError:
            if processes is None:
                raise
            processes[rank].join()
            answers.append((True, processes[rank].exitcode))
    failed = [
        f"rank {rank}: {words}" for rank, (is_good, words) in enumerate(answers) if not is_good
    ]
    assert not failed, "\n".join(failed)
    return [answer for _, answer in answers]


def _serve(pipe):
    torch.set_num_threads(1)
    while True:
        try:
            work = pipe.recv()
        except EOFError:
            return
        answer = _answer(*work)
        if dist.is_initialized():
            dist.destroy_process_group()
        pipe.send(answer)


def _live(pipe, *work):
    torch.set_num_threads(1)
    pipe.send(_answer(*work))


def _answer(port, has_group, rank, world, function, args, kwargs):
    variables = {
        "WORLD_SIZE": world,
        "RANK": rank,
        "LOCAL_RANK": rank,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    variables |= {"TORCHELASTIC_USE_AGENT_STORE": True}
    try:
        if has_group:
            store = dist.TCPStore("127.0.0.1", port, is_master=False)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
        else:
            os.environ.update({name: str(value) for name, value in variables.items()})
        return True, function(*args, **kwargs)
    except Exception:
        return False, traceback.format_exc()
    finally:
        for name in variables:
            os.environ.pop(name, None)
