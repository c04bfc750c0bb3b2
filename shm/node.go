package shm

import (
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Owner is the user that a new file belongs to.
type Owner struct{ UID, GID uint32 }

// Node is one inode of a store, held by a descriptor, so that no operation on it
// ever goes through a path that could have changed meanwhile. The descriptor is
// an O_PATH one until File; it stays the same number. The node owns it until Close.
type Node struct {
	Ino  uint64
	Type uint32 // S_IFREG, S_IFDIR, ...

	s  *Store
	fd int

	mu sync.Mutex // guards io; held while a file's charge changes
	io bool       // fd reads and writes
}

// node takes over fd.
func (s *Store) node(fd int) (*Node, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	n := &Node{Ino: st.Ino, Type: st.Mode & unix.S_IFMT, s: s, fd: fd}
	s.opened(n)
	return n, nil
}

// Close releases the descriptor. The caller must be the last user.
func (n *Node) Close() {
	n.s.closed(n)
	unix.Close(n.fd)
}

// Dup returns a second, independent handle of the inode.
func (n *Node) Dup() (*Node, error) {
	fd, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return n.s.node(fd)
}

// magic names the inode in calls that do not take an O_PATH descriptor.
func (n *Node) magic() string { return "/proc/self/fd/" + strconv.Itoa(n.fd) }

// File is a descriptor open for reading and writing that belongs to the node.
func (n *Node) File() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.io {
		return n.fd, nil
	}
	fd, err := unix.Open(n.magic(), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == unix.EACCES { // unprivileged daemon, file without write permission
		fd, err = unix.Open(n.magic(), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	// In one step, for others use n.fd meanwhile.
	if err := unix.Dup3(fd, n.fd, unix.O_CLOEXEC); err != nil {
		return -1, err
	}
	n.io = true
	return n.fd, nil
}

// Path is the inode's path relative to Live, as the kernel knows it now; false
// when it has no name there. It follows renames of the file and of its parents.
func (n *Node) Path() (string, bool) {
	buf := make([]byte, unix.PathMax)
	k, err := unix.Readlink(n.magic(), buf)
	if err != nil {
		return "", false
	}
	p := string(buf[:k])
	if strings.HasSuffix(p, " (deleted)") {
		var a, b unix.Stat_t
		same := unix.Fstat(n.fd, &a) == nil && a.Nlink > 0 &&
			unix.Lstat(filepath.Join(n.s.Root, n.s.strip(p)), &b) == nil && a.Ino == b.Ino
		if !same {
			return n.s.find(n.s.Live, ".", a)
		}
	}
	p = n.s.strip(p)
	if p == "/live" {
		return ".", true
	}
	return strings.CutPrefix(p, "/live/")
}

// find looks for another name of a file that lost the one it was opened by.
func (s *Store) find(dir *Node, at string, st unix.Stat_t) (string, bool) {
	if st.Nlink == 0 {
		return "", false
	}
	ents, err := dir.Names()
	if err != nil {
		return "", false
	}
	for _, e := range ents {
		p := filepath.Join(at, e.Name)
		if e.Ino == st.Ino {
			return p, true
		}
		if e.Type != unix.S_IFDIR {
			continue
		}
		sub, err := dir.Lookup(e.Name)
		if err != nil {
			continue
		}
		p, ok := s.find(sub, p, st)
		sub.Close()
		if ok {
			return p, true
		}
	}
	return "", false
}

// strip removes the root: the detached mount of a private store shows paths
// that begin at the tmpfs itself.
func (s *Store) strip(p string) string {
	if s.Private {
		return p
	}
	return strings.TrimPrefix(p, s.Root)
}

// Stat is fstat.
func (n *Node) Stat() (st unix.Stat_t, err error) {
	err = unix.Fstat(n.fd, &st)
	return st, err
}

// Size is the file's size in bytes, 0 when it cannot be told.
func (n *Node) Size() int64 {
	st, err := n.Stat()
	if err != nil {
		return 0
	}
	return st.Size
}

// Lookup opens the child of that name; symlinks are not followed.
func (n *Node) Lookup(name string) (*Node, error) {
	fd, err := unix.Openat(n.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return n.s.node(fd)
}

// Walk opens a path below the node, component by component.
func (n *Node) Walk(path string) (*Node, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(n.fd, path, &how)
	if err != nil {
		return nil, err
	}
	return n.s.node(fd)
}

// Create makes and opens a regular file; it fails with EEXIST when the name is
// taken. An owner of nil keeps the daemon's.
func (n *Node) Create(name string, mode uint32, own *Owner) (*Node, error) {
	return n.open(name, unix.O_CREAT|unix.O_EXCL, mode, own)
}

// Tmpfile makes a regular file without a name in the directory.
func (n *Node) Tmpfile(mode uint32, own *Owner) (*Node, error) {
	return n.open(".", unix.O_TMPFILE, mode, own)
}

func (n *Node) open(name string, flags int, mode uint32, own *Owner) (*Node, error) {
	fd, err := unix.Openat(n.fd, name, flags|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode&^unix.S_IFMT)
	if err != nil {
		return nil, err
	}
	child, err := n.s.node(fd)
	if err != nil {
		return nil, err
	}
	child.io = true
	if err := n.give(child, mode, own); err != nil {
		child.Close()
		return nil, err
	}
	return child, nil
}

// give makes own the owner of a new child. In a setgid directory the group has
// been inherited already. chown drops suid and sgid, so they are set again.
func (n *Node) give(child *Node, mode uint32, own *Owner) error {
	if own == nil || unix.Geteuid() != 0 {
		return nil
	}
	gid := int(own.GID)
	if st, err := n.Stat(); err != nil {
		return err
	} else if st.Mode&unix.S_ISGID != 0 {
		gid = -1
	}
	if err := child.Chown(int(own.UID), gid); err != nil {
		return err
	}
	if mode&(unix.S_ISUID|unix.S_ISGID) != 0 && child.Type == unix.S_IFREG {
		return child.Chmod(mode)
	}
	return nil
}

// made looks up and gives away a child that was just made.
func (n *Node) made(name string, mode uint32, own *Owner, err error) (*Node, error) {
	if err != nil {
		return nil, err
	}
	child, err := n.Lookup(name)
	if err != nil {
		return nil, err
	}
	if err := n.give(child, mode, own); err != nil {
		child.Close()
		return nil, err
	}
	return child, nil
}

// CreateLike makes a file in Stage with owner, mode and extended attributes of
// another; the marks stay behind.
func (s *Store) CreateLike(name string, like *Node) (*Node, error) {
	st, err := like.Stat()
	if err != nil {
		return nil, err
	}
	n, err := s.Stage.Create(name, 0o600, &Owner{UID: st.Uid, GID: st.Gid})
	if err != nil {
		return nil, err
	}
	if err = n.Chmod(st.Mode); err == nil {
		err = s.copyXattrs(n, like)
	}
	if err != nil {
		n.Close()
		_ = s.Stage.Unlink(name)
		return nil, err
	}
	return n, nil
}

func (s *Store) copyXattrs(to, from *Node) error {
	list, err := from.Listxattr()
	if err != nil {
		return nil // no attributes on this tmpfs
	}
	buf := make([]byte, 64<<10)
	for _, name := range strings.Split(string(list), "\x00") {
		if name == "" || s.IsMark(name) {
			continue
		}
		if k, err := from.Getxattr(name, buf); err == nil {
			if err := to.Setxattr(name, buf[:k], 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// Mkdir makes a directory.
func (n *Node) Mkdir(name string, mode uint32, own *Owner) (*Node, error) {
	return n.made(name, mode, own, unix.Mkdirat(n.fd, name, mode))
}

// Mknod makes a FIFO, socket, device or empty regular file.
func (n *Node) Mknod(name string, mode, dev uint32, own *Owner) (*Node, error) {
	return n.made(name, mode, own, unix.Mknodat(n.fd, name, mode, int(dev)))
}

// Symlink makes a symbolic link.
func (n *Node) Symlink(target, name string, own *Owner) (*Node, error) {
	return n.made(name, 0o777, own, unix.Symlinkat(target, n.fd, name))
}

// Link gives target another name in n.
func (n *Node) Link(target *Node, name string) error {
	return unix.Linkat(unix.AT_FDCWD, target.magic(), n.fd, name, unix.AT_SYMLINK_FOLLOW)
}

// Unlink removes a name that is not a directory.
func (n *Node) Unlink(name string) error {
	defer n.s.victim(n, name)()
	return unix.Unlinkat(n.fd, name, 0)
}

// Rmdir removes an empty directory.
func (n *Node) Rmdir(name string) error { return unix.Unlinkat(n.fd, name, unix.AT_REMOVEDIR) }

// Rename is renameat2: flags are RENAME_NOREPLACE and RENAME_EXCHANGE.
func (n *Node) Rename(old string, dir *Node, name string, flags uint32) error {
	defer n.s.victim(dir, name)()
	return unix.Renameat2(n.fd, old, dir.fd, name, uint(flags))
}

// Readlink is the target of a symbolic link.
func (n *Node) Readlink() ([]byte, error) {
	buf := make([]byte, unix.PathMax)
	k, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return nil, err
	}
	return buf[:k], nil
}

// Chmod sets the permission bits.
func (n *Node) Chmod(mode uint32) error { return unix.Chmod(n.magic(), mode&0o7777) }

// Chown sets the owner; -1 keeps.
func (n *Node) Chown(uid, gid int) error {
	return unix.Fchownat(n.fd, "", uid, gid, unix.AT_EMPTY_PATH)
}

// Utimes sets access and modification time; UTIME_OMIT and UTIME_NOW as in utimensat(2).
func (n *Node) Utimes(ts [2]unix.Timespec) error {
	if n.Type == unix.S_IFLNK { // utimensat has no AT_EMPTY_PATH before 5.8 for O_PATH links
		return unix.UtimesNanoAt(n.fd, "", ts[:], unix.AT_EMPTY_PATH)
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, n.magic(), ts[:], 0)
}

// Getxattr, Setxattr, Removexattr and Listxattr are the calls of these names.
func (n *Node) Getxattr(name string, dest []byte) (int, error) {
	return unix.Getxattr(n.magic(), name, dest)
}

// Setxattr sets an extended attribute.
func (n *Node) Setxattr(name string, data []byte, flags int) error {
	return unix.Setxattr(n.magic(), name, data, flags)
}

// Removexattr removes an extended attribute.
func (n *Node) Removexattr(name string) error { return unix.Removexattr(n.magic(), name) }

// Listxattr lists the names, each ended by NUL.
func (n *Node) Listxattr() ([]byte, error) {
	k, err := unix.Listxattr(n.magic(), nil)
	if err != nil || k == 0 {
		return nil, err
	}
	buf := make([]byte, k+256)
	k, err = unix.Listxattr(n.magic(), buf)
	if err != nil {
		return nil, err
	}
	return buf[:k], nil
}

// HasXattr reports whether the attribute is set.
func (n *Node) HasXattr(name string) bool {
	_, err := n.Getxattr(name, nil)
	return err == nil
}

// memTotal is the machine's memory in bytes.
func memTotal() int64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 1 << 30
	}
	return int64(si.Totalram) * int64(si.Unit)
}

// treeBytes sums what the files below root occupy.
func treeBytes(root string) (sum int64) {
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && d.Type().IsRegular() && unix.Lstat(p, &st) == nil {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum
}
