package shm

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// fsName is the source under which our tmpfs shows in /proc/self/mountinfo.
const fsName = "vbootfs-segments"

// mount attaches the tmpfs at Root, or finds it there, and returns a descriptor
// of a writable mount of it that nobody else can reach; -1 means that this
// process may not mount, and the caller uses the plain directory.
func (s *Store) mount() int {
	taken := s.mounted()
	if !taken && !s.mountNew() {
		return -1
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, s.Root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1
	}
	rw := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &rw) != nil {
		unix.Close(fd)
		return -1
	}
	ro := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if unix.MountSetattr(unix.AT_FDCWD, s.Root, 0, &ro) != nil {
		unix.Close(fd)
		return -1
	}
	s.Private = true
	if taken {
		// What the last owner was doing does not matter any more. A limit below
		// what is in use is refused: the old one stays.
		_ = s.reconfigure("huge", "within_size")
		_ = s.reconfigure("size", strconv.FormatInt(s.limit, 10))
	}
	return fd
}

// inodes is how many files the tmpfs holds at first. The kernel takes about 1 KiB
// for each beside the limit, and counts attributes that users set in the same
// unit; so this is at most a sixteenth of the limit, but for small stores.
func (s *Store) inodes() uint64 {
	if s.names > 0 {
		return s.names
	}
	return max(1<<16, uint64(s.limit)>>14)
}

// Grow lets the store hold twice as many files, for a tree that has them. It fails
// when they would take more than an eighth of the machine's memory.
func (s *Store) Grow() error {
	have := s.Statfs().Files
	most := s.mostNames
	if most == 0 {
		most = uint64(memTotal()) / 8 >> 10
	}
	if !s.Private || have >= most {
		return fmt.Errorf("shared memory has room for %d names: %w", have, unix.ENOSPC)
	}
	return s.reconfigure("nr_inodes", strconv.FormatUint(min(2*have, most), 10))
}

// Crowded reports whether so few names are left that nothing else may take their room.
func (s *Store) Crowded() bool {
	st := s.Statfs()
	return s.Private && st.Ffree < st.Files/8
}

// mounted reports whether Root is already a mount point.
func (s *Store) mounted() bool {
	var stx unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, s.Root, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &stx)
	return err == nil && stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// mountNew attaches a new tmpfs.
func (s *Store) mountNew() bool {
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fsfd)
	for _, kv := range [][2]string{
		{"source", fsName}, {"mode", "0755"},
		{"size", strconv.FormatInt(s.limit, 10)}, {"nr_inodes", strconv.FormatUint(s.inodes(), 10)}, {"huge", "within_size"},
	} {
		// Kernels without CONFIG_TRANSPARENT_HUGEPAGE refuse huge=; all else must hold.
		if unix.FsconfigSetString(fsfd, kv[0], kv[1]) != nil && kv[0] != "huge" {
			return false
		}
	}
	if unix.FsconfigCreate(fsfd) != nil {
		return false
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(mfd)
	return unix.MoveMount(mfd, "", unix.AT_FDCWD, s.Root, unix.MOVE_MOUNT_F_EMPTY_PATH) == nil
}

// reconfigure changes one parameter of the tmpfs.
func (s *Store) reconfigure(key, value string) error {
	fd, err := unix.Fspick(unix.AT_FDCWD, s.Root, unix.FSPICK_CLOEXEC|unix.FSPICK_SYMLINK_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.FsconfigSetString(fd, key, value); err != nil {
		return err
	}
	return unix.FsconfigReconfigure(fd)
}

// Hurry asks for huge pages while n > 0 large files are being written: Hurry(1)
// when one begins, Hurry(-1) when it ends. tmpfs with huge=within_size gives a
// growing file small pages only, since its size is not known yet, and
// huge=always would spend 2 MiB on every small file.
func (s *Store) Hurry(delta int) {
	if !s.Private {
		return
	}
	s.hugeMu.Lock()
	defer s.hugeMu.Unlock()
	was := s.hugeN > 0
	s.hugeN += delta
	if now := s.hugeN > 0; now != was {
		mode := "within_size"
		if now {
			mode = "always"
		}
		// A kernel without huge pages refuses; the files are the same, only slower.
		_ = s.reconfigure("huge", mode)
	}
}
