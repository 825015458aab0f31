// Package state keeps what outlives the daemon in one file: bans with the
// offences behind them, and for each output a queue of what it has yet to take.
//
// What a method has returned nil for is on the disk: neither a killed process nor
// a power cut takes it back. What is damaged is found when the file is opened;
// the file is then moved aside, and a new one begun.
//
// The file is a bbolt database. Each stored value carries a checksum, for bbolt
// itself has none but for its first two pages.
package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// schema is the version of what is in the file. A change that an older daemon
// would misread makes it one more. How this number itself is stored never
// changes, because older daemons look for it there.
const schema = 1

var (
	metaBucket   = []byte("meta")
	bansBucket   = []byte("bans")
	queuesPrefix = "queue/" // followed by the queue's name

	schemaKey  = []byte("schema")
	savedAtKey = []byte("saved-at")
)

var (
	// ErrInUse says that another process has the file open.
	ErrInUse = errors.New("in use by another process; is a second portsnared running?")

	// ErrNewer says that a newer Portsnare wrote the file.
	ErrNewer = errors.New("written by a newer Portsnare; install that again, or move the file away to begin anew")

	// ErrDamaged says that the file changed under the running daemon. Nothing
	// more can be read or written; the next Open moves the file aside.
	ErrDamaged = errors.New("damaged; it is moved aside at the next start")
)

// A DB is an open state file. It is safe for concurrent use.
type DB struct {
	path  string
	bolt  *bbolt.DB
	pause time.Duration // commitInterval; tests need not wait

	// writing is held while a batch is written. It guards committed.
	writing   sync.Mutex
	committed time.Time // when the last batch was

	mu      sync.Mutex
	pending *batch            // gathers what is written next; nil: nothing
	queues  map[string]*Queue // that are open
	broken  error             // the file must not be touched any more
}

// Open opens the file at path, or makes it (0600) and its directory (0700). A file
// that another process holds is ErrInUse after two seconds; one of a newer version
// is ErrNewer and stays as it is. A damaged file is moved aside, to
// PATH.damaged-TIME, and the loss told to warn, which may be nil.
func Open(path string, warn func(text string)) (*DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the state file: %w", err)
	}
	f, err := acquire(path)
	if err != nil {
		return nil, fmt.Errorf("state file %s: %w", path, err)
	}
	err = verify(f)
	if fault, damaged := errors.AsType[damage](err); damaged {
		if f, err = replace(f, path, fault, warn); err != nil {
			return nil, fmt.Errorf("state file %s: %w", path, err)
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("state file %s: %w", path, err)
	}
	d := &DB{path: path, pause: commitInterval, queues: make(map[string]*Queue)}
	if err := d.open(f); err != nil {
		return nil, fmt.Errorf("state file %s: %w", path, err)
	}
	return d, nil
}

// open hands the file, which is locked, to bbolt.
func (d *DB) open(f *os.File) error {
	var err error
	d.bolt, err = bbolt.Open(d.path, 0o600, &bbolt.Options{
		OpenFile:     func(string, int, os.FileMode) (*os.File, error) { return f, nil },
		FreelistType: bbolt.FreelistMapType,
		NoStatistics: true,
	})
	if err != nil {
		return err
	}
	if !d.isNew() {
		return nil // without a write, for which the disk may be too full
	}
	err = d.bolt.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucket(bansBucket); err != nil {
			return err
		}
		meta, err := tx.CreateBucket(metaBucket)
		if err != nil {
			return err
		}
		return put(meta, schemaKey, strconv.AppendInt(nil, schema, 10))
	})
	if err != nil {
		d.bolt.Close()
	}
	return err
}

// isNew reports whether nothing has been written yet.
func (d *DB) isNew() bool {
	isNew := false
	err := d.bolt.View(func(tx *bbolt.Tx) error {
		isNew = tx.Bucket(metaBucket) == nil
		return nil
	})
	return err == nil && isNew
}

// Close ends all work on the file.
func (d *DB) Close() error {
	d.writing.Lock() // what is being written is finished
	defer d.writing.Unlock()
	d.mu.Lock()
	broken := d.broken
	d.mu.Unlock()
	if broken != nil {
		return nil // bbolt may have kept a lock, and would wait for it for ever
	}
	return d.bolt.Close()
}

// guard calls fn, which uses bbolt. If the file has been changed under us, bbolt
// panics or reads beyond its end; that becomes ErrDamaged, now and from then on.
func (d *DB) guard(fn func() error) (err error) {
	d.mu.Lock()
	broken := d.broken
	d.mu.Unlock()
	if broken != nil {
		return broken
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("state file %s: %w (%v)", d.path, ErrDamaged, r)
			d.mu.Lock()
			d.broken = err
			d.mu.Unlock()
		}
	}()
	if err := fn(); err != nil {
		return fmt.Errorf("state file %s: %w", d.path, err)
	}
	return nil
}

func (d *DB) view(read func(*bbolt.Tx) error) error {
	return d.guard(func() error { return d.bolt.View(read) })
}

const (
	// lockPatience is how long a daemon that stops may still hold the file.
	lockPatience = 2 * time.Second
	lockInterval = 20 * time.Millisecond

	keptDamaged = 3 // files that were moved aside; the oldest beyond go
)

// acquire opens and locks the file that is at path.
func acquire(path string) (*os.File, error) {
	for deadline := time.Now().Add(lockPatience); ; {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := lock(f, deadline); err != nil {
			f.Close()
			return nil, err
		}
		// Whoever held the lock before may have moved the file aside.
		if same(f, path) {
			return f, nil
		}
		f.Close()
	}
}

func lock(f *os.File, deadline time.Time) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case !errors.Is(err, unix.EWOULDBLOCK):
			return err
		case time.Now().After(deadline):
			return ErrInUse
		}
		time.Sleep(lockInterval)
	}
}

func same(f *os.File, path string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(opened, there)
}

// replace moves the damaged file f at path aside and returns a new one, locked.
func replace(f *os.File, path string, fault damage, warn func(string)) (*os.File, error) {
	defer f.Close() // keeps the lock until the new file is ours
	aside := path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000000000Z")
	if err := os.Rename(path, aside); err != nil {
		return nil, fmt.Errorf("%w; move it aside: %w", fault, err)
	}
	if warn != nil {
		warn(fmt.Sprintf("the state file %s was damaged (%v): it is now %s; "+
			"bans, offenders and what outputs had not taken yet are lost", path, fault, aside))
	}
	removeOld(path)
	return acquire(path)
}

// removeOld removes damaged files but the latest, so that a failing disk is not
// filled with them as well.
func removeOld(path string) {
	found, err := filepath.Glob(path + ".damaged-*") // sorted, which is by time
	if err != nil {
		return // a path with brackets in it: keep all
	}
	for len(found) > keptDamaged {
		_ = os.Remove(found[0]) // what cannot be removed does no harm
		found = found[1:]
	}
}
