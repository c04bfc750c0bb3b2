"""Waits for the files of a mount in every way that Linux has. Arguments: vector_boot and the name of a model."""
import os
import select
import signal
import sys
import threading

boot, model = sys.argv[1:]
directory = f"{boot}/models/{model}"
FOREVER = 60  # seconds: as long as a test may take
changes = 0


def change():
    """Commits a tensor: one more generation, which wait, session and events hear of."""
    global changes
    changes += 1
    with open(f"{directory}/tensors/output_norm.weight/data", "r+b", buffering=0) as f:
        f.write(bytes([changes]))


def open_all(flags=0):
    wait = os.open(f"{directory}/wait", os.O_RDONLY | flags)
    session = os.open(f"{directory}/session", os.O_RDWR | flags)
    while True:  # the kernel tells of a close after close has returned: wait for the sessions before
        log = open(f"{boot}/events.log").read()
        if log.count('"attach"') == log.count('"detach"') + 1:
            break
    events = os.open(f"{boot}/events", os.O_RDONLY | flags)
    return {wait: "wait", session: "session", events: "events"}


def close_all(fds):
    for fd in fds:
        os.close(fd)


def poller(fds):
    p = select.poll()
    for fd in fds:
        p.register(fd, select.POLLIN)
    return lambda timeout: [fd for fd, _ in p.poll(timeout * 1000)]


def selector(fds):
    return lambda timeout: select.select(list(fds), [], [], timeout)[0]


def epoller(flags):
    def make(fds):
        p = select.epoll()
        for fd in fds:
            p.register(fd, select.EPOLLIN | flags)
        return lambda timeout: [fd for fd, _ in p.poll(timeout)]
    return make


def level(make):
    """Nothing, then all three while there is something to read, then nothing again."""
    fds = open_all()
    ready = make(fds)
    assert ready(0) == [], "ready before anything happened"
    trigger = threading.Thread(target=change)  # while we sleep in the kernel, or before: both must do
    trigger.start()
    assert ready(FOREVER), "nobody woke us"
    trigger.join()
    for _ in range(2):
        assert sorted(ready(FOREVER)) == sorted(fds), "level-triggered: ready until it is read"
    for fd, name in fds.items():
        text = os.read(fd, 4096)
        assert text, name
    assert ready(0) == [], "read, and still ready"
    close_all(fds)


def edge():
    """Every change is an edge, whether the last was read or not; a look without a change is none."""
    fds = open_all()
    ready = epoller(select.EPOLLET)(fds)
    assert ready(0) == [], "ready before anything happened"
    for _ in range(3):
        change()
        seen = set()
        while seen != set(fds):
            some = ready(FOREVER)
            assert some, f"no edge for {[fds[fd] for fd in set(fds) - seen]}"
            seen |= set(some)
        assert ready(0) == [], "no change, no edge"
    close_all(fds)


def nonblocking():
    fds = open_all(os.O_NONBLOCK)
    for fd, name in fds.items():
        try:
            os.read(fd, 100)
            sys.exit(f"{name}: read did not say EAGAIN")
        except BlockingIOError:
            pass
    change()
    for fd, name in fds.items():
        assert os.read(fd, 4096), name
    close_all(fds)


def writable():
    """A session can be written at any time, so poll for output does not wait."""
    fd = os.open(f"{directory}/session", os.O_RDWR)
    p = select.poll()
    p.register(fd, select.POLLOUT)
    assert p.poll(FOREVER * 1000) == [(fd, select.POLLOUT)]
    os.close(fd)


class Signal(Exception):
    pass


def handler(*_):
    raise Signal


def until_signal(call):
    """A signal ends a call that waits: Python would repeat it, did the handler not raise."""
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)  # again and again: one may come before the call
    try:
        while True:
            call()
    except Signal:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def interrupted():
    fds = open_all()
    for fd in fds:
        until_signal(lambda: os.read(fd, 4096))
    ctl = os.open(f"{directory}/ctl", os.O_WRONLY)
    until_signal(lambda: os.write(ctl, b"interrupt 1 timeout=1h"))  # this session never acknowledges
    os.close(ctl)
    close_all(fds)


level(poller)
level(selector)
level(epoller(0))
edge()
nonblocking()
writable()
interrupted()
