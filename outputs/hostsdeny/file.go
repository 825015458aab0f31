// Package hostsdeny edits /etc/hosts.deny, with which TCP wrappers (libwrap)
// keep sources out of services.
//
// [Module] is the output module. [Line] makes a line of PortSentry's
// KILL_HOSTS_DENY, a [File] adds and removes it.
package hostsdeny

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// maxSize bounds the file, which every edit reads and libwrap reads at
	// every connection.
	maxSize = 16 << 20

	// patience is how long an edit waits for the lock.
	patience = 2 * time.Second

	// maxTries bounds how often an edit begins anew because the file changed.
	maxTries = 5
)

// A File is a hosts.deny that is edited line by line. It is safe for concurrent
// use, also by several processes.
//
// An edit writes a new file and renames it, so that readers and a crash find
// the old file or the new one and nothing in between. Mode, owner and extended
// attributes (ACLs, the SELinux label) stay, and so do symbolic links. A file
// that cannot be replaced so is edited in place: one with several names, a
// mount point, one in a directory that is read-only. There a reader may, for a
// moment, see a part of the line. A crash may leave the unfinished new file,
// named .hosts.deny and a number, which nobody reads.
//
// Editors that lock the file as we do (flock) never lose each other's edits.
// For those that do not, we look whether the file has changed right before the
// rename. Whoever can read the file can hold that lock for ever; so when it
// does not come within two seconds, we go on without it where the rename makes
// that harmless enough.
type File struct {
	path     string
	create   bool
	patience time.Duration

	mu sync.Mutex // held during an edit
}

// New returns the File at path. If create is set, Add makes a missing file,
// with mode 0644, as PortSentry 1.2 does; otherwise it fails, as PortSentry 2
// does.
func New(path string, create bool) *File {
	return &File{path: path, create: create, patience: patience}
}

// Add puts line, without its newline, at the end of the file. If it is there
// already as a rule of its own, the file stays as it is and present is true.
//
// The errors for a missing file and for one that anyone may write have the text
// that PortSentry 2 prints. The first wraps the cause, such as fs.ErrNotExist.
func (f *File) Add(ctx context.Context, line string) (present bool, err error) {
	if err := checkLine(line); err != nil {
		return false, err
	}
	if f.create {
		if err := makeEmpty(f.path); err != nil {
			return false, fmt.Errorf("create hosts.deny: %w", err)
		}
	}
	err = f.edit(ctx, func(text []byte) []byte {
		text, present = addLine(text, line)
		return text
	})
	return present && err == nil, err
}

// Remove takes out every rule that is equal to line, which has no newline, and
// leaves the rest as it is. It reports whether there was one; in a missing file
// there is none.
func (f *File) Remove(ctx context.Context, line string) (removed bool, err error) {
	if err := checkLine(line); err != nil {
		return false, err
	}
	err = f.edit(ctx, func(text []byte) []byte {
		text, removed = removeLine(text, line)
		return text
	})
	if errors.As(err, new(refusal)) && errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return removed && err == nil, err
}

// errChanged says that somebody else has changed the file during an edit.
var errChanged = errors.New("somebody else is editing it; it is left to them for now")

// edit replaces the text of the file with what change makes of it.
func (f *File) edit(ctx context.Context, change func([]byte) []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for try := 1; ; try++ {
		err := f.tryEdit(ctx, change)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errChanged) && try < maxTries:
			continue
		case errors.As(err, new(refusal)):
			return err
		}
		return fmt.Errorf("edit %s: %w", f.path, err)
	}
}

func (f *File) tryEdit(ctx context.Context, change func([]byte) []byte) error {
	o, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer o.file.Close()
	old, err := o.read()
	if err != nil {
		return err
	}
	text := change(old)
	switch {
	case bytes.Equal(text, old):
		return nil
	case len(text) > maxSize:
		return errTooLarge
	}
	return o.write(old, text)
}

var errTooLarge = fmt.Errorf("larger than %d MiB; remove the lines of bans that are over", maxSize>>20)

// A refusal is an error in the words of PortSentry 2, which are printed as they
// are.
type refusal struct {
	text  string
	cause error // may be nil
}

func (r refusal) Error() string { return r.text }
func (r refusal) Unwrap() error { return r.cause }

// find returns where the file lies, behind all symbolic links.
func (f *File) find() (string, error) {
	info, err := os.Stat(f.path)
	switch {
	case err != nil:
		return "", refusal{"Cannot stat file " + f.path + ": " + reason(err), err}
	case !info.Mode().IsRegular(): // merely opening a device may do things
		return "", errors.New("not a regular file")
	case info.Mode()&0o002 != 0:
		return "", refusal{"File " + f.path + " is world-writable, refusing to modify", nil}
	}
	return filepath.EvalSymlinks(f.path)
}

// makeEmpty makes a file unless there is one. Everybody can read it whatever
// the umask: services that run as other users look into it too.
func makeEmpty(path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(file.Chmod(0o644), file.Close())
}

// reason returns what C's strerror says of err; Go's table is the same in lower
// case.
func reason(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		err = errno
	}
	text := err.Error()
	return strings.ToUpper(text[:1]) + text[1:]
}
