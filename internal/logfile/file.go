package logfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// A File appends records to a file. It never truncates; a file that has been
// renamed, removed or replaced is made anew, so that rotation needs no signal.
// It is not safe for concurrent use.
type File struct {
	path string
	mode fs.FileMode

	file    *os.File    // nil while not open
	info    fs.FileInfo // which file that is
	checked time.Time   // when it was last found at the path
	stream  Stream      // to file
}

// checkInterval is how long a file is taken to be where it was found. In a
// flood, looking for it at each of a thousand batches a second costs as much as
// formatting them. What is written within the interval after a rotation goes
// into the old file, as what was written just before.
const checkInterval = 10 * time.Millisecond

// New returns a File at path, which is created with the permissions mode, less
// the umask. Nothing is opened yet.
func New(path string, mode fs.FileMode) *File {
	return &File{path: path, mode: mode}
}

// Open opens the file unless it is open. It creates the file, and the
// directories above it with mode 0755, where they are missing. Append does that
// too; calling Open at start tells an administrator of a wrong path at once,
// and gives log readers the file that they insist on.
//
// A symbolic link is followed, since administrators move logs to another disk
// that way. It must lead to a regular file: a pipe or a terminal could stop the
// writer.
func (f *File) Open() error {
	if f.file != nil {
		return nil
	}
	file, err := openAppend(f.path, f.mode)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", f.path)
	}
	if err == nil && info.Size() > 0 {
		err = endLastRecord(file, info.Size())
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	f.file, f.info = file, info
	f.stream.redirect(file)
	return nil
}

func openAppend(path string, mode fs.FileMode) (*os.File, error) {
	// O_NONBLOCK keeps a device from blocking; files do not mind.
	const flags = os.O_RDWR | os.O_CREATE | os.O_APPEND | syscall.O_NONBLOCK
	file, err := os.OpenFile(path, flags, mode)
	if !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, flags, mode)
}

// endLastRecord ends the record that a writer before us has left torn, when the
// disk was full or the power went, so that ours does not become part of it.
func endLastRecord(file *os.File, size int64) error {
	last := make([]byte, 1)
	if _, err := file.ReadAt(last, size-1); err != nil {
		return err
	}
	if last[0] == '\n' {
		return nil
	}
	_, err := file.Write([]byte{'\n'})
	return err
}

// Append appends a batch of records. After nil the File is responsible for all
// of them, even if a full disk lets some wait until the next call. After an
// error it has taken none: the caller keeps the batch and comes again.
func (f *File) Append(records []byte) error {
	if err := f.follow(); err != nil {
		return err
	}
	return f.stream.Append(records)
}

// Close writes what is left and closes the file. Append opens it again.
func (f *File) Close() error {
	var err error
	if f.stream.waits() {
		if err = f.follow(); err == nil {
			err = f.stream.Close()
		}
	}
	if f.file != nil {
		err = errors.Join(err, f.file.Close())
		f.file = nil
	}
	return err
}

// follow makes sure that the open file is the one at the path.
func (f *File) follow() error {
	now := time.Now()
	if f.file != nil && now.Sub(f.checked) < checkInterval {
		return nil
	}
	f.checked = now
	if f.file != nil && f.moved() {
		if err := f.leave(); err != nil {
			return err
		}
	}
	return f.Open()
}

// moved reports whether the path leads to another file than the open one or to
// none. If that cannot be told, as when privileges to see it have gone, the
// open file is good.
func (f *File) moved() bool {
	now, err := os.Stat(f.path)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return !os.SameFile(f.info, now)
}

// leave closes the open file. A record cut there is finished there, unless the
// file is deleted or the rest still does not fit; then it begins again in the
// next file. Closing a deleted file is what frees its space.
func (f *File) leave() error {
	info, err := f.file.Stat()
	if err == nil && info.Sys().(*syscall.Stat_t).Nlink > 0 {
		_ = f.stream.flush() // what does not fit here goes to the next file
	}
	err = f.file.Close()
	f.file = nil
	return err
}
