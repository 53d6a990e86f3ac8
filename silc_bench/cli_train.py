"""What ``silc-bench train --dry-run`` and ``--show-config`` print."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from silc_bench.terminal import console, table_of


def print_estimate(config: Any, device: Any) -> None:
    from trainer.estimate import REACHED, estimate

    found = estimate(config, device)
    table = table_of("of a step on one device", "", title=config.name)
    for name, count in found.parameters.items():
        table.add_row(f"parameters, {name}", f"{count / 1e6:,.1f} M")
    for name, size in found.bytes_by_part.items():
        table.add_row(f"memory, {name}", f"{size / 2**30:,.2f} GiB")
    table.add_row("memory, all of it", f"{sum(found.bytes_by_part.values()) / 2**30:,.2f} GiB")
    table.add_row("FLOPs a picture, counted", f"{found.flops_per_image / 1e9:,.2f} G")
    table.add_row(f"matrix products on {device}, measured", f"{found.matmul_rate / 1e12:,.3f} TFLOP/s")
    for share in REACHED:
        speed = share * found.images_per_second
        table.add_row(
            f"at {100 * share:.0f} % of that", f"{speed:,.0f} images/s, {found.hours / share:,.1f} hours on one device"
        )
    console.print(table)


def print_config(config: Any) -> None:
    from trainer.config import flatten
    from trainer.provenance import provenance_of

    table = table_of("field", "value", "how sure the recipe is of it", title=config.name)
    is_recipe = config.preset not in ("shapes_tiny", "cifar_tiny")
    for field, value in flatten(config).items():
        table.add_row(field, Text(str(value)), provenance_of(field, config.preset) if is_recipe else "")
    console.print(table)
