package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/bbolt"
)

// DefaultQueueBytes bounds a queue that is opened without a bound.
const DefaultQueueBytes = 64 << 20

// entryOverhead is what an entry takes in the file beside its record: key,
// checksum and bbolt's description of both.
const entryOverhead = 8 + sealSize + 16

var (
	// ErrTooLarge says that a record is larger than its whole queue may be.
	ErrTooLarge = errors.New("record larger than the queue")

	errRemoved = errors.New("the queue was removed")
)

// A Queue keeps records in their order, on the disk, until they are acknowledged.
// It is safe for concurrent use.
type Queue struct {
	db     *DB
	bucket []byte
	limit  int64

	mu    sync.Mutex
	state queueState
}

// A queueState says what is in a queue. Its keys are without gaps.
type queueState struct {
	first, next uint64 // keys: of the oldest entry, and of the one to come
	bytes       int64
	dropped     uint64
}

// An Entry is a record and its place in the queue.
type Entry struct {
	Key  uint64 // from 1; grows as long as the process lives
	Data []byte
}

// QueueStats tell how full a queue is.
type QueueStats struct {
	Entries int
	Bytes   int64  // in the file, about
	Dropped uint64 // since the start, because the queue was full
}

// Queue opens the queue of an output, as it was left. Its records take about limit
// bytes at most; zero means DefaultQueueBytes. The file never gets smaller, so it
// may stay at twice that. A second call with the same name returns the same queue.
func (d *DB) Queue(name string, limit int64) (*Queue, error) {
	if limit <= 0 {
		limit = DefaultQueueBytes
	}
	d.mu.Lock()
	q := d.queues[name]
	d.mu.Unlock()
	if q != nil {
		return q, nil
	}
	q = &Queue{db: d, bucket: []byte(queuesPrefix + name), limit: limit}
	if err := d.commit(0, q.load); err != nil {
		return nil, fmt.Errorf("open the queue of output %s: %w", name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if there := d.queues[name]; there != nil {
		return there, nil
	}
	d.queues[name] = q
	return q, nil
}

// load makes the queue if need be, and finds out what is in it.
func (q *Queue) load(tx *bbolt.Tx, b *batch) error {
	bucket, err := tx.CreateBucketIfNotExists(q.bucket)
	if err != nil {
		return err
	}
	s := queueState{first: 1, next: 1}
	c := bucket.Cursor()
	for key, value := c.First(); key != nil; key, value = c.Next() {
		if s.bytes == 0 {
			s.first = keyNumber(key)
		}
		s.next = keyNumber(key) + 1
		s.bytes += entrySize(value)
	}
	b.queues[q] = s
	return nil
}

// Queues returns the names of the queues in the file, whether open or not.
func (d *DB) Queues() ([]string, error) {
	var names []string
	err := d.view(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(bucket []byte, _ *bbolt.Bucket) error {
			if name, is := strings.CutPrefix(string(bucket), queuesPrefix); is {
				names = append(names, name)
			}
			return nil
		})
	})
	return names, err
}

// RemoveQueue removes a queue and all that is in it. Whoever has it open gets errors.
func (d *DB) RemoveQueue(name string) error {
	d.mu.Lock()
	delete(d.queues, name)
	d.mu.Unlock()
	return d.commit(0, func(tx *bbolt.Tx, _ *batch) error {
		if tx.Bucket([]byte(queuesPrefix+name)) == nil {
			return nil
		}
		return tx.DeleteBucket([]byte(queuesPrefix + name))
	})
}

// Append stores records behind all others. It returns when they are on the disk.
// Fewer than 64 KiB may wait a tenth of a second for others to come, so hand over
// all there are. On an error none of them is stored. Where the queue gets too
// large, the oldest records go and are counted in Dropped.
func (q *Queue) Append(records [][]byte) error {
	size := 0
	for _, r := range records {
		if int64(len(r)+entryOverhead) > q.limit {
			return fmt.Errorf("%w: %d bytes", ErrTooLarge, len(r))
		}
		size += len(r) + entryOverhead
	}
	return q.db.commit(size, func(tx *bbolt.Tx, b *batch) error {
		bucket, err := q.in(tx)
		if err != nil {
			return err
		}
		bucket.FillPercent = 0.95 // keys only grow, so pages are never added to
		s := b.state(q)
		for _, r := range records {
			if err := put(bucket, numberKey(s.next), r); err != nil {
				return err
			}
			s.next++
			s.bytes += int64(len(r) + entryOverhead)
		}
		for s.bytes > q.limit {
			if err := s.removeFirst(bucket); err != nil {
				return err
			}
			s.dropped++
		}
		b.queues[q] = s
		return nil
	})
}

// Peek returns at most limit entries, the oldest first, of those behind the key
// after. Pass 0 for the oldest of all, or the last key that was returned to go on
// before it is acknowledged.
func (q *Queue) Peek(after uint64, limit int) ([]Entry, error) {
	var entries []Entry
	err := q.db.view(func(tx *bbolt.Tx) error {
		bucket, err := q.in(tx)
		if err != nil {
			return err
		}
		c := bucket.Cursor()
		for key, value := c.Seek(numberKey(after + 1)); key != nil && len(entries) < limit; key, value = c.Next() {
			data, err := unseal(key, value)
			if err != nil {
				return fmt.Errorf("entry %d: %w", keyNumber(key), err)
			}
			entries = append(entries, Entry{Key: keyNumber(key), Data: slices.Clone(data)})
		}
		return nil
	})
	return entries, err
}

// Ack removes all entries up to and with the key through. It returns when that is
// on the disk, perhaps a tenth of a second later: what was acknowledged then never
// comes again.
func (q *Queue) Ack(through uint64) error {
	return q.db.commit(0, func(tx *bbolt.Tx, b *batch) error {
		bucket, err := q.in(tx)
		if err != nil {
			return err
		}
		s := b.state(q)
		for s.first <= through && s.first < s.next {
			if err := s.removeFirst(bucket); err != nil {
				return err
			}
		}
		b.queues[q] = s
		return nil
	})
}

// Stats tells how full the queue is.
func (q *Queue) Stats() QueueStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return QueueStats{
		Entries: int(q.state.next - q.state.first), Bytes: q.state.bytes, Dropped: q.state.dropped,
	}
}

// in returns where the queue is in the file.
func (q *Queue) in(tx *bbolt.Tx) (*bbolt.Bucket, error) {
	if bucket := tx.Bucket(q.bucket); bucket != nil {
		return bucket, nil
	}
	return nil, errRemoved
}

func (q *Queue) set(s queueState) {
	q.mu.Lock()
	q.state = s
	q.mu.Unlock()
}

// state returns what is in q after the changes before.
func (b *batch) state(q *Queue) queueState {
	if s, changed := b.queues[q]; changed {
		return s
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.state
}

func (s *queueState) removeFirst(bucket *bbolt.Bucket) error {
	key := numberKey(s.first)
	s.bytes -= entrySize(bucket.Get(key))
	s.first++
	return bucket.Delete(key)
}

func entrySize(sealed []byte) int64 { return int64(len(sealed) - sealSize + entryOverhead) }

// numberKey returns a key in the order of bytes.
func numberKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func keyNumber(key []byte) uint64 {
	if len(key) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(key)
}
