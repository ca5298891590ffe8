"""What a form of solution holds in memory, said before it is computed."""

from __future__ import annotations

import os
from typing import Literal

import jax

from jaxrec import check
from jaxrec.models.linear import Histories

__all__ = ["Form", "choose_form", "form_bytes"]

Form = Literal["primal", "dual", "low_rank"]

# Rows of a square matrix that exist beside it: the Gram matrix becomes its inverse in place, in strips of rows, and the
# inverse the weights. Of gowalla (30k users, 41k items) the compiled programs hold 3.77 GB in the dual form and 6.97 GB
# in the primal.
STRIP_ROWS = 2048


def form_bytes(n_users: int, n_items: int, form: Form, *, rank: int = 0, itemsize: int = 4) -> int:
    """The bytes that a form holds at its peak, beside the interactions.

    primal: n_items (n_items + 2048) numbers; dual: the same of n_users; low_rank: 4 (n_users + n_items) rank.
    """
    if form == "low_rank":
        return itemsize * 4 * (n_users + n_items) * rank
    side = n_items if form == "primal" else n_users
    return itemsize * side * (side + STRIP_ROWS)


def choose_form(
    histories: Histories, form: Form | None, rank: int | None, max_bytes: int | None, n_devices: int | None = None
) -> Form:
    """The form that was asked for, or the smaller exact one, after checking that it fits.

    Raises:
        ValueError: the form would hold more than `max_bytes` (on each of several devices); `rank` without the low-rank
            form, or this without it; several devices for another form than the primal.
    """
    if n_devices is not None and (form not in (None, "primal") or rank is not None):
        raise ValueError("devices: expected None, because only the primal form is computed by several devices.")
    form = form if n_devices is None else "primal"
    if form is not None:
        check.choice("form", form, ("primal", "dual", "low_rank"))
    if form in ("primal", "dual") and rank is not None:
        raise ValueError(f"rank: expected None with form={form!r}, which is exact, got {rank}.")
    if form == "low_rank" and rank is None:
        raise ValueError("rank: expected a whole number with form='low_rank', such as 512, got None.")
    n_users, n_items = histories.n_users, histories.n_items
    if rank is not None:
        check.whole_number("rank", rank, least=1)
        if rank > min(n_users, n_items):
            raise ValueError(f"rank: expected at most {min(n_users, n_items)}, the smaller side, got {rank}.")
        form = "low_rank"
    exact: tuple[Form, ...] = ("primal", "dual")
    itemsize = histories.weight.dtype.itemsize
    share = 1 if n_devices is None else 2 / n_devices  # a device's columns, and a copy of them while they are counted
    bytes_of = lambda each: int(share * form_bytes(n_users, n_items, each, rank=rank or 0, itemsize=itemsize))
    chosen = min(exact, key=bytes_of) if form is None else form
    limit = _memory_of_device() if max_bytes is None else max_bytes
    if bytes_of(chosen) > limit:
        other = [each for each in exact if each != chosen and bytes_of(each) <= limit]
        advice = (
            f"form={other[0]!r} takes {_readable(bytes_of(other[0]))}"
            if other
            else f"rank=512 takes {_readable(form_bytes(n_users, n_items, 'low_rank', rank=512))}"
        )
        raise ValueError(
            f"form={chosen!r}: {n_users} users and {n_items} items take {_readable(bytes_of(chosen))} "
            f"({bytes_of(chosen)} bytes), more than the {_readable(limit)} that there are (max_bytes=). {advice}."
        )
    return chosen


def _readable(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.3g} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.3g} MB"


def _memory_of_device() -> int:
    """Bytes of the first device's memory; of the machine's on a CPU, which does not say its own."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
