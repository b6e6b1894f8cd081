"""A worker process: answers in order, and survives its own death."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from runtime.worker import Worker, WorkerError


@asynccontextmanager
async def worker(**options: Any) -> AsyncIterator[Worker]:
    """Run the worker of tests/kit, which does as the first byte of a request says."""
    one = Worker("tests.kit.worker_process", **options)
    try:
        yield one
    finally:
        await one.close()
        assert one.pid is None


async def test_nothing_runs_before_the_first_call() -> None:
    async with worker() as one:
        assert not one.running
        assert await one.call(b"echo") == b"echo"
        assert one.running


async def test_answers_come_in_the_order_of_the_requests() -> None:
    async with worker() as one:
        requests = [b"e%d" % n * (n * 1000 + 1) for n in range(50)]
        assert await asyncio.gather(*map(one.call, requests)) == requests


async def test_a_call_that_was_given_up_does_not_shift_the_answers() -> None:
    async with worker() as one:
        await one.call(b"e")
        given_up = asyncio.create_task(one.call(b"e given up"))
        await asyncio.sleep(0)
        given_up.cancel()
        assert await one.call(b"e next") == b"e next"
        assert one.starts == 1


async def test_every_call_fails_when_the_process_dies_and_the_next_starts_another() -> None:
    async with worker(retry_s=0) as one:
        await one.call(b"e")
        assert one.pid is not None
        first = one.pid
        os.kill(first, signal.SIGSTOP)
        calls = [asyncio.create_task(one.call(b"e%d" % n)) for n in range(3)]
        await asyncio.sleep(0)
        os.kill(first, signal.SIGKILL)
        for call in calls:
            with pytest.raises(WorkerError):
                await call
        assert await one.call(b"e again") == b"e again"
        assert one.pid not in (None, first)


async def test_a_request_that_ends_the_process_fails() -> None:
    async with worker(retry_s=0) as one:
        with pytest.raises(WorkerError):
            await one.call(b"x")


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_process_whose_pipe_is_closed_is_replaced(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def run() -> None:
        async with worker(retry_s=0) as one:
            await one.call(b"e")
            first, process = one.pid, one._process
            assert process is not None
            assert process.stdin is not None
            process.send_signal(signal.SIGSTOP)  # the end of its output is still to come
            process.stdin.transport.abort()
            await process.stdin.wait_closed()
            with pytest.raises(WorkerError):
                await one.call(b"e")
            assert await one.call(b"e again") == b"e again"
            assert one.pid != first

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


async def test_it_is_not_started_again_at_once() -> None:
    async with worker(retry_s=600) as one:
        with pytest.raises(WorkerError):
            await one.call(b"x")
        with pytest.raises(WorkerError, match="a moment ago"):
            await one.call(b"e")
        assert one.starts == 1


async def test_a_patient_one_is_waited_for() -> None:
    loop = asyncio.get_running_loop()
    async with worker(retry_s=0.3, patient=True) as one:
        started_s = loop.time()
        for _ in range(2):
            with pytest.raises(WorkerError, match="has ended"):
                await one.call(b"x")
        assert await one.call(b"echo") == b"echo"
        assert one.starts == 3
        assert loop.time() - started_s >= 0.6


async def test_one_that_hangs_is_ended() -> None:
    async with worker(retry_s=0) as one:
        await one.call(b"e")  # it is up: only the answer is waited for
        one._timeout_s = 0.05
        with pytest.raises(WorkerError, match="no answer"):
            await one.call(b"hang")
        one._timeout_s = 60
        assert await one.call(b"e") == b"e"


async def test_it_ends_with_its_parents_end_of_the_pipe() -> None:
    async with worker() as one:
        await one.call(b"e")
        process = one._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0


async def test_a_module_that_is_not_there_fails_the_call() -> None:
    one = Worker("tests.kit.no_such_module")
    with pytest.raises(WorkerError):
        await one.call(b"e")
    await one.close()


def test_a_worker_whose_parent_was_killed_ends_without_a_word() -> None:
    """Its answer has nobody to go to: no traceback in a log that somebody reads."""
    size = struct.Struct("<I")
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kit.worker_process"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        child.stdin.write(size.pack(4) + b"echo")
        child.stdin.flush()
        assert child.wait(60) == 0
        assert child.stderr.read() == b""
