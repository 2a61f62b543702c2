"""Clocks that jump: under every process that asks what time it is, and in the times that files bear."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cong.stream import list_stream, verify
from tests.stream.streams import folder_store, keys, read_keys

JUMPING = textwrap.dedent(
    """
    /* The wall clock is more than a day off, in another direction each time it is read; the steady clock is true. */
    #define _GNU_SOURCE
    #include <stddef.h>
    #include <sys/syscall.h>
    #include <sys/time.h>
    #include <time.h>
    #include <unistd.h>

    static long off(void) {
        static unsigned state = 1;
        state = state * 1103515245u + 12345u;
        return (long)((state >> 8) % 400000) - 200000;
    }

    int clock_gettime(clockid_t clock, struct timespec *now) {
        int failed = (int)syscall(SYS_clock_gettime, clock, now);
        if (!failed && clock == CLOCK_REALTIME) now->tv_sec += off();
        return failed;
    }

    int gettimeofday(struct timeval *now, void *zone) {
        struct timespec exact;
        (void)zone;
        clock_gettime(CLOCK_REALTIME, &exact);
        now->tv_sec = exact.tv_sec;
        now->tv_usec = exact.tv_nsec / 1000;
        return 0;
    }

    time_t time(time_t *now) {
        struct timespec exact;
        clock_gettime(CLOCK_REALTIME, &exact);
        if (now != NULL) *now = exact.tv_sec;
        return exact.tv_sec;
    }
    """
)

PROGRAM = textwrap.dedent(
    """
    # A writer with a journal and segments sealed by age, and a reader that follows it, in three lives.
    import json, os, sys, threading, time
    from cong.config.stream import FollowSettings, ReadSettings, WriteSettings
    from cong.lab.records import synthetic_record
    from cong.stream import StreamReader, StreamWriter, open_store

    location = sys.argv[1]
    times = [time.time() for _ in range(100)]
    backwards = sum(later < earlier - 3600 for earlier, later in zip(times, times[1:]))
    settings = WriteSettings(rows_per_segment=7, max_age_s=0.03, acknowledge_s=0.01, has_journal=True, timeout_s=20.0)
    followed = []

    def follow():
        wanted = ReadSettings(follow=FollowSettings(poll_s=0.01, idle_timeout_s=20.0), max_records=60)
        for table, _ in StreamReader(open_store(location), wanted).tables(8, ["key"]):
            followed.extend(table.column("key").to_pylist())

    reader = threading.Thread(target=follow)
    reader.start()
    for life in range(3):
        with StreamWriter(open_store(location), settings, "w") as writer:
            for number in range(20 * life, 20 * life + 20):
                writer.append(synthetic_record(number), "local" if number % 2 else "none")
                if number % 5 == 0:
                    time.sleep(0.04)
        # Files bear the times of clocks, and these are wrong too.
        for number, item in enumerate(sorted(os.scandir(location + "/segments"), key=lambda item: item.name)):
            os.utime(item.path, (0, 10**9 * (1 + number * 7 % 3)))
    reader.join(30)
    print(json.dumps([backwards, followed]))
    """
)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make a clock with")
def test_clocks_that_jump_under_writers_and_readers_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "clock.c").write_text(JUMPING)
    clock = tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", clock, tmp_path / "clock.c"], check=True, timeout=60)
    store = folder_store(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, store.root],
        env={**os.environ, "OMP_NUM_THREADS": "1", "LD_PRELOAD": str(clock)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    num_backwards, followed = json.loads(done.stdout)
    assert num_backwards > 10, "the clock does jump"
    # A life may end between two looks of the reader; then it stops, as every writer has closed.
    assert followed == keys(range(len(followed)))
    assert read_keys(store) == keys(range(60))
    assert verify(store).problems == []
    assert len(list_stream(store).segments) > 60 / 7, "age sealed segments before they were full"
