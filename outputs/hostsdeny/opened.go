package hostsdeny

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a lock that somebody holds is tried.
const lockPoll = 5 * time.Millisecond

// An opened file is being edited.
type opened struct {
	file   *os.File
	path   string      // without symbolic links
	info   fs.FileInfo // as it was when it was locked
	locked bool
}

// open opens the file and locks it. It returns the file unlocked if the lock
// does not come in time.
func (f *File) open(ctx context.Context) (*opened, error) {
	patience := f.patience
	if end, ok := ctx.Deadline(); ok { // leave time to do without
		patience = min(patience, time.Until(end)/2)
	}
	deadline := time.Now().Add(patience)
	for {
		o, err := f.openOnce()
		if err != nil {
			return nil, err
		}
		err = o.lock()
		late := time.Now().After(deadline)
		if err == nil && (o.locked || late) {
			return o, nil
		}
		o.file.Close()
		if err != nil && (!errors.Is(err, errChanged) || late) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

func (f *File) openOnce() (*opened, error) {
	path, err := f.find()
	if err != nil {
		return nil, err
	}
	// Also for a rename the file has to be writable: we replace what we may edit.
	file, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return &opened{file: file, path: path}, nil
}

// lock locks the file unless somebody else has, and looks at it. It returns
// errChanged if the file at the path is another one by then.
func (o *opened) lock() error {
	err := unix.Flock(int(o.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("lock: %w", err)
	}
	o.locked = err == nil
	if o.info, err = o.file.Stat(); err != nil {
		return err
	}
	return o.unchanged()
}

// unchanged returns errChanged if the file is no longer as it was when it was
// locked, or no longer at its path.
func (o *opened) unchanged() error {
	now, err := os.Stat(o.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errChanged
	case err != nil:
		return err
	case !os.SameFile(now, o.info), now.Size() != o.info.Size(), !now.ModTime().Equal(o.info.ModTime()):
		return errChanged
	}
	return nil
}

// read returns the text of the file.
func (o *opened) read() ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(o.file, maxSize+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxSize:
		return nil, errTooLarge
	case int64(len(text)) != o.info.Size():
		return nil, errChanged
	}
	return text, nil
}

// write replaces the file's text.
func (o *opened) write(old, text []byte) error {
	if stat, ok := o.info.Sys().(*syscall.Stat_t); ok && stat.Nlink == 1 {
		if err := o.replace(text); !cannotReplace(err) {
			return err
		}
	}
	if !o.locked { // two writers in place would write over each other
		return errors.New("somebody else holds its lock; lslocks says who")
	}
	if err := o.unchanged(); err != nil {
		return err
	}
	return overwrite(o.file, old, text)
}

// cannotReplace reports whether err says that a new file cannot take the old
// one's place: the directory cannot be written, the file is a mount point, or
// its owner or attributes cannot be given to another.
func cannotReplace(err error) bool {
	return slices.ContainsFunc([]error{
		unix.EACCES, unix.EPERM, unix.EROFS, unix.EBUSY, unix.EXDEV, unix.ENOTSUP,
	}, func(reason error) bool { return errors.Is(err, reason) })
}

// replace writes text to a new file and renames that to the path.
func (o *opened) replace(text []byte) (err error) {
	dir, name := filepath.Split(o.path)
	fresh, err := os.CreateTemp(dir, "."+name+".*")
	if err != nil {
		return err
	}
	defer func() {
		fresh.Close()
		if err != nil {
			_ = os.Remove(fresh.Name()) // the error that brought us here says more
		}
	}()
	if _, err := fresh.Write(text); err != nil {
		return err
	}
	if err := o.dress(fresh); err != nil {
		return err
	}
	if err := fresh.Sync(); err != nil {
		return err
	}
	if err := o.unchanged(); err != nil {
		return err
	}
	if err := os.Rename(fresh.Name(), o.path); err != nil {
		return err
	}
	return syncDir(dir)
}

// dress gives a file the owner, the extended attributes and the mode of o, in
// the order in which the one does not disturb the other: a new owner takes
// setuid away, and an ACL changes the mode.
func (o *opened) dress(fresh *os.File) error {
	stat, ok := o.info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("its owner is unknown")
	}
	if err := fresh.Chown(int(stat.Uid), int(stat.Gid)); err != nil {
		return err
	}
	if err := copyAttributes(fresh, o.file); err != nil {
		return fmt.Errorf("copy extended attributes: %w", err)
	}
	return fresh.Chmod(o.info.Mode())
}

// syncDir makes a rename in dir outlive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// overwrite replaces old, the text of file, by text. After an error it puts
// back what was there.
func overwrite(file *os.File, old, text []byte) error {
	at, tail := patch(old, text)
	_, err := file.WriteAt(tail, int64(at))
	if err == nil {
		err = file.Truncate(int64(len(text)))
	}
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		return nil
	}
	_, restoreErr := file.WriteAt(old[at:], int64(at))
	return errors.Join(err, restoreErr, file.Truncate(int64(len(old))))
}

// patch returns what to write at an offset into old to make it text. Where text
// is shorter, empty lines take the place of the rest, so that nobody takes the
// end of a line for a rule before it is cut off.
func patch(old, text []byte) (at int, tail []byte) {
	for at < min(len(old), len(text)) && old[at] == text[at] {
		at++
	}
	return at, slices.Concat(text[at:], bytes.Repeat([]byte("\n"), max(0, len(old)-len(text))))
}
