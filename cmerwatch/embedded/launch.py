"""Becomes another program after tying its life to the parent and giving up root; run by path, standard library only.

A process of its own rather than a preexec_fn: code run between fork and exec in a parent with threads can deadlock.
The pid stays the same, since it ends in exec.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys

# From linux/prctl.h and linux/capability.h.
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522


class CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class CapData(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def drop_root(uid: int, gid: int, *, reach: bool) -> None:
    """Become uid:gid. `reach` keeps the one right to pass folders closed to that user (a checkout under /root),
    so that no folder of the machine has to be opened for it. Raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if reach:
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if not reach:
        return
    header = CapHeader(CAPABILITY_VERSION_3, 0)
    data = (CapData * 2)()
    data[0].effective = data[0].permitted = data[0].inheritable = 1 << CAP_DAC_OVERRIDE
    if libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        raise OSError(ctypes.get_errno(), "cannot keep the right to pass closed folders")
    if libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot pass on the right to pass closed folders")


def die_with(parent: int, signal_number: int) -> None:
    """Ask the kernel to signal this process when its parent dies. After drop_root: a change of user clears it."""
    if not sys.platform.startswith("linux"):
        return  # the next start on the same folder cleans up instead
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)  # it died before the call above


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--death-signal", type=int, required=True)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--reach", action="store_true")
    parser.add_argument("argv", nargs="+")
    options = parser.parse_args()
    if options.uid is not None:
        drop_root(options.uid, options.gid, reach=options.reach)
    die_with(options.parent, options.death_signal)
    os.execv(options.argv[0], options.argv)


if __name__ == "__main__":
    main()
