"""What a child process may do: the signal it gets as an orphan, and the user it runs as.

Everything here runs between fork and exec, so it calls the kernel and nothing else.
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

# The one account that every Unix has and that owns nothing of worth.
UNPRIVILEGED_USER = "nobody"


def can_follow_parent() -> bool:
    """Say whether this kernel can signal a child when its parent dies."""
    return sys.platform == "linux"


def runs_as_root() -> bool:
    """Say whether this process is root, as in most containers."""
    return os.geteuid() == 0


def unprivileged_account() -> pwd.struct_passwd:
    """Return the account that a server which refuses root runs under."""
    return pwd.getpwnam(UNPRIVILEGED_USER)


def before_exec(*, orphan_signal: signal.Signals, drop_root: bool) -> Callable[[], None] | None:
    """Return what a new child does between fork and exec, or None where there is nothing to do.

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

    A checkout or a virtual environment below /root is closed to every other user. Opening it with chmod would
    change the machine, so the child keeps one capability instead, as an ambient one that outlives exec.
    Where the kernel refuses it, the child goes on without: open folders need no capability.
    """
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    kept = 1 << CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # Two triples of (effective, permitted, inheritable): the low 32 capabilities, then the high ones.
    sets = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)
    if libc.capset(header, sets) == 0:
        libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)
