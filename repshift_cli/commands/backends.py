"""`repshift backends`: the attention back ends, what they accept here, or why they are not here."""

from __future__ import annotations

from repshift_cli.commands.shared.listing import Row, loaded, show_rows
from repshift_cli.records import Offers
from repshift_cli.registry import Part, parts


def backends() -> None:
    """List the attention back ends, or why one is not here."""
    from repshift_cli.machine.device import choose_device

    device = choose_device("auto").partition(":")[0]
    footer = f"\nOn this machine's {device}. Use as --variant BACKEND or BACKEND+METHOD, like --variant vanilla,flash."
    show_rows([_row(part, device) for part in parts("attention").values()], footer)


def _row(part: Part, device: str) -> Row:
    module, reason = loaded(part, lambda backend: backend.unavailable(device))
    accepts = "" if reason else f"\ntakes {_in_words(module.OFFERS, device)}"
    return part.name, part.help + accepts, reason


def _in_words(offers: Offers, device: str) -> str:
    words = [", ".join(offers.dtypes.get(device, ())) or f"no dtype on {device}"]
    if offers.max_head_dim:
        words.append(f"head dim up to {offers.max_head_dim}")
    if offers.head_dim_multiple > 1:
        words.append(f"a multiple of {offers.head_dim_multiple}")
    words.append("masks" if device.partition(":")[0] in offers.mask else "no mask")
    return "; ".join(words)
