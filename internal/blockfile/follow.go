package blockfile

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

// reachLocked follows the file and opens it if there is none to append to.
func (f *File) reachLocked() error {
	err := f.followLocked()
	if err == nil && f.file == nil {
		err = f.acquireLocked(f.loadLocked)
	}
	return err
}

// followLocked reads the file again if somebody has changed or replaced it. If
// it cannot be read, what was held stays held and the File has no file.
func (f *File) followLocked() error {
	f.looked = time.Now()
	now, err := os.Lstat(f.path) // nil if there is nothing
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil // privileges to see it have gone, say: the open file is good
	}
	if same(f.seen, now) {
		return nil
	}
	_ = f.releaseLocked() // nothing waits to be written
	f.seen = now
	if now != nil {
		return f.acquireLocked(f.loadLocked)
	}
	if f.format == conf.BanFilePortSentry1 {
		f.held = f.heldUnwrittenLocked()
	}
	return nil // Add and Flush make the file anew
}

// same reports whether a and b tell of one file in one state. Nil is no file.
func same(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// acquireLocked opens the file, which it makes if it is missing, and hands its
// content to load.
func (f *File) acquireLocked(load func(data []byte) error) error {
	mode := fs.FileMode(0o600)
	if f.format == conf.BanFilePortSentry1 {
		mode = 0o644
	}
	// PortSentry 1.2 makes no directories: a wrong path is an error.
	file, err := open(f.path, mode, f.format == conf.BanFilePortSentry2)
	if err != nil {
		return err
	}
	f.file = file
	if err := f.readLocked(load); err != nil {
		_ = f.releaseLocked()
		return err
	}
	return nil
}

func (f *File) readLocked(load func(data []byte) error) error {
	info, err := f.file.Stat()
	if err != nil {
		return err
	}
	f.seen = info // before it is read, so that a change meanwhile is not missed
	if info.Size() > maxSize {
		return errTooLarge
	}
	data, err := readAll(f.file)
	if err != nil {
		return err
	}
	f.size, f.torn = int64(len(data)), false
	f.hanging = len(data) > 0 && data[len(data)-1] != '\n' && f.format == conf.BanFilePortSentry1
	return load(data)
}

// releaseLocked closes the file, which also gives up the lock.
func (f *File) releaseLocked() error {
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	return err
}

// emptyLocked empties a list of PortSentry 1.2, as PortSentry 1.2 does at every
// start. It destroys nothing else.
func (f *File) emptyLocked(data []byte) error {
	switch format := formatOf(data); format {
	case conf.BanFilePortSentry2:
		return f.otherFormat(format)
	case "":
		if err := foreign(data); err != nil {
			return err
		}
	}
	return f.truncateLocked(0)
}

// loadLocked makes what the file says, changed by others, what is held.
func (f *File) loadLocked(data []byte) error {
	if f.format == conf.BanFilePortSentry2 {
		return f.mergeLocked(data)
	}
	held, left := f.heldUnwrittenLocked(), 0
	skipped := parseText(data, func(b logline.Blocked) { left += hold(held, b.Source) })
	f.held = held
	f.warnOfRest(left)
	if err := unreadable(skipped); err != nil {
		f.warnOf(err.Error()+" and passed over", "")
	}
	return nil
}

// heldUnwrittenLocked returns who is held whatever the file says: nobody could
// take a line out of it that it never had.
func (f *File) heldUnwrittenLocked() map[source]struct{} {
	held := make(map[source]struct{}, len(f.unwritten))
	for i := range f.unwritten {
		hold(held, f.unwritten[i].Source)
	}
	return held
}

// mergeLocked also holds the sources of PortSentry 2's records, and mends the
// file if it goes on with something else.
func (f *File) mergeLocked(data []byte) error {
	switch format := formatOf(data); format {
	case conf.BanFilePortSentry1:
		return f.otherFormat(format)
	case "":
		// Nothing says that this is a list, unless it may be the start of one.
		if _, _, err := cutRecord(data); !errors.Is(err, errTorn) {
			return fmt.Errorf("no list of PortSentry 2: %w; move it away", err)
		}
	}
	left := 0
	good, damage := parseBinary(data, func(addr netip.Addr) { left += hold(f.held, addr) })
	f.warnOfRest(left)
	if damage == nil {
		return nil
	}
	return f.mendLocked(data, good, damage)
}

// hold adds a source to held, if that has room for it, and returns how many
// sources were left out.
func hold(held map[source]struct{}, addr netip.Addr) int {
	key := source(addr.As16())
	if _, again := held[key]; !again && len(held) >= maxSources {
		return 1
	}
	held[key] = struct{}{}
	return 0
}

func (f *File) warnOfRest(left int) {
	if left > 0 {
		f.warnOf(fmt.Sprintf("has %d records too many; no more than %d sources are held", left, maxSources), "")
	}
}

// otherFormat returns the error of a list that is left as it is.
func (f *File) otherFormat(is conf.BanFileFormat) error {
	return fmt.Errorf("a list of %s where one of %s belongs; convert it with: portsnare blocked convert --to %s --output NEW %s",
		program(is), program(f.format), f.format, f.name)
}

// mendLocked cuts off what follows the good records, but keeps a copy if that may
// be more than the start of another.
func (f *File) mendLocked(data []byte, good int, damage error) error {
	if family, unknown := errors.AsType[familyError](damage); unknown {
		kept, err := f.keep(data)
		if err != nil {
			return fmt.Errorf("%w after %d bytes; keep a copy: %w", damage, good, err)
		}
		f.warnOf(fmt.Sprintf("%v after %d bytes: cut off there; all that it held is in %s", damage, good, kept),
			fmt.Sprintf("Unsupported address family: %d", uint16(family)))
	} else {
		f.warnOf(fmt.Sprintf("%v: cut off after %d bytes", damage, good),
			"Unable to read address from blocked file: "+f.name)
	}
	return f.truncateLocked(int64(good))
}

// keep writes data to a new file beside the damaged one and returns its name.
func (f *File) keep(data []byte) (path string, err error) {
	file, err := os.CreateTemp(filepath.Dir(f.path), filepath.Base(f.path)+".damaged-*")
	if err != nil {
		return "", err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return "", errors.Join(err, os.Remove(file.Name()))
	}
	return file.Name(), nil
}

// appendLocked appends a record to the file, whole or not at all.
func (f *File) appendLocked(b *logline.Blocked) error {
	if f.torn {
		if err := f.truncateLocked(f.size); err != nil {
			return err
		}
	}
	var record []byte
	if f.hanging {
		record = append(record, '\n')
	}
	record = Append(record, f.format, b)
	if f.size+int64(len(record)) > maxSize {
		return fmt.Errorf("the file has %d MiB, which is the most", maxSize>>20)
	}
	if _, err := f.file.Write(record); err != nil {
		f.torn = true
		_ = f.truncateLocked(f.size) // if that fails too, it is done before the next record
		return err
	}
	f.size += int64(len(record))
	f.hanging = false
	f.noteLocked()
	return nil
}

// truncateLocked cuts the file to size, the end of a whole record.
func (f *File) truncateLocked(size int64) error {
	err := f.file.Truncate(size)
	if err == nil {
		f.size, f.torn = size, false
	}
	f.noteLocked()
	return err
}

// noteLocked remembers the file as we have left it. If somebody changed it at
// the same time it is read again at the next look.
func (f *File) noteLocked() {
	info, err := f.file.Stat()
	if err == nil && (f.torn || info.Size() == f.size) {
		f.seen = info
	}
}
