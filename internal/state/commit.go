package state

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"

	"go.etcd.io/bbolt"
)

const (
	// commitInterval is how far commits are apart at least, unless there is much
	// to write: each makes the disk write for real, and wears it out.
	commitInterval = 100 * time.Millisecond

	// commitBytes is how much need not wait for more.
	commitBytes = 64 << 10
)

// A batch is what goes to the disk together. All of it does, or nothing.
type batch struct {
	changes []change
	size    int
	full    chan struct{} // closed when the batch should not wait any longer
	done    chan struct{} // closed when err is set
	err     error

	queues map[*Queue]queueState // that changes leave behind
}

type change func(*bbolt.Tx, *batch) error

// commit has a change written, together with those of others, and returns when it
// is on the disk. The first of a batch waits and writes; the others wait for it.
// size is about what the change adds, in bytes.
func (d *DB) commit(size int, c change) error {
	b, first := d.join(size, c)
	if !first {
		<-b.done
		return b.err
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	select {
	case <-b.full:
	case <-time.After(d.pause - time.Since(d.committed)):
	}
	d.mu.Lock()
	d.pending = nil
	d.mu.Unlock()

	b.err = d.guard(func() error { return d.bolt.Update(b.apply) })
	d.committed = time.Now()
	if b.err == nil {
		for q, s := range b.queues {
			q.set(s)
		}
	}
	close(b.done)
	return b.err
}

// join adds a change to the batch that gathers, and reports whether it is the
// first.
func (d *DB) join(size int, c change) (b *batch, first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	first = d.pending == nil
	if first {
		d.pending = &batch{
			full: make(chan struct{}), done: make(chan struct{}),
			queues: make(map[*Queue]queueState),
		}
	}
	b = d.pending
	b.changes = append(b.changes, c)
	wasFull := b.size >= commitBytes
	if b.size += size; b.size >= commitBytes && !wasFull {
		close(b.full)
	}
	return b, first
}

func (b *batch) apply(tx *bbolt.Tx) error {
	for _, c := range b.changes {
		if err := c(tx, b); err != nil {
			return err
		}
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const sealSize = 4

var errSeal = errors.New("checksum does not match")

func sum(key, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, data)
}

// put stores data with a checksum over it and the key.
func put(b *bbolt.Bucket, key, data []byte) error {
	sealed := make([]byte, sealSize, sealSize+len(data))
	binary.BigEndian.PutUint32(sealed, sum(key, data))
	return b.Put(key, append(sealed, data...))
}

// unseal returns the data of a stored value, which it shares.
func unseal(key, sealed []byte) ([]byte, error) {
	if len(sealed) < sealSize || binary.BigEndian.Uint32(sealed) != sum(key, sealed[sealSize:]) {
		return nil, errSeal
	}
	return sealed[sealSize:], nil
}
