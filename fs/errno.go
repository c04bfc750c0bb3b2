package fs

import (
	"context"
	"errors"
	iofs "io/fs"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vbootfs/ggufview"
	"vbootfs/vectorboot"
)

// The one table of errors that are not error numbers already. First match wins.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{context.Canceled, syscall.EINTR},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
	{vectorboot.ErrNoModel, syscall.ENOENT},
	{vectorboot.ErrConflict, syscall.EBUSY},
	{vectorboot.ErrRefused, syscall.EPERM},
	{iofs.ErrInvalid, syscall.EINVAL},
	{iofs.ErrNotExist, syscall.ENOENT},
	{iofs.ErrExist, syscall.EEXIST},
	{iofs.ErrPermission, syscall.EPERM},
}

// status turns an error into what the caller's system call returns. EIO is left
// for errors that nobody foresaw.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var format *ggufview.FormatError
	if errors.As(err, &format) {
		return fuse.Status(syscall.EBADMSG)
	}
	var no syscall.Errno
	if errors.As(err, &no) {
		return fuse.Status(no)
	}
	for _, row := range errnos {
		if errors.Is(err, row.err) {
			return fuse.Status(row.errno)
		}
	}
	return fuse.EIO
}
