"""Prepare a child process between fork and exec: the signal it gets as an orphan, and the user it runs as.

Code between fork and exec may call the kernel and nothing else.
"""

import ctypes
import os
import pwd
import signal
import sys
from collections.abc import Callable

# Source: Linux uapi headers, linux/prctl.h and linux/capability.h.
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1


def can_follow_parent() -> bool:
    """Return True if this kernel can signal a child when its parent dies."""
    return sys.platform == "linux"


def runs_as_root() -> bool:
    """Return True if this process is root, as in most containers."""
    return os.geteuid() == 0


def unprivileged_account() -> pwd.struct_passwd:
    """Return the account for servers that refuse root: `nobody` exists on every Unix and owns nothing of worth."""
    return pwd.getpwnam("nobody")


def before_exec(*, orphan_signal: signal.Signals, drop_root: bool) -> Callable[[], None] | None:
    """Return the function that a new child calls between fork and exec, or None where there is none.

    The user changes first: the kernel forgets the parent-death signal when a process changes its user.
    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if not can_follow_parent():
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    account = unprivileged_account() if drop_root and runs_as_root() else None
    parent = os.getpid()

    def prepare() -> None:
        if account is not None:
            _become(libc, account)
        libc.prctl(PR_SET_PDEATHSIG, int(orphan_signal), 0, 0, 0)
        # The parent may have died before the line above took effect; then no signal ever comes.
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _become(libc: ctypes.CDLL, account: pwd.struct_passwd) -> None:
    """Leave root for `account`, and keep the right to walk through folders that only root may enter.

    A checkout or a virtual environment below /root is closed to every other user. Opening it with chmod would change
    the machine, so the child keeps one capability as an ambient one that outlives exec, where the kernel allows it.
    """
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    capability = 1 << CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # Two triples of (effective, permitted, inheritable): the low 32 capabilities, then the high ones.
    sets = (ctypes.c_uint32 * 6)(capability, capability, capability, 0, 0, 0)
    if libc.capset(header, sets) == 0:
        libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)
