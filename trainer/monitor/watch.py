"""What a run says of itself at the rows of its log: the numbers, and in words what is wrong with
them.

Flow: ``before_step`` -> the step -> ``row`` -> the log -> ``judge``, which warns once of each thing
it finds, or stops the run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.console import Console
from torch import Tensor

from silc_bench.datasets.files.remote import is_remote
from silc_bench.datasets.files.shards import Damage
from silc_bench.errors import RunError, unknown_name
from silc_bench.system.processes import num_local_ranks, num_ranks
from silc_bench.trainer.config.config import Config
from silc_bench.trainer.data.stream import Batch, crowding
from silc_bench.trainer.monitor.cost import flops_per_image
from silc_bench.trainer.monitor.health import Health
from silc_bench.trainer.optim import lr_at
from silc_bench.trainer.train import TrainState

ON_COLLAPSE = ("warn", "stop")
MAX_WAIT = 0.1  # of the time, for data
MAX_LEFT_OUT = 0.1  # of the pairs that were read


def check_on_collapse(word: str) -> str:
    if word not in ON_COLLAPSE:
        raise unknown_name("--on-collapse", word, ON_COLLAPSE)
    return word


class Watch:
    def __init__(
        self,
        config: Config,
        device: torch.device,
        console: Console,
        on_collapse: str,
        damage: Damage,
        keep: Callable[[str], None],
    ) -> None:
        """``damage``: what the run's source leaves out, counted there as it goes on. ``keep``: gets
        what is said.
        """
        self._health = Health(config, device, num_ranks())
        self._console, self._on_collapse, self._damage, self._keep = (
            console,
            on_collapse,
            damage,
            keep,
        )
        self._said: set[str] = set()
        self._growth = 1.0  # of a step's cost once the teacher teaches
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
        config, numbers = state.config, {name: float(value) for name, value in values.items()}
        images_per_second = config.batch_size / seconds_per_step
        return {
            **numbers,
            "lr": lr_at(state.step - 1, config.num_steps, config.optim),
            "logit_scale": state.student.log_scale.exp().item(),
            "logit_bias": state.student.logit_bias.item(),
            "samples_seen": state.samples_seen,
            "left_out": state.position
            - state.samples_seen,  # as often as they were met: the same after any --resume
            "images_per_second": images_per_second,
            "data_wait_share": wait_share,
            "seconds_left": seconds_per_step * self._steps_left(state),
            **self._health.row(state, batch, numbers["gradient_norm"], images_per_second),
        }

    def _steps_left(self, state: TrainState) -> float:
        """Counted in steps like those so far: those with the teacher cost more than the ones before
        it.
        """
        config = state.config
        taught = config.num_steps - max(state.step, config.start_step)
        return max(config.start_step - state.step, 0) + taught * (
            self._growth if state.step <= config.start_step else 1
        )

    def judge(self, state: TrainState, row: dict[str, float]) -> None:
        """Raises RunError for a collapse where a run is to stop of it."""
        if row["data_wait_share"] > MAX_WAIT:
            waited = f"step {state.step}: {100 * row['data_wait_share']:.0f} % of the time was spent waiting for data"
            self._say("data", f"{waited}; {_faster_data(state.config)}")
        for cause, where in self._damage.first.items():
            self._say(
                f"left out: {cause}",
                f"step {state.step}: left out: {cause}, first {where}; counted at the end",
            )
        if row["left_out"] > MAX_LEFT_OUT * state.position:
            share = f"step {state.step}: {100 * row['left_out'] / state.position:.0f} % of the pairs could not be read"
            self._say("left out", f"{share}; `silc-bench data stats` counts them by cause")
        verdicts = self._health.verdicts(state, row)
        for name, sentence in verdicts.items():
            self._say(name, f"step {state.step}: {name}: {sentence}")
        if verdicts and self._on_collapse == "stop":
            name, sentence = next(iter(verdicts.items()))
            raise RunError(
                f"stopped at step {state.step}: {name}: {sentence}. Checkpoints that were written are intact."
            )

    def alarm(self, state: TrainState, name: str, sentence: str) -> None:
        """What a probe showed. Raises RunError where a run is to stop of it."""
        self._say(name, f"step {state.step}: {name}: {sentence}")
        if self._on_collapse == "stop":
            raise RunError(
                f"stopped at step {state.step}: {name}: {sentence}. Its checkpoint and earlier ones are intact."
            )

    def say(self, sentence: str) -> None:
        self._keep(sentence)
        self._console.print(sentence, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _say(self, name: str, sentence: str) -> None:
        if name not in self._said:
            self._said.add(name)
            self.say(sentence)


def repeating(config: Config, num_samples: int | None) -> str | None:
    """In words, that batches are larger than an epoch; None where they are not, or where nothing
    ever repeats.
    """
    if num_samples is None or config.batch_size <= num_samples:
        return None
    return (
        f"a batch of {config.batch_size:,} holds pairs several times, of {num_samples:,} in all, and the loss takes a pair's"
        f" other places for wrong texts; lower batch_size to {num_samples:,} or less"
    )


def _faster_data(config: Config) -> str:
    """What can help a run that waits for its data."""
    data, needed = config.data, config.views.global_size
    ways = []
    if crowding(data.num_workers + 1, num_local_ranks()) is None:
        ways.append(f"raise data.num_workers (now {data.num_workers})")
    if data.decode_size > needed:
        ways.append(f"lower data.decode_size (now {data.decode_size}, views have {needed})")
    if any(map(is_remote, data.source.split())):
        ways.append("look for what slows the source down")
    return (
        ", or ".join(ways)
        or "every core decodes already: pack smaller pictures, or give it more cores"
    )
