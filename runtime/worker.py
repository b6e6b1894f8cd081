"""A process of its own for work that would hold the loop: requests in, answers out, in order.

    worker = Worker("edge.encoder_process", "3")     starts nothing
    answer = await worker.call(request)              starts it, or raises WorkerError

The child runs `serve(handle)` as its main program and ends with its standard input, so it never
outlives its parent, whatever that died of. Frames both ways are a 32-bit length and as many bytes.

Invariants: answers come in the order of the requests; whatever goes wrong with the child ends the
child, and every call that waits for it raises WorkerError. The next call starts another one, but
none sooner than `retry_s` after the one before: until then it raises too, or waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable

__all__ = ["Worker", "WorkerError", "serve"]

_LENGTH = struct.Struct("<I")
FRAME_BYTES_MAX = 128 << 20
_PIPE_BYTES = 1 << 20
_END_S = 5.0  # for a process to end whose pipes are closed


class WorkerError(Exception):
    """The worker's process has ended, or could not be started."""


class Worker:
    """One child process, started by the first call.

    Args:
        module: Run as `python -m module`; it calls `serve`.
        arguments: For its command line.
        retry_s: Least time between two starts.
        patient: Whether a call that comes sooner waits for that time, instead of raising.
        timeout_s: A call that takes longer ends the process.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        retry_s: float = 1.0,
        patient: bool = False,
        timeout_s: float = 60.0,
    ) -> None:
        self._command = (sys.executable, "-m", module, *arguments)
        self._retry_s = retry_s
        self._patient = patient
        self._timeout_s = timeout_s
        self._process: Process | None = None
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._start_at_s = 0.0
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """True while there is a process."""
        return self._process is not None

    async def call(self, request: bytes) -> bytes:
        """Return the answer to a request.

        Raises:
            WorkerError: the process ended, hangs, or may not be started again yet.
        """
        process = await self._running_process()
        assert process.stdin is not None
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        try:
            process.stdin.write(_LENGTH.pack(len(request)) + request)
            async with asyncio.timeout(self._timeout_s):
                await process.stdin.drain()
                return await answer
        except TimeoutError:
            self._end(process)
            _kill(process)
            raise WorkerError(f"no answer within {self._timeout_s:g} s") from None
        except (OSError, RuntimeError) as error:  # uvloop: RuntimeError, once the pipe is closed
            self._end(process)
            _kill(process)  # one that closed its end of the pipe lives on
            raise WorkerError(f"the worker's process has ended: {error}") from None

    async def close(self) -> None:
        """End the process; a later call starts another one."""
        reading = self._reading
        process = self._process
        if process is not None:
            self._end(process)
            _kill(process)
        if reading is not None:
            await asyncio.gather(reading, return_exceptions=True)

    async def _running_process(self) -> Process:
        async with self._starting:
            if self._process is not None:
                return self._process
            loop = asyncio.get_running_loop()
            early_s = self._start_at_s - loop.time()
            if early_s > 0:
                if not self._patient:
                    raise WorkerError("the worker's process ended a moment ago")
                await asyncio.sleep(early_s)
            self._start_at_s = loop.time() + self._retry_s
            self.starts += 1
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=PIPE, stdout=PIPE, limit=_PIPE_BYTES
                )
            except OSError as error:
                raise WorkerError(f"the worker's process cannot be started: {error}") from None
            self._process = process
            self._reading = asyncio.create_task(self._read(process), name="worker-answers")
            return process

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        try:
            while True:
                (size,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
                answer = await process.stdout.readexactly(size)
                waiting = self._waiting.popleft()
                if not waiting.done():
                    waiting.set_result(answer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._end(process)
            with contextlib.suppress(OSError):
                await process.stdin.wait_closed()  # type: ignore[union-attr] # it is a pipe
            try:
                async with asyncio.timeout(_END_S):
                    await process.wait()
            except TimeoutError:
                _kill(process)
                await process.wait()

    def _end(self, process: Process) -> None:
        """Let the process go and fail what waits for it, once."""
        if self._process is not process:
            return
        self._process = None
        assert process.stdin is not None
        process.stdin.close()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(WorkerError("the worker's process has ended"))
                waiting.exception()  # retrieved, should nobody wait any more


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def serve(handle: Callable[[bytes], bytes], *, niceness: int = 0) -> None:
    """Answer requests on standard input until it ends: the child's main loop.

    Args:
        handle: Makes the answer of a request; what it raises ends the process.
        niceness: How far the process steps back behind others.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends in order, and this with it
    if niceness:
        os.nice(niceness)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing but answers goes out there
    while len(head := requests.read(_LENGTH.size)) == _LENGTH.size:
        (size,) = _LENGTH.unpack(head)
        if size > FRAME_BYTES_MAX:
            return
        request = requests.read(size)
        if len(request) < size:
            return
        answer = handle(request)
        try:
            answers.write(_LENGTH.pack(len(answer)) + answer)
            answers.flush()
        except BrokenPipeError:  # the parent was killed, and nobody waits any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())
            return
