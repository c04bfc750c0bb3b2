package fs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// attach mounts and returns the connection to the kernel, a descriptor of /dev/fuse
// that the caller owns. Root mounts by itself; others ask the setuid helper.
func attach(o Options) (int, error) {
	if unix.Geteuid() == 0 {
		return attachRoot(o)
	}
	return attachHelper(o)
}

func attachRoot(o Options) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(o.Mountpoint, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return -1, unix.ENOTDIR // the kernel would mount on a file, too
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/fuse: %w", err)
	}
	flags := o.Flags | unix.MS_NOSUID | unix.MS_NODEV
	if o.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d,default_permissions",
		fd, st.Mode&unix.S_IFMT, unix.Geteuid(), unix.Getegid(), maxReply)
	if o.AllowOther {
		data += ",allow_other"
	}
	if err := unix.Mount(o.Source, o.Mountpoint, "fuse."+fsType, flags, data); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// attachHelper lets fusermount3 mount: it opens /dev/fuse and hands it over through
// a socket, which is its descriptor 3.
func attachHelper(o Options) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "fusermount3"), os.NewFile(uintptr(pair[1]), "fusermount3")
	defer ours.Close()
	defer theirs.Close()
	cmd := exec.Command("fusermount3", "-o", helperOptions(o), "--", o.Mountpoint)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	if out, err := cmd.CombinedOutput(); err != nil {
		return -1, fmt.Errorf("fusermount3: %w: %s", err, bytes.TrimSpace(out))
	}
	return receive(pair[0])
}

// helperOptions is what fusermount3 is asked for. A comma ends an option, so one in
// a value is escaped.
func helperOptions(o Options) string {
	escape := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	list := []string{"default_permissions", "fsname=" + escape.Replace(o.Source), "subtype=" + fsType,
		fmt.Sprintf("max_read=%d", maxReply)}
	if o.AllowOther {
		list = append(list, "allow_other")
	}
	if o.ReadOnly {
		list = append(list, "ro")
	}
	return strings.Join(list, ",")
}

// receive takes the one descriptor that was sent through a socket.
func receive(socket int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fusermount3: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("fusermount3 sent no descriptor: %w", unix.EPROTO)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("fusermount3 sent no descriptor: %w", unix.EPROTO)
	}
	return fds[0], nil
}
