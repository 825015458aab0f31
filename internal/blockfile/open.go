package blockfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// All that is decided here is decided on descriptors: between a look at a path
// and its opening, others could put something else there.

// open opens the file at path for reading and appending, and locks it. It makes a
// missing file with the given mode and, if asked to, missing directories with mode
// 0755. What it refuses is said at [Open].
func open(path string, mode fs.FileMode, makeDirs bool) (*os.File, error) {
	dir, shared, err := openDirectory(filepath.Dir(path), makeDirs)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	file, err := openIn(dir, path, mode)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil {
		err = check(info, shared, os.Geteuid())
	}
	if err == nil {
		err = lock(file)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// openDirectory opens a directory, which it makes if it is missing and asked to,
// and reports whether others than root and we can put files there.
func openDirectory(path string, makeIt bool) (dir *os.File, shared bool, err error) {
	const flags = os.O_RDONLY | syscall.O_DIRECTORY
	dir, err = os.OpenFile(path, flags, 0)
	if makeIt && errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return nil, false, err
		}
		dir, err = os.OpenFile(path, flags, 0)
	}
	if err != nil {
		return nil, false, err
	}
	info, err := dir.Stat()
	if err != nil {
		dir.Close()
		return nil, false, err
	}
	return dir, isShared(info, os.Geteuid()), nil
}

// openIn opens the file at path, which lies in dir.
func openIn(dir *os.File, path string, mode fs.FileMode) (*os.File, error) {
	// O_NONBLOCK keeps a pipe or device from blocking; files do not mind.
	const flags = unix.O_RDWR | unix.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	at, name := int(dir.Fd()), filepath.Base(path)
	fd, err := unix.Openat(at, name, flags, 0)
	missing := errors.Is(err, unix.ENOENT)
	if missing {
		fd, err = unix.Openat(at, name, flags|unix.O_CREAT|unix.O_EXCL, 0o600)
	}
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, errors.New("a symbolic link, which is not followed; name the file that it leads to")
	case err != nil:
		return nil, fmt.Errorf("open: %w", err)
	}
	file := os.NewFile(uintptr(fd), path)
	if missing {
		// The umask does not matter: PortSentry 1.2 sets 077 and its list is
		// for others to read.
		if err := file.Chmod(mode); err != nil {
			file.Close()
			return nil, err
		}
	}
	return file, nil
}

// check returns an error if appending to the file could do harm. The directory
// is shared if others than root and the user euid can make files there, which
// they could have done before us.
func check(info fs.FileInfo, shared bool, euid int) error {
	switch {
	case !info.Mode().IsRegular():
		return errors.New("not a regular file")
	case info.Sys().(*syscall.Stat_t).Nlink > 1:
		return errors.New("has a second name (a hard link); make a copy and name that")
	case shared && !ours(info, euid):
		return fmt.Errorf("belongs to user %d in a directory that others can write to; use one of root's, such as /var/lib/portsentry",
			info.Sys().(*syscall.Stat_t).Uid)
	case othersWrite(info):
		return errors.New("can be written by others, who could have anybody taken for blocked; look through it, then chmod go-w it")
	}
	return nil
}

// isShared reports whether others than root and the user euid can make files in
// the directory.
func isShared(dir fs.FileInfo, euid int) bool { return othersWrite(dir) || !ours(dir, euid) }

// ours reports whether the owner is root or the user euid.
func ours(info fs.FileInfo, euid int) bool {
	owner := info.Sys().(*syscall.Stat_t).Uid
	return owner == 0 || int(owner) == euid
}

// othersWrite reports whether the mode lets more than the owner write. What an
// access control list permits is in the group's bits too.
func othersWrite(info fs.FileInfo) bool { return info.Mode().Perm()&0o022 != 0 }

// lock takes the lock that keeps another daemon off the file. It ends with the
// descriptor. On a file system without locks there is none.
func lock(file *os.File) error {
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return errors.New("in use by another daemon; stop that, or give each a file of its own")
	}
	return nil
}
