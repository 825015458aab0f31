// Package blockfile keeps PortSentry's files of blocked sources, those of
// PortSentry 2 and those of PortSentry 1.2, so that either program may follow us
// or come before us.
//
// PortSentry 2's is a memory: it is read once, grows by a record for each newly
// blocked source, and outlives the daemon. PortSentry 1.2's is the live list: it
// is emptied at every start, and whoever edits it by hand changes at once who is
// held.
package blockfile

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

const (
	// maxSources bounds the sources that are held. One that comes when they are
	// all there is not held, and its next probe is answered like its first.
	maxSources = 1 << 20

	// maxSize bounds a file, in bytes. It is read whole.
	maxSize = 64 << 20

	// lookInterval is how long PortSentry 1.2's list is taken to be what it was.
	lookInterval = 10 * time.Millisecond
)

// A source is an address as the key of a map: IPv4 in its IPv6-mapped form, and
// without a zone.
type source [16]byte

// A File is a file of blocked sources and what is known of it. It is safe for
// concurrent use.
type File struct {
	name   string // as the administrator wrote it
	path   string // the same, wherever the daemon goes
	format conf.BanFileFormat
	warn   func(conf.Warning)

	mu      sync.Mutex
	held    map[source]struct{}
	file    *os.File    // locked; nil while there is none to append to
	seen    fs.FileInfo // what was at path when it was last read or written; nil: nothing
	looked  time.Time   // when seen was last compared with what is there
	size    int64       // of file, up to the end of its last whole record
	torn    bool        // part of another record may follow
	hanging bool        // the last line has no newline, as some editors leave it

	// unwritten are records that could not be written yet. Their sources are
	// held, each of them once, which bounds them.
	unwritten []logline.Blocked
}

// Open opens the file at path, reads it and, in PortSentry 1.2's format, empties
// it. A missing file is made, PortSentry 2's with the directories above it (0755).
//
// The file is refused if following it could do harm: if it is a symbolic link,
// anything but a regular file, has a second name or can be written by others; and,
// in a directory where others than root and we can make files, if it belongs to
// others. A new one gets mode 0600, or 0644 for PortSentry 1.2's, since others read
// that. It is refused, and stays as it is, if another daemon has it open or if it
// is not a list in the wanted format.
//
// An error is always a [conf.Fault]. What was wrong with the file and has been
// mended, or what happens to it later, is told to warn, which must not call the
// File and may be nil.
func Open(path string, format conf.BanFileFormat, warn func(conf.Warning)) (*File, error) {
	if warn == nil {
		warn = func(conf.Warning) {}
	}
	format = cmp.Or(format, conf.BanFilePortSentry2) // conf's default
	f := &File{name: path, format: format, warn: warn, held: make(map[source]struct{})}
	var err error
	if f.path, err = filepath.Abs(path); err != nil {
		return nil, f.fault(err)
	}
	load := f.mergeLocked
	if f.format == conf.BanFilePortSentry1 {
		load = f.emptyLocked
	}
	if err := f.acquireLocked(load); err != nil {
		return nil, f.fault(err)
	}
	return f, nil
}

// fault returns err as an administrator puts it, and as the PortSentry does whose
// file it is.
func (f *File) fault(err error) conf.Fault {
	fault := conf.Fault{Place: conf.Place{File: f.name}, Text: err.Error(), Err: err}
	if f.format == conf.BanFilePortSentry1 {
		fault.Upstream = "adminalert: ERROR: Cannot delete blocked file on startup: " + f.name + "."
		return fault
	}
	reason := fault.Text
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		text := errno.Error() // strerror(3)'s, but for the capital
		reason = strings.ToUpper(text[:1]) + text[1:]
	}
	fault.Upstream = "Unable to open block file for writing " + f.name + ": " + reason
	return fault
}

func (f *File) warnOf(text, upstream string) {
	f.warn(conf.Warning{Place: conf.Place{File: f.name}, Text: text, Upstream: upstream})
}

// Holds reports whether addr is held. An IPv4-mapped address is the IPv4 address,
// and a zone does not matter. PortSentry 1.2's file is looked at,
// and read again if it has changed, at most every ten milliseconds; apart from
// that Holds allocates nothing.
func (f *File) Holds(addr netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.format == conf.BanFilePortSentry1 && time.Since(f.looked) >= lookInterval {
		if err := f.followLocked(); err != nil {
			f.warnOf(err.Error()+"; who was held stays held", "adminalert: ERROR: Cannot open blocked file: "+f.name+".")
		}
	}
	_, held := f.held[addr.As16()]
	return held
}

// Len returns how many sources were held at the last call of Holds or Add.
func (f *File) Len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.held)
}

// Add holds a newly blocked source and appends its record; of PortSentry 2's that
// is the address alone. A source that is held already is not recorded again.
//
// If the record cannot be written, as on a full disk, there is an error and the
// source is held all the same; the next Add, Flush and Close try again. Where too
// many are held it is not.
func (f *File) Add(b logline.Blocked) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.reachLocked()
	if _, held := f.held[b.Source.As16()]; held {
		return nil
	}
	if hold(f.held, b.Source) > 0 {
		return fmt.Errorf("%s: %v is not held, since %d sources are", f.name, b.Source, maxSources)
	}
	f.unwritten = append(f.unwritten, b)
	if err == nil {
		err = f.flushLocked()
	}
	if err != nil {
		return fmt.Errorf("%s: record %v: %w", f.name, b.Source, err)
	}
	return nil
}

// Flush writes the records that could not be written before, if there are any.
func (f *File) Flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.unwritten) == 0 {
		return nil
	}
	err := f.reachLocked()
	if err == nil {
		err = f.flushLocked()
	}
	if err != nil {
		return fmt.Errorf("%s: records not written: %d: %w", f.name, len(f.unwritten), err)
	}
	return nil
}

// flushLocked writes what has yet to be written, oldest first, up to the first
// failure.
func (f *File) flushLocked() error {
	for len(f.unwritten) > 0 {
		if err := f.appendLocked(&f.unwritten[0]); err != nil {
			return err
		}
		f.unwritten = f.unwritten[1:]
	}
	f.unwritten = nil
	return nil
}

// Close writes what could not be written before, closes the file and so lets others
// have it. Of records that cannot be written now either, the error says how many
// are lost.
func (f *File) Close() error {
	err := f.Flush()
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(err, f.releaseLocked())
}
