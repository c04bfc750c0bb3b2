package fs

import (
	"slices"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// covered knows whether something else is mounted on a file or directory of the
// mount. A new epoch makes the kernel look at all names anew, and whatever is mounted
// on one that it looks at is detached then.
type covered struct {
	mu    sync.Mutex // guards all below
	fd    int        // of /proc/self/mountinfo; 0 when there is nothing to ask
	major int        // of the file system
	minor int
	is    bool
}

// watch begins to look at what is mounted on the mount at dir, as far as this process
// sees it.
func (c *covered) watch(dir string) {
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil || len(found) == 0 {
		return
	}
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	top := found[len(found)-1]
	c.fd, c.major, c.minor = fd, top.Major, top.Minor
}

// now reports whether something is mounted there. The list is read when it has changed.
func (c *covered) now() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd == 0 {
		return false
	}
	ask := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLPRI}}
	if n, err := unix.Poll(ask, 0); err == nil && n == 0 {
		return c.is
	}
	list, err := mountinfo.GetMounts(nil)
	if err != nil {
		return c.is
	}
	ours := map[int]bool{}
	for _, m := range list {
		if m.Major == c.major && m.Minor == c.minor {
			ours[m.ID] = true
		}
	}
	c.is = slices.ContainsFunc(list, func(m *mountinfo.Info) bool { return ours[m.Parent] })
	return c.is
}

func (c *covered) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd != 0 {
		unix.Close(c.fd)
		c.fd = 0
	}
}
