"""What a run says of itself at the rows of its log: numbers, and what is wrong with them.

Flow: ``before_step`` -> the step -> ``row`` -> the log -> ``judge``, which warns once of each thing
it finds -> ``stop``, which may end the run because of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.console import Console
from torch import Tensor

from silc_bench.datasets.files.remote import is_remote
from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import RunError
from silc_bench.system.processes import num_local_ranks, num_ranks
from silc_bench.system.terminal import warn
from silc_bench.trainer.config.config import Config
from silc_bench.trainer.data.stream import Batch, crowding, num_readers
from silc_bench.trainer.device import whole
from silc_bench.trainer.monitor.bounds import MAX_LEFT_OUT, MAX_WAIT
from silc_bench.trainer.monitor.health import Health, Verdict
from silc_bench.trainer.monitor.plan.cost import flops_per_image
from silc_bench.trainer.optim import lr_at
from silc_bench.trainer.train import TrainState


class Watch:
    """Makes the rows of a run's log and judges them; it keeps in mind what was said already."""

    def __init__(
        self,
        config: Config,
        device: torch.device,
        console: Console,
        on_collapse: str,
        damage: Damage,
        keep: Callable[[str], None],
    ) -> None:
        """``damage``: what the run's source leaves out, counted there as it goes on.

        ``on_collapse``: one of ON_COLLAPSE. ``keep``: gets what is said.
        """
        self._health = Health(config, device, num_ranks())
        self._console = console
        self._on_collapse = on_collapse
        self._damage = damage
        self._keep = keep
        self._said: set[str] = set()

        # How many times more a step costs once the teacher teaches. It matters where the teacher
        # begins late: the time left is then more than steps left times seconds so far.
        self._growth = 1.0
        if config.start_step and config.is_taught_at(config.start_step):
            self._growth = flops_per_image(config) / flops_per_image(config, is_taught=False)

    def before_step(self, state: TrainState) -> None:
        self._health.before_step(state)

    def row(
        self,
        state: TrainState,
        batch: Batch,
        values: dict[str, Tensor],
        seconds_per_step: float,
        wait_share: float,
    ) -> dict[str, float]:
        """The row of the step that was just done.

        Where the state is sharded every rank must ask.

        ``values``: its losses and its gradient norm. ``wait_share``: the share of the time that was
        spent waiting for data.
        """
        config = state.config
        numbers = {name: float(value) for name, value in values.items()}
        images_per_second = config.batch_size / seconds_per_step
        health = self._health.row(state, batch, numbers["gradient_norm"], images_per_second)
        return {
            **numbers,
            "lr": lr_at(state.step - 1, config.num_steps, config.optim),
            "logit_scale": whole(state.student.log_scale).exp().item(),
            "logit_bias": whole(state.student.logit_bias).item(),
            "samples_seen": state.samples_seen,
            # Pairs count as often as they were met. Both numbers are in the checkpoint, so the
            # difference is the same after any --resume, which the count of ``damage`` is not.
            "left_out": state.position - state.samples_seen,
            "images_per_second": images_per_second,
            "data_wait_share": wait_share,
            "seconds_left": seconds_per_step * self._steps_left(state),
            **health,
        }

    def _steps_left(self, state: TrainState) -> float:
        """Counted in steps like those so far.

        Steps with the teacher cost more than those before it. So each of them counts as ``growth``
        steps, as long as no step with the teacher was measured.
        """
        config = state.config
        untaught = max(config.start_step - state.step, 0)
        taught = config.num_steps - max(state.step, config.start_step)
        growth = self._growth if state.step <= config.start_step else 1
        return untaught + taught * growth

    def judge(self, state: TrainState, row: dict[str, float]) -> dict[str, Verdict]:
        """Say what is wrong with a row; the verdicts by name, for ``stop``."""
        step = f"step {state.step}"
        if row["data_wait_share"] > MAX_WAIT:
            percent = f"{100 * row['data_wait_share']:.0f} %"
            waited = f"{step}: {percent} of the time was spent waiting for data"
            self._say("data", f"{waited}; {_faster_data(state.config)}")

        for cause, where in self._damage.first.items():
            self._say(
                f"left out: {cause}",
                f"{step}: left out: {cause}, first {where}; counted at the end",
            )

        if row["left_out"] > MAX_LEFT_OUT * state.position:
            percent = f"{100 * row['left_out'] / state.position:.0f} %"
            share = f"{step}: {percent} of the pairs could not be read"
            self._say("left out", f"{share}; `silc-bench data stats` counts them by cause")

        # Every verdict is said before the first of them stops the run.
        verdicts = self._health.verdicts(state, row)
        for name, verdict in verdicts.items():
            self._say(name, f"{step}: {name}: {verdict}")
        return verdicts

    def stop(self, state: TrainState, verdicts: dict[str, Verdict]) -> None:
        """Raise RunError for the first one where a run is to stop because of it."""
        for name, verdict in verdicts.items():
            self._stop(state, name, verdict)

    def alarm(self, state: TrainState, name: str, verdict: Verdict) -> None:
        """Say what a probe showed. Raises RunError where a run is to stop because of it."""
        self._say(name, f"step {state.step}: {name}: {verdict}")
        self._stop(state, name, verdict)

    def _stop(self, state: TrainState, name: str, verdict: Verdict) -> None:
        if self._on_collapse == "stop" and verdict.is_collapse:
            raise RunError(
                f"stopped: {name}: {verdict.problem}",
                about=f"step {state.step}",
                fix=f"{verdict.fix}. Checkpoints that were written are intact.",
            )

    def say(self, sentence: str) -> None:
        self._keep(sentence)
        warn(sentence, self._console)

    def _say(self, name: str, sentence: str) -> None:
        """Say it unless something of this name was said before."""
        # A thing that stays wrong would fill the screen: each is said once a start of the run.
        if name not in self._said:
            self._said.add(name)
            self.say(sentence)


def repeating(config: Config, num_samples: int | None) -> str | None:
    """A sentence where batches are larger than an epoch.

    None where they are not, or where nothing ever repeats.
    """
    if num_samples is None or config.batch_size <= num_samples:
        return None
    # no run takes a batch of one pair
    fix = "take more pairs" if num_samples == 1 else f"lower batch_size to {num_samples:,} or less"
    return (
        f"a batch of {config.batch_size:,} holds pairs several times, of {num_samples:,} in all,"
        f" and the loss takes a pair's other places for wrong texts; {fix}"
    )


def _faster_data(config: Config) -> str:
    """What can help a run that waits for its data."""
    data = config.data
    needed = config.needed_pixels
    ways = []

    # One worker more is advised only where there is a core for it.
    workers = num_readers(data)
    if crowding(workers + 1, num_local_ranks()) is None:
        ways.append(f"raise data.num_workers (now {workers})")
    if data.decode_size > needed:
        ways.append(
            f"lower data.decode_size (now {data.decode_size}, the smallest crops need {needed})"
        )
    if any(map(is_remote, data.source.split())):
        ways.append("look for what slows the source down")

    if not ways:
        return "every core decodes already: pack smaller images, or give it more cores"
    return ", or ".join(ways)
