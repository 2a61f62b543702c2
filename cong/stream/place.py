"""Whether a stream can be written at a place, asked before anything that takes long is done for its sake.

No epoch is claimed: a process that gets no further must not look like a writer, whose end would be the stream's.
"""

import contextlib
import secrets

from cong.config.stream import WriteSettings
from cong.errors import StreamError
from cong.stream.identity import read_identity
from cong.stream.names import TEMPORARY_PREFIX, WRITERS
from cong.stream.ownership import require_writer_id
from cong.stream.recovery import journal_place
from cong.stream.store import LocalStore, Store, make_folders
from cong.wording import with_remedy


def require_place(store: Store, settings: WriteSettings, writer_id: str) -> None:
    """Refuse what a writer would be refused when it opens: an id, a place, a damaged identity, a journal's folder.

    Raises:
        StreamError: Nothing can be stored there.
    """
    require_writer_id(writer_id)
    journal_files, journal_dir = journal_place(store, settings, None)
    read_identity(store)
    store.prepare()
    _try_writing(store, f"{WRITERS}/")
    if settings.has_journal:
        try:
            make_folders(journal_files, journal_dir)
        except OSError as error:
            raise StreamError(f"cannot make the journal's folder {journal_dir}: {with_remedy(error)}") from error
        _try_writing(LocalStore(journal_dir, journal_files), "")


def _try_writing(store: Store, folder: str) -> None:
    probe = f"{folder}{TEMPORARY_PREFIX}{secrets.token_hex(4)}-probe"
    try:
        store.publish(probe, b"")
    except StreamError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        # The passing name of the probe would tell nobody anything.
        raise StreamError(f"cannot write into {store.location}: {with_remedy(error.__cause__)}") from error
    # A store that lets nobody delete can be written to all the same; a name that begins so is no part of a stream.
    with contextlib.suppress(StreamError):
        store.delete([probe])
