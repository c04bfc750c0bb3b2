package vectorboot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// beneath is a directory that other users may change while we work in it with
// more rights than they have. So no call follows a symbolic link, at the end of
// a path or on the way, and nothing is opened before it is known what it is. It
// owns the descriptor, and with it a lock, until Close.
type beneath struct{ fd int }

// ErrInUse says that another daemon writes to SOURCE.
var ErrInUse = errors.New("in use by another vbootfs")

// openBeneath opens a directory by a path that the user gave, which may have
// links, and locks it: alone if it is to be written, else with other readers.
func openBeneath(dir string, write bool) (*beneath, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	how := unix.LOCK_SH
	if write {
		how = unix.LOCK_EX
	}
	// A file system that has no locks has no second daemon that could see ours.
	if err := unix.Flock(fd, how|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", dir, ErrInUse)
	}
	return &beneath{fd}, nil
}

// Close lets the directory go.
func (b *beneath) Close() { unix.Close(b.fd) }

// open is openat2 of a path below.
func (b *beneath) open(p string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_NOFOLLOW | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(b.fd, p, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, pathError("open", p, err)
		}
	}
}

func pathError(op, p string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: p, Err: err}
}

// in calls f with the directory that holds p, and the name of p in it.
func (b *beneath) in(op, p string, f func(dir int, base string) error) error {
	dir, err := b.open(path.Dir(p), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return pathError(op, p, f(dir, path.Base(p)))
}

// viaProc names the file of a descriptor in calls that do not take one that was
// opened with O_PATH.
func viaProc(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// file opens a regular file for reading; what else stands there is not touched.
func (b *beneath) file(p string) (*os.File, identity, error) {
	look, err := b.open(p, unix.O_PATH, 0)
	if err != nil {
		return nil, identity{}, err
	}
	defer unix.Close(look)
	id, st, err := identify(look)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.ESTALE
	}
	if err != nil {
		return nil, id, pathError("open", p, err)
	}
	fd, err := unix.Open(viaProc(look), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, id, pathError("open", p, err)
	}
	return os.NewFile(uintptr(fd), p), id, nil
}

// create makes a file that nobody else has.
func (b *beneath) create(p string) (*os.File, error) {
	fd, err := b.open(p, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), p), nil
}

// identity tells a file from every other, also from one that gets its number
// later. It keeps it under another name.
type identity struct {
	dev, ino uint64
	born     int64 // nanoseconds, 0 where the file system does not tell
}

func (i identity) String() string { return fmt.Sprintf("%x:%x:%x", i.dev, i.ino, i.born) }

func parseIdentity(s string) (i identity) {
	if _, err := fmt.Sscanf(s, "%x:%x:%x", &i.dev, &i.ino, &i.born); err != nil {
		return identity{}
	}
	return i
}

func identify(fd int) (id identity, st unix.Stat_t, err error) {
	if err := unix.Fstat(fd, &st); err != nil {
		return id, st, err
	}
	id = identity{dev: st.Dev, ino: st.Ino}
	var x unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &x) == nil && x.Mask&unix.STATX_BTIME != 0 {
		id.born = x.Btime.Sec*1e9 + int64(x.Btime.Nsec)
	}
	return id, st, nil
}

// stat looks at what is at p, a link itself if it is one.
func (b *beneath) stat(p string) (id identity, st unix.Stat_t, err error) {
	fd, err := b.open(p, unix.O_PATH, 0)
	if err != nil {
		return id, st, err
	}
	defer unix.Close(fd)
	return identify(fd)
}

// names lists a directory.
func (b *beneath) names(p string) ([]fs.DirEntry, error) {
	fd, err := b.open(p, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(fd), p)
	defer d.Close()
	return d.ReadDir(-1)
}

// sync is fsync of a directory.
func (b *beneath) sync(p string) error {
	fd, err := b.open(p, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return pathError("fsync", p, unix.Fsync(fd))
}

func (b *beneath) mkdir(p string, mode uint32) error {
	return b.in("mkdir", p, func(dir int, base string) error { return unix.Mkdirat(dir, base, mode) })
}

func (b *beneath) symlink(target, p string) error {
	return b.in("symlink", p, func(dir int, base string) error { return unix.Symlinkat(target, dir, base) })
}

func (b *beneath) mknod(p string, mode uint32) error {
	return b.in("mknod", p, func(dir int, base string) error { return unix.Mknodat(dir, base, mode, 0) })
}

func (b *beneath) readlink(p string) (target string, err error) {
	err = b.in("readlink", p, func(dir int, base string) error {
		buf := make([]byte, unix.PathMax)
		k, err := unix.Readlinkat(dir, base, buf)
		target = string(buf[:max(k, 0)])
		return err
	})
	return target, err
}

// rename is renameat2; without flags it replaces what is at to.
func (b *beneath) rename(from, to string, flags uint) error {
	return b.in("rename", from, func(a int, old string) error {
		return b.in("rename to", to, func(c int, base string) error { return unix.Renameat2(a, old, c, base, flags) })
	})
}

// renameFree is rename to a name that is free, where the file system can tell.
func (b *beneath) renameFree(from, to string) error {
	err := b.rename(from, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) {
		err = b.rename(from, to, 0)
	}
	return err
}

// link makes to another name of the file at from.
func (b *beneath) link(from, to string) error {
	return b.in("link", from, func(a int, old string) error {
		return b.in("link to", to, func(c int, base string) error { return unix.Linkat(a, old, c, base, 0) })
	})
}

// lchown gives away a symbolic link, and nothing else that stands in its place.
func (b *beneath) lchown(p string, uid, gid int) error {
	fd, err := b.open(p, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, st, err := identify(fd)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK {
		err = unix.ESTALE
	}
	if err == nil {
		err = unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH)
	}
	return pathError("chown", p, err)
}

// remove takes a name away, an empty directory too.
func (b *beneath) remove(p string) error {
	return b.in("remove", p, func(dir int, base string) error {
		err := unix.Unlinkat(dir, base, 0)
		if err == unix.EISDIR || err == unix.EPERM {
			return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
		}
		return err
	})
}

// removeAll takes a name away with all below it. It asks spare before each file
// that goes.
func (b *beneath) removeAll(p string, spare func(p string) error) error {
	_, st, err := b.stat(p)
	if err != nil {
		return gone(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if err := spare(p); err != nil {
			return err
		}
		return gone(b.remove(p))
	}
	ents, err := b.names(p)
	if err != nil {
		return gone(err)
	}
	for _, e := range ents {
		if err := b.removeAll(path.Join(p, e.Name()), spare); err != nil {
			return err
		}
	}
	return gone(b.remove(p))
}

// gone takes "there is no such name" for success.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}
