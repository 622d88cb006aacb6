"""What is said where measuring ends before its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from repshift_cli.benchmark.engine import Session
from repshift_cli.commands.shared.output import Outputs
from repshift_cli.records import RepshiftError
from repshift_cli.records.journal import StoreError
from repshift_cli.renderers import document_of


@contextlib.contextmanager
def said_where_it_stopped(session: Session, outputs: Outputs, say: Callable[[Session, str], None]) -> Iterator[None]:
    """`say` tells, after one word of why, how far the run came and what goes on with it.

    Where the disk took no more, what was measured is shown too.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        session.journal.close()
        say(session, "\ninterrupted")
        raise
    except StoreError:
        run = session.journal.snapshot()
        session.close()
        with contextlib.suppress(RepshiftError):  # no room for its files either
            outputs.emit(document_of(run))
        say(session, "stopped")
        raise
