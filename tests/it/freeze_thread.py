"""Becomes a program, and freezes one of its threads when a file appears: freeze_thread.py FILE THREAD PROGRAM ARGUMENT…

Signals stop whole processes; a debugger's PTRACE_INTERRUPT stops a single thread, as if it hung. FILE.done says that it does.
"""

import ctypes
import os
import sys
import time

PR_SET_PTRACER, PTRACE_SEIZE, PTRACE_INTERRUPT, WAIT_ALL = 0x59616D61, 0x4206, 0x4207, 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, thread):
    if libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def thread_called(name, process):
    tasks = f"/proc/{process}/task"
    for task in os.listdir(tasks):
        with open(f"{tasks}/{task}/comm") as comm:
            if comm.read().strip() == name:
                return int(task)
    raise LookupError(name)


def freeze(file, name, process):
    while os.getppid() == process:
        if os.path.exists(file):
            thread = thread_called(name, process)
            ptrace(PTRACE_SEIZE, thread)
            ptrace(PTRACE_INTERRUPT, thread)
            os.waitpid(thread, WAIT_ALL)
            open(file + ".done", "w").close()
            while os.getppid() == process:
                time.sleep(0.1)
        time.sleep(0.02)


file, name, *program = sys.argv[1:]
process = os.getpid()
child = os.fork()
if child == 0:
    # The program's standard error is watched for its end.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    freeze(file, name, process)
    os._exit(0)
# Where only ancestors may trace (Yama), the program allows it to this one.
libc.prctl(PR_SET_PTRACER, ctypes.c_ulong(child), 0, 0, 0)
os.execv(program[0], program)
