"""Who writes a lane: an epoch of a writer id is claimed once, and whoever has an older one must stop."""

from cong.errors import StreamError, StreamFenced
from cong.stream.listing import list_stream
from cong.stream.names import WRITER_ID, WRITERS, Lane, Marker
from cong.stream.store import Store

_CLAIM_TRIES = 100


def require_writer_id(name: str) -> None:
    """A writer id becomes part of file names."""
    if WRITER_ID.fullmatch(name) is None:
        raise StreamError(
            f"writer id {name!r} must match {WRITER_ID.pattern}: at most 64 letters, digits, dots, dashes and "
            "underscores, the first a letter or a digit"
        )


def claim(store: Store, name: str) -> Lane:
    """The next epoch of a writer id, as ours alone."""
    for _ in range(_CLAIM_TRIES):
        lane = Lane(name, list_stream(store).latest_epoch(name) + 1)
        if store.create(Marker("claim", lane).path, b""):
            return lane
    raise StreamError(f"writer id {name!r} was claimed {_CLAIM_TRIES} times by others meanwhile; use another id")


def require_unfenced(store: Store, lane: Lane) -> None:
    """Refuse to go on where another process has claimed a later epoch."""
    markers = (Marker.parse(name) for name in store.names(WRITERS))
    epochs = [marker.lane.epoch for marker in markers if marker and marker.lane.writer == lane.writer]
    if max(epochs, default=0) > lane.epoch:
        raise StreamFenced(
            f"writer id {lane.writer!r} was claimed by another process, which has epoch {max(epochs)}; this one has "
            f"{lane.epoch} and must stop. Give each process its own id"
        )
