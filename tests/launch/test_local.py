"""The ranks of a run on this machine: what they get, how they end, whose fault it was."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dsv3_plugin.launch.local import LocalProcesses


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts ranks that run the given lines of Python; all are gone after the test."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    started = []

    def start(code: str, processes: int = 2) -> LocalProcesses:
        header = (
            "import os, signal, sys, time\nfrom dsv3_plugin.distributed.messages import Outbox\n"
            'rank = int(os.environ["RANK"])\nsend = Outbox().send\n'
        )
        (tmp_path / "a_rank.py").write_text(header + textwrap.dedent(code))
        ranks = LocalProcesses(
            "a_rank", ["an argument"], processes=processes, log_directory=tmp_path / "logs"
        )
        started.append(ranks)
        return ranks

    yield start
    for ranks in started:
        if ranks.running:
            ranks.stop(patience=1)


def ended(ranks: LocalProcesses) -> LocalProcesses:
    deadline = time.monotonic() + 30
    while ranks.running:
        assert time.monotonic() < deadline
        ranks.inbox.receive()  # a pipe that nobody empties fills up
        time.sleep(0.01)
    ranks.inbox.receive()
    return ranks


def test_each_rank_knows_its_place_and_has_its_log(start):
    ranks = ended(
        start("""
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
        print(*(os.environ[name] for name in names), *sys.argv[1:])
        """)
    )
    assert ranks.failure() is None
    said = [log.read_text().splitlines()[-1] for log in ranks.logs]
    assert said == ["0 0 2 2 127.0.0.1 an argument", "1 1 2 2 127.0.0.1 an argument"]


def test_logs_of_earlier_starts_are_kept(start):
    ended(start("print('first')"))
    ranks = ended(start("print('second')"))
    assert [word for word in ranks.logs[0].read_text().split() if word.isalpha()] == [
        "first",
        "second",
    ]


def test_ranks_meet_where_no_other_user_of_the_machine_can(start):
    """Whoever writes into the store joins the run: it has no port, and no name on a disk."""
    ranks = ended(
        start("""
        import datetime
        import psutil
        import torch
        from dsv3_plugin.distributed.world import store_in_file
        listening = lambda: [
            each.laddr.ip for each in psutil.Process().net_connections() if each.status == "LISTEN"
        ]
        store = store_in_file(int(os.environ["DSV3_STORE_FD"]), datetime.timedelta(seconds=30))
        store.set(f"from {rank}", str(rank))
        assert store.get(f"from {1 - rank}") == str(1 - rank).encode()
        assert listening() == []
        assert os.readlink(f"/proc/self/fd/{os.environ['DSV3_STORE_FD']}").startswith("/memfd:")
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
        assert {*listening()} == {"127.0.0.1"}  # of gloo, which knows whom it waits for
        torch.distributed.barrier()
        """)
    )
    assert ranks.failure() is None, [log.read_text() for log in ranks.logs]


def test_messages_arrive_in_order_and_whole(start):
    ranks = ended(
        start("""
        for number in range(100):
            send("note", f"{rank} {number} " + "x" * 2000)
        """)
    )
    received = ranks.inbox.received
    assert len(received) == 200
    for rank in range(2):
        mine = [message.text.split()[:2] for message in received if message.rank == rank]
        assert mine == [[str(rank), str(number)] for number in range(100)]


def test_a_sentence_for_the_user_explains_more_than_what_follows_from_it(start):
    ranks = ended(
        start("""
        if rank == 1:
            send("refused", "the disk is full.")
            os._exit(2)
        time.sleep(0.3)
        send("crashed", "connection reset")
        os._exit(1)
        """)
    )
    failure = ranks.failure()
    assert (failure.rank, failure.exit_code, failure.message.text) == (1, 2, "the disk is full.")


def test_a_sentence_counts_while_its_rank_is_still_on_its_way_out(start):
    ranks = start("""
        if rank == 0:
            send("refused", "the corpus is empty.")
            time.sleep(60)
        time.sleep(0.5)
        os._exit(2)
    """)
    deadline = time.monotonic() + 60
    while not (ranks.failed and ranks.inbox.receive() + ranks.inbox.received):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    failure = ranks.failure()
    assert (failure.rank, failure.exit_code, failure.message.text) == (0, 2, "the corpus is empty.")


def test_a_killed_rank_explains_more_than_the_crash_of_its_neighbour(start):
    ranks = ended(
        start("""
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        send("crashed", "connection reset")
        os._exit(1)
        """)
    )
    failure = ranks.failure()
    assert (failure.rank, failure.signal) == (1, signal.SIGKILL)


def test_of_two_crashes_the_first_counts(start, tmp_path):
    ranks = ended(
        start(f"""
        while rank == 0 and not os.path.exists("{tmp_path}/crashed"):
            time.sleep(0.01)
        send("crashed", f"crash of {{rank}}")
        open("{tmp_path}/crashed", "w").close()
        os._exit(1)
        """)
    )
    assert ranks.failure().message.text == "crash of 1"


def test_stop_asks_first_and_then_makes_them_end(start, tmp_path):
    ranks = start(f"""
        def asked(number, frame):
            open("{tmp_path}/asked" + str(rank), "w").close()
            if rank == 0:
                os._exit(0)
        signal.signal(signal.SIGTERM, asked)
        open("{tmp_path}/ready" + str(rank), "w").close()
        while True:
            time.sleep(0.01)
        """)
    while len(list(tmp_path.glob("ready*"))) < 2:
        time.sleep(0.01)
    ranks.stop(patience=0.5)
    assert len(list(tmp_path.glob("asked*"))) == 2
    assert not ranks.running


def test_ranks_do_not_outlive_a_killed_parent(tmp_path):
    code = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from dsv3_plugin.launch.local import LocalProcesses
        ranks = LocalProcesses("a_rank", [], processes=2, log_directory=Path("{tmp_path}/logs"))
        print(*(process.pid for process in ranks._processes), flush=True)
        time.sleep(60)
    """)
    (tmp_path / "a_rank.py").write_text("import time\ntime.sleep(60)\n")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    }
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_of_ranks_that_nccls_watchdog_ends_the_one_that_they_waited_for_is_named(start):
    """On NCCL those that wait for a lost rank abort; the lost one is the one that has not."""
    ranks = start("""
        if rank == 1:
            time.sleep(60)
        print(f"[rank{rank}]:[E1126 06:42:0{rank}.5 ProcessGroupNCCL.cpp:632] [Rank {rank}] "
              "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5, OpType=ALLREDUCE, "
              "NumelIn=1, NumelOut=1, Timeout(ms)=1000) ran for 1001 milliseconds", flush=True)
        os.abort()
    """, processes=3)  # fmt: skip
    deadline = time.monotonic() + 60
    while sum(process.poll() is not None for process in ranks._processes) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ranks.aborting
    failure = ranks.failure()
    assert (failure.rank, failure.log, failure.lost.ranks) == (1, ranks.logs[1], [1])
    assert failure.lost.sentence.startswith("gave no sign, for which rank 0 waited in ALLREDUCE")
