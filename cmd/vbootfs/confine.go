package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// needed are the capabilities that a daemon of root works with; it gives up the
// others before it mounts, for itself and whatever it could start.
var needed = []int{
	unix.CAP_SYS_ADMIN,    // mounting, passthrough, trusted attributes
	unix.CAP_DAC_OVERRIDE, // files of all users; the kernel has asked for permission before it asks us
	unix.CAP_FOWNER,       // their modes, times and attributes
	unix.CAP_CHOWN,
	unix.CAP_FSETID,  // set-group-ID on files of groups that we are not in
	unix.CAP_MKNOD,   // device nodes, which nobody can open
	unix.CAP_SETFCAP, // security.capability, which a copy keeps and the mount ignores
}

// confine gives up what the daemon does not need. Capabilities belong to threads,
// and a Go program has many of them before it can say so; so the one that gives
// them up starts the program over, which then finds nothing left to do.
func confine() error {
	if err := closeInherited(); err != nil {
		return err
	}
	// No page that was written is executed: an old kernel does not know how to say so.
	_ = unix.Prctl(unix.PR_SET_MDWE, unix.PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
	if unix.Geteuid() != 0 {
		return nil // the setuid helper mounts, so new privileges are wanted
	}
	have, err := holds()
	if err != nil || have&^mask(needed) == 0 {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return giveUp()
}

func mask(caps []int) (m uint64) {
	for _, c := range caps {
		m |= 1 << c
	}
	return m
}

// holds are the capabilities of this thread.
func holds() (uint64, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, err
	}
	return uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted), nil
}

// giveUp takes away what a program that this thread starts would get, and starts
// this one over. In a container that may not, the daemon keeps what it was given.
func giveUp() error {
	keep := mask(needed)
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		if keep&(1<<c) != 0 {
			continue
		}
		switch err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err {
		case nil, unix.EINVAL: // EINVAL: this kernel has fewer
		case unix.EPERM:
			return nil
		default:
			return fmt.Errorf("giving up capability %d: %w", c, err)
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, os.Environ())
}

// closeInherited closes descriptors that whoever started us left open, but for
// standard input and output and the one on which the parent waits. Those that
// this program opened are closed by exec, and have the mark for it.
func closeInherited() error {
	ready, _ := strconv.Atoi(os.Getenv(childEnv))
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return err
	}
	for _, name := range names {
		fd, err := strconv.Atoi(filepath.Base(name))
		if err != nil || fd <= 2 || fd == ready {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
	return nil
}
